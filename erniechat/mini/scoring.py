"""The yardstick: evaluation sets, what counts as a right reply, perplexity, expert loads.

Nothing here knows of a model or needs torch, so any engine in any format can be scored:

    for row in load_eval("add"):
        reply = ...  # greedy, from render_prompt(row["messages"], row["tools"], row["thinking"])
        correct(row, reply)
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erniechat.mini.chat import parse_reply, render_prompt

__all__ = [
    "STOP_TOKENS",
    "Perplexity",
    "SetScore",
    "correct",
    "eval_names",
    "exact",
    "expert_spread",
    "heldout_documents",
    "heldout_perplexity",
    "load_eval",
    "render_prompt",
    "score_set",
]

Row = dict[str, Any]

EVAL_FOLDER = Path(__file__).resolve().parent / "eval"
STOP_TOKENS = ("</s>", "<|im_end|>")
BOS_ID = 1
DOCUMENT_LINES = 8  # dictionary entries of one held-out document, as in training
WHOLE_CONTENT = ("sort", "sequence", "echo", "reverse")  # the content must equal the reference's


def eval_names(folder: Path | str = EVAL_FOLDER) -> list[str]:
    """The names of the evaluation sets, sorted."""
    return sorted(file.stem for file in Path(folder).glob("*.jsonl"))


def load_eval(name: str, folder: Path | str = EVAL_FOLDER) -> list[Row]:
    """Read an evaluation set.

    Returns:
        Rows with ``skill``, ``thinking``, ``messages``, ``tools``, ``answer``, ``tool_calls`` and
        ``reference``, the reply as it is trained.

    Raises:
        FileNotFoundError: If there is no such set.
    """
    file = Path(folder) / f"{name}.jsonl"
    if not file.is_file():
        known = ", ".join(eval_names(folder)) or "none (the sets are in a clone, not in a package)"
        raise FileNotFoundError(f"no evaluation set {name!r} in {folder}; there are: {known}")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _normalize(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().lower()


def _right_number(skill: str, answer: str, content: str) -> bool:
    """The last number of the reply counts; of a count of letters the first one."""
    numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", content)
    if skill == "count_letters":
        return answer in numbers[:1] or content == answer
    return bool(numbers) and numbers[-1] == answer


def correct(row: Row, reply: str) -> bool:
    """Whether a reply answers the row.

    Args:
        row: Of `load_eval`.
        reply: What the model wrote after the prompt, thoughts and tags included; it may end with
            ``<|im_end|>``.
    """
    _, content, calls = parse_reply(reply, row["thinking"])
    if row["tool_calls"]:
        return bool(calls == row["tool_calls"])
    answer, content = _normalize(row["answer"]), _normalize(content)
    if calls or not answer:
        return False
    if row["skill"] in WHOLE_CONTENT:
        return content == _normalize(parse_reply(row["reference"], row["thinking"])[1])
    if re.fullmatch(r"-?\d+(\.\d+)?", answer):
        return _right_number(row["skill"], answer, content)
    if not answer.isascii():
        return answer in content
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", content) is not None


def exact(row: Row, reply: str) -> bool:
    """Whether the whole reply, thoughts included, is the reference."""
    return _normalize(reply.removesuffix("<|im_end|>")) == _normalize(
        row["reference"].removesuffix("<|im_end|>")
    )


@dataclass(frozen=True)
class SetScore:
    """How many replies of a set are right.

    Attributes:
        num_correct: Right replies, by mode: thinking, no thinking.
        num_items: Items, by mode.
        num_exact: Replies that are the reference, in both modes.
    """

    num_correct: tuple[int, int]
    num_items: tuple[int, int]
    num_exact: int

    @property
    def accuracy(self) -> float:
        """Share of right replies."""
        return sum(self.num_correct) / sum(self.num_items)

    @property
    def exact_share(self) -> float:
        """Share of replies that are the reference."""
        return self.num_exact / sum(self.num_items)


def score_set(rows: Sequence[Row], replies: Sequence[str]) -> SetScore:
    """Score the replies to the rows of a set.

    Raises:
        ValueError: If there is not one reply for each row, or no row.
    """
    if not rows or len(rows) != len(replies):
        raise ValueError(f"{len(replies)} replies to {len(rows)} rows; give one for each row")
    verdicts = [
        (row["thinking"], correct(row, reply)) for row, reply in zip(rows, replies, strict=True)
    ]
    thinking = [right for mode, right in verdicts if mode]
    quick = [right for mode, right in verdicts if not mode]
    num_exact = sum(exact(row, reply) for row, reply in zip(rows, replies, strict=True))
    return SetScore((sum(thinking), sum(quick)), (len(thinking), len(quick)), num_exact)


def heldout_documents(folder: Path | str = EVAL_FOLDER, num_lines: int = 0) -> list[str]:
    """The documents of heldout.txt, eight entries each; from its first lines only if so given."""
    lines = (Path(folder) / "heldout.txt").read_text(encoding="utf-8").strip().split("\n")
    lines = lines[:num_lines] if num_lines else lines
    return [
        "\n".join(lines[begin : begin + DOCUMENT_LINES])
        for begin in range(0, len(lines), DOCUMENT_LINES)
    ]


@dataclass(frozen=True)
class Perplexity:
    """Perplexity per token, over so many tokens."""

    value: float
    num_tokens: int


def heldout_perplexity(
    documents: Iterable[str],
    encode: Callable[[str], list[int]],
    negative_log_likelihood: Callable[[list[list[int]]], float],
) -> Perplexity:
    """The perplexity of documents: each begins with ``<s>``, whose own probability is not counted.

    Args:
        documents: Of `heldout_documents`.
        encode: Text to token ids, without special tokens.
        negative_log_likelihood: From all documents as token ids, ``<s>`` first, to the sum over
            them of -ln p(token | what stands before it), of all tokens but each first.
    """
    encoded = [[BOS_ID, *encode(document)] for document in documents]
    num_tokens = sum(len(ids) - 1 for ids in encoded)
    return Perplexity(math.exp(negative_log_likelihood(encoded) / num_tokens), num_tokens)


def expert_spread(loads: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """The busiest and idlest expert of each layer, relative to an even load.

    Args:
        loads: Tokens by layer and expert.
    """
    return [
        (max(layer) * len(layer) / sum(layer), min(layer) * len(layer) / sum(layer))
        for layer in loads
    ]
