"""The tokenizer that is built from a GGUF file splits text as the tokenizer.json does."""

import random
from pathlib import Path

import gguf
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from erniechat.chat.tokenizer import Tokenizer
from erniechat.errors import CheckpointError
from erniechat.mini import checkpoint_folder
from erniechat.model import gguf_tokenizer
from erniechat.model.gguf_file import read_gguf
from erniechat.model.gguf_tokenizer import GgufVocabulary, chat_templates
from tests.chat.conftest import PT, SHARED, THINKING
from tests.model.gguf_files import add_tokenizer, finish

ROOT = Path(__file__).parents[2]
LETTERS = (
    "aA bz  \n\t0129.,!?éüßñ中文你好世界日本語カКиعربيπ∑😀👩👧\u200d\u200b\ufeff'\"<>|_/{[(#$%&*~`▁"
)
PIECES = ["<s>", "</s>", "<think>", "</think>", "<|im_end|>", "<|end_of_sentence|>", "<mask:1>",
          "<tool_call>", "<unk>", "hello", " hello", "世界", " ", "\n", "", "7"]  # fmt: skip
# Real vectors of transformers' tests and of the published tokenizer.json files.
VECTORS = {
    PT: {
        "This is a test": [1720, 357, 274, 1167],
        " Hello": [30802],
        "hello": [18830],
        "<s> Hello<s>how": [1, 30802, 1, 7413],
        "But ird and ปี   ird   ด": [
            2398, 93919, 2080, 326, 93919, 81175, 1111, 2080, 1111, 95676
        ],
    },
    THINKING: {
        "This is a test": [1063, 357, 274, 1167],
        "hello": [23013],
        " ": [269],
        "abc\n</think>\n\n<response>\ndef\n</response>\n<|im_end|>": [
            49524, 23, 100282, 93919, 23, 23, 100299, 93919, 23, 565, 23, 100300, 93919, 23, 100308
        ],
    },
}  # fmt: skip  # vectors


def corpus() -> list[str]:
    """Prose, code and tables of this repository, random letters of many scripts, and markup."""
    out = []
    for path in [ROOT / "README.md", *sorted((ROOT / "erniechat").rglob("*.py"))[:12]]:
        text = path.read_text("utf-8")
        out += [text[:4000], *text.splitlines()[:60]]
    for path in sorted((ROOT / "erniechat" / "mini" / "eval").glob("*.jsonl")):
        out += path.read_text("utf-8").splitlines()[:5]
    rng = random.Random(0)
    out += ["".join(rng.choices(LETTERS, k=rng.randrange(1, 40))) for _ in range(600)]
    out += [rng.choice(["", " "]).join(rng.choices(PIECES, k=6)) for _ in range(300)]
    return out


def vocabulary_of(folder: Path, path: Path) -> GgufVocabulary:
    writer = gguf.GGUFWriter(str(path), "ernie4_5")
    add_tokenizer(writer, folder)
    finish(writer)
    return GgufVocabulary(path.name, read_gguf(path).metadata)


def folder_of(name: str) -> Path:
    folder = checkpoint_folder() if name == "mini" else SHARED / "hub" / name
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("no real tokenizers beside the repository")
    return folder


@pytest.mark.parametrize("name", ["mini", PT, THINKING])
def test_every_text_has_the_same_tokens_and_comes_back_the_same(name, tmp_path):
    folder = folder_of(name)
    original = Tokenizer.from_folder(folder)
    ours = Tokenizer(vocabulary_of(folder, tmp_path / "a.gguf").build())
    texts = corpus()
    assert len(texts) > 1000
    for text in texts:
        ids = original.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == original.decode(ids), text
    for text, ids in VECTORS.get(name, {}).items():
        assert ours.encode(text) == ids
    assert ours.num_tokens == original.num_tokens  # padding rows are no tokens
    assert (ours.tag_ids, ours.turn_end_ids, ours.markup_ids) == (
        original.tag_ids, original.turn_end_ids, original.markup_ids,
    )  # fmt: skip  # one comparison


def metadata_of(tokens, **more):
    given = {"model": "llama", "tokens": tokens, "scores": [-float(i) for i in range(len(tokens))]}
    return {f"tokenizer.ggml.{key}": value for key, value in (given | more).items()}


def build(tokens, **more):
    return GgufVocabulary("a.gguf", metadata_of(tokens, **more)).build()


def test_the_better_score_is_merged_first():
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "bc", "abc"]
    for scores, expected in (([-2.0, -1.0], ["a", "bc"]), ([-1.0, -2.0], ["ab", "c"])):
        found = build(tokens[:-1], scores=[0.0] * 6 + scores, add_space_prefix=False).encode(
            "abc", add_special_tokens=False
        )
        assert found.tokens == expected


def test_merges_of_the_file_go_before_scores():
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "bc"]
    more = {"scores": [0.0] * 6 + [-1.0, -2.0], "add_space_prefix": False}
    found = build(tokens, merges=["b c", "a b"], **more).encode("abc", add_special_tokens=False)
    assert found.tokens == ["a", "bc"]


def test_a_space_goes_before_a_text_unless_the_file_says_no():
    tokens = ["<unk>", "<s>", "</s>", "▁", "a", "▁a"]
    assert build(tokens).encode("a", add_special_tokens=False).tokens == ["▁a"]
    assert build(tokens).decode([5, 5]) == "a a"
    found = build(tokens, add_space_prefix=False).encode("a", add_special_tokens=False)
    assert found.tokens == ["a"]
    assert build(tokens, add_space_prefix=False).decode([5, 5]) == " a a"


def test_byte_level_pieces_are_read_too():
    """As GPT-2 has them: "Ġ" is a space."""
    vocab = {"<|endoftext|>": 0, "h": 1, "i": 2, "Ġ": 3, "hi": 4, "Ġhi": 5, "!": 6}
    merges = [("h", "i"), ("Ġ", "hi")]
    original = tokenizers.Tokenizer(models.BPE(vocab, merges))
    original.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    original.decoder = decoders.ByteLevel()
    ours = build(list(vocab), model="gpt2", pre="gpt-2", merges=["h i", "Ġ hi"],
                 token_type=[3, 1, 1, 1, 1, 1, 1])  # fmt: skip  # one call
    for text in ("hi hi!", "hi", "hhi  hi!!"):
        ids = original.encode(text).ids
        assert ours.encode(text).ids == ids
        assert ours.decode(ids) == original.decode(ids) == text
    assert ours.encode("hi<|endoftext|>").ids == [4, 0]


def test_a_whole_tokenizer_json_goes_before_everything():
    text = (checkpoint_folder() / "tokenizer.json").read_text("utf-8")
    metadata = metadata_of(["a", "b", "c"]) | {"tokenizer.huggingface.json": text}
    found = Tokenizer(GgufVocabulary("a.gguf", metadata).build())
    assert found.encode("What is 17 + 25?") == Tokenizer.from_folder(checkpoint_folder()).encode(
        "What is 17 + 25?"
    )


BAD = [
    ([], {}, "tokenizer.ggml.tokens is missing"),
    ([1, 2], {}, "tokens must be a list of str"),
    (["a" * 129], {}, "tokens may have 128 letters"),
    (["a" * i for i in range(1, 129)], {"token_type": [1] * 127}, "128 tokens have 127 types"),
    ([f"{i:08b}" for i in range(256)] * 2, {}, "two tokens have one text"),
    (["a", "b", "c"], {"token_type": [1]}, "3 tokens have 1 types"),
    (["a", "b", "c"], {"merges": ["a b"]}, 'the merge "a b" is not of its tokens'),
    (["a", "b", "c"], {"unknown_token_id": -1}, "unknown_token_id is -1 of 3 tokens"),
]


@pytest.mark.parametrize(("tokens", "more", "message"), BAD)
def test_what_does_not_fit_is_one_line(tokens, more, message):
    with pytest.raises(CheckpointError) as caught:
        build(tokens, **more)
    assert str(caught.value).startswith("a.gguf has no sound tokenizer (")
    assert message in str(caught.value)


def test_pieces_that_make_too_many_merges_are_refused(monkeypatch):
    monkeypatch.setattr(gguf_tokenizer, "MAX_MERGES", 2)
    tokens = ["a", "b", "ab", "aba"]
    assert build(tokens, bos_token_id=0, eos_token_id=0, unknown_token_id=0)
    with pytest.raises(CheckpointError, match="its pieces make more than 2 merges"):
        build([*tokens, "abab"])


def test_chat_templates_have_their_names():
    metadata = {"tokenizer.chat_template": "A", "tokenizer.chat_template.tool_use": "B"}
    assert chat_templates("a.gguf", metadata) == {"default": "A", "tool_use": "B"}
    assert chat_templates("a.gguf", {}) == {}


def test_special_tokens_have_the_names_of_templates():
    metadata = metadata_of(["u", "b", "e", "x"], seperator_token_id=3, padding_token_id=0)
    found = GgufVocabulary("a.gguf", metadata).special_tokens()
    assert found == {
        "bos_token": "b", "eos_token": "e", "unk_token": "u", "sep_token": "x", "pad_token": "u",
    }  # fmt: skip  # one mapping
