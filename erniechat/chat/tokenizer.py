"""Text to token ids and back, whole or as a stream, exactly as tokenizer.json says."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tokenizers

from erniechat.chat.tags import TAGS, Tag
from erniechat.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"

# Tokens that end a turn in one ERNIE chat format or another. Which of them a model uses is told
# by its template: see generation_defaults.
END_OF_TEXT = "</s>"
TURN_ENDS = ("<|end_of_sentence|>", "<|begin_of_sentence|>", "<|im_end|>")

# Not flagged special in the Thinking tokenizer, but markup all the same.
_HIDDEN_MARKS = ("<|im_start|>", "<|im_end|>")

# Stands after the first character of what spells markup and is text all the same. A noncharacter:
# Unicode keeps it for a program's own use, and no text that is exchanged holds it.
QUOTE = "\ufdd0"


def unquote(text: str) -> str:
    """A text without the marks of `Tokenizer.quote`, for people."""
    return text.replace(QUOTE, "")


class Tokenizer:
    """A checkpoint's tokenizer.

    Attributes:
        num_tokens: Tokens defined. The embedding has more rows; an id from here on is padding,
            must never be sampled, and decodes as nothing.
        tag_ids: The tags of a reply that are tokens of their own, by id. Empty for the PT models,
            where "<think>" is ordinary text.
        special_ids: Tokens that are flagged special; `decode` leaves them out.
        markup_ids: Special tokens, turn marks and tags: all that is no text of a reply.
        turn_end_ids: The ids of what may end a turn, by text: END_OF_TEXT and TURN_ENDS.
    """

    num_tokens: int
    tag_ids: Mapping[int, str]
    special_ids: frozenset[int]
    markup_ids: frozenset[int]
    turn_end_ids: Mapping[str, int]

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.num_tokens = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(idx for idx, token in added.items() if token.special)
        self.tag_ids = {idx: token.content for idx, token in added.items() if token.content in TAGS}
        marks = {token.content: idx for idx, token in added.items()}
        self.turn_end_ids = {
            text: marks[text] for text in (END_OF_TEXT, *TURN_ENDS) if text in marks
        }
        hidden = (marks[text] for text in _HIDDEN_MARKS if text in marks)
        # A file may flag tags as special; the parser needs them all the same.
        self._hidden_ids = self.special_ids.union(hidden).difference(self.tag_ids)
        self.markup_ids = self._hidden_ids.union(self.tag_ids)
        self._spells_markup = _beginnings(
            token.content
            for token in added.values()
            if token.special or (token.content[0], token.content[-1]) == ("<", ">")
        )
        names = (f"<0x{byte:02X}>" for byte in range(256))
        self._byte_ids = frozenset(
            idx for idx in map(backend.token_to_id, names) if idx is not None and idx not in added
        )

    @classmethod
    def from_folder(cls, folder: str | Path, vocab_size: int | None = None) -> "Tokenizer":
        """The tokenizer of a checkpoint folder.

        Args:
            folder: Where ``tokenizer.json`` lies.
            vocab_size: Rows of the model's embedding, to check that the two belong together.

        Raises:
            CheckpointError: If tokenizer.json is missing, damaged or of another model.
        """
        path = Path(folder) / TOKENIZER_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing",
                "download the model again, with this file: tokenizer.model cannot take its place",
            )
        try:
            tokenizer = cls(_read(path))
        except Exception as exc:
            # The library raises bare Exception, for damage of any kind.
            reason = " ".join(str(exc).split())[:200]
            raise CheckpointError(
                f"{path} is not a tokenizer ({reason})", "download it again"
            ) from exc
        if vocab_size is not None:
            tokenizer.check_fits(vocab_size, path)
        return tokenizer

    def check_fits(self, vocab_size: int, path: Path) -> None:
        """Refuse a model whose embedding has fewer rows than this has tokens.

        Raises:
            CheckpointError: Naming the tokenizer's file.
        """
        if self.num_tokens > vocab_size:
            raise CheckpointError(
                f"{path} defines {self.num_tokens} tokens, but the model has only "
                f"{vocab_size} (vocab_size)",
                "take both files from one model",
            )

    def encode(self, text: str) -> list[int]:
        """The ids of a text; none is added, and markup becomes its token unless it is quoted.

        Half of a surrogate pair, which JSON can smuggle in and UTF-8 cannot express, is read as
        U+FFFD.
        """
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        found = self._backend.encode(clean, add_special_tokens=False)
        ids: list[int] = found.ids
        if QUOTE not in clean:
            return ids
        spans = zip(ids, found.offsets, strict=True)
        return [idx for idx, (begin, end) in spans if clean[begin:end] != QUOTE]

    def quote(self, text: str) -> str:
        """A text that `encode` reads as nothing but text, also where it spells markup.

        What a user, a file or a tool says must not end its turn or open another one.
        """
        return self._spells_markup.sub(rf"\g<0>{QUOTE}", text.replace(QUOTE, "\ufffd"))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens, turn marks and padding are nothing, tags their text."""
        return self._decode([token_id for token_id in ids if self._is_visible(token_id)])

    def to_json(self) -> str:
        """The tokenizer.json that this is."""
        text: str = self._backend.to_str()
        return text

    def token_id(self, text: str) -> int | None:
        """The id of the token with this very text, if there is one."""
        token_id: int | None = self._backend.token_to_id(text)
        return token_id

    def stream_decoder(self) -> "StreamDecoder":
        """A decoder for one reply."""
        return StreamDecoder(self)

    def _is_visible(self, token_id: int) -> bool:
        return 0 <= token_id < self.num_tokens and token_id not in self._hidden_ids

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._backend.decode(ids, skip_special_tokens=False)
        return text


def _read(path: Path) -> tokenizers.Tokenizer:
    try:
        name = str(path).encode().decode()
    except UnicodeEncodeError:  # its library opens only paths that are UTF-8
        return tokenizers.Tokenizer.from_buffer(path.read_bytes())
    return tokenizers.Tokenizer.from_file(name)  # where Python runs on meanwhile


def _beginnings(words: Iterable[str]) -> re.Pattern[str]:
    """Finds the first character of each place where one of the words begins."""
    rests: dict[str, list[str]] = {}
    for word in words:
        rests.setdefault(word[0], []).append(re.escape(word[1:]))
    parts = (f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items())
    return re.compile("|".join(parts) or "(?!)")


class StreamDecoder:
    """Token ids in, pieces of text out: joined, they are what decoding all at once would give.

    Each step decodes a window of a few tokens, so a reply costs time linear in its length. The
    window begins with the token before, because the first token of a text can decode differently
    (the Thinking tokenizer strips one leading space).

    Byte tokens wait for the next other token: the byte-fallback decoder reads a run of them as
    one, and turns all of it into U+FFFD, one for each byte, if any of it is not UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []  # the last token that has been shown, if any
        self._num_before_chars = 0
        self._waiting: list[int] = []  # byte tokens

    def feed(self, token_id: int) -> list[str]:
        """The pieces that a further token makes known; tags come as `Tag`, none is empty."""
        tokenizer = self._tokenizer
        if token_id in tokenizer.tag_ids:
            pieces = self.flush()
            self._set_before(token_id)
            return [*pieces, Tag(tokenizer.tag_ids[token_id])]
        if not tokenizer._is_visible(token_id):
            return []
        self._waiting.append(token_id)
        if token_id in tokenizer._byte_ids:
            return []
        pieces = self.flush()
        self._set_before(token_id)
        return pieces

    def flush(self) -> list[str]:
        """The text held back, at the end of a reply."""
        if not self._waiting:
            return []
        text = self._tokenizer._decode(self._before + self._waiting)[self._num_before_chars :]
        self._waiting = []
        return [text] if text else []

    def _set_before(self, token_id: int) -> None:
        self._before = [token_id]
        self._num_before_chars = len(self._tokenizer._decode(self._before))
