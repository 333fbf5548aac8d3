"""A question that is longer than the context, cut on purpose."""

import dataclasses
import sys

from erniechat.backend import ChatBackend
from erniechat.errors import ContextLengthError
from erniechat.ui.asking import Question
from erniechat.ui.oneshot import Request

RESERVED_TOKENS = 512
CUT = "\n\n[… cut …]\n\n"


def fit(
    question: Question, policy: str, backend: ChatBackend, request: Request
) -> tuple[str, float]:
    """The question's text, cut if it must be, and the share of the document that was cut.

    What is cut is stdin, or the whole text where nothing was piped: the task stays.

    Args:
        question: What is asked.
        policy: refuse (the engine does), or what is kept: head, tail, or middle for both ends.
        backend: Counts tokens, and knows the context.
        request: The rest of the prompt, and the limit of the answer.
    """
    text = question.text
    context_length = backend.info.context_length
    reserved = request.sampling.max_tokens or min(RESERVED_TOKENS, context_length // 4)
    room = context_length - reserved
    if policy == "refuse" or _count(text, backend, request) <= room:
        return text, 0.0
    long = question.document or question.words
    words = question.words if question.document else ""

    def joined(num_chars: int) -> str:
        return Question(_kept(long, policy, num_chars), words).text

    low, high = 1, len(long)  # the most characters that fit, found by halving
    while low < high:
        middle = (low + high + 1) // 2
        fits = _count(joined(middle), backend, request) <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return joined(low), 1 - low / len(long)


def _count(text: str, backend: ChatBackend, request: Request) -> int:
    raw = request.raw or not backend.info.has_chat_template
    try:
        return dataclasses.replace(request, prompt=text).count_tokens(backend, raw)
    except ContextLengthError:  # too long even to be counted
        return sys.maxsize


def _kept(text: str, policy: str, num_chars: int) -> str:
    if policy == "head":
        return text[:num_chars] + CUT
    if policy == "tail":
        return CUT + text[len(text) - num_chars :]
    half = num_chars // 2
    return text[: num_chars - half] + CUT + text[len(text) - half :]
