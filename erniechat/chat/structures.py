"""What an answer must be: JSON schema, grammar or regular expression, read by llguidance."""

import json
from collections.abc import Collection
from typing import Any

from erniechat.errors import UsageError
from erniechat.options import Structure


def make_matcher(structure: Structure, tokenizer_json: str, stop_ids: Collection[int]) -> Any:
    """The matcher of a structure, by llguidance.

    Args:
        structure: What the answer must be.
        tokenizer_json: The text of a tokenizer.json.
        stop_ids: Tokens that end a reply.

    Raises:
        UsageError: If llguidance is not installed, or does not understand the structure.
    """
    llguidance = _library(structure)
    grammar = _grammar(structure, llguidance.LLMatcher)
    tokenizer = llguidance.LLTokenizer(tokenizer_json, eos_token=sorted(stop_ids))
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    if matcher.is_error():
        raise _refusal(structure, matcher.get_error())
    return matcher


def check_structure(structure: Structure) -> None:
    """Refuse a structure that makes no sense, before any model is loaded.

    Raises:
        UsageError: If llguidance is not installed, or does not understand the structure.
    """
    matcher = _library(structure).LLMatcher
    problem = matcher.validate_grammar(_grammar(structure, matcher))
    if problem:
        raise _refusal(structure, problem)


def _library(structure: Structure) -> Any:
    try:
        import llguidance  # an extra: not everybody has it
    except ImportError as exc:
        raise UsageError(
            f"{structure.flag} needs llguidance, which is not installed",
            "pip install 'erniechat[structured]'",
        ) from exc
    return llguidance


def _grammar(structure: Structure, matcher: Any) -> Any:
    try:
        if structure.kind == "json_schema":
            compact = {"whitespace_flexible": False}  # a small model writes blanks without end
            return matcher.grammar_from_json_schema(json.loads(structure.text), overrides=compact)
        if structure.kind == "regex":
            return matcher.grammar_from_regex(structure.text)
        return matcher.grammar_from_lark(structure.text)
    except (ValueError, RecursionError) as exc:
        raise _refusal(structure, str(exc)) from exc


def _refusal(structure: Structure, reason: str) -> UsageError:
    return UsageError(f"{structure.flag} cannot be used: {' '.join(reason.split())[:200]}")
