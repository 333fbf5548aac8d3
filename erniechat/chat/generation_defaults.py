"""What a checkpoint says about generating: how to sample, and on which tokens to stop."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erniechat.chat.checkpoint_files import read_json_object
from erniechat.chat.template import ChatTemplate
from erniechat.chat.tokenizer import END_OF_TEXT, TURN_ENDS, Tokenizer
from erniechat.errors import CheckpointError, UsageError
from erniechat.options import SamplingOptions

# For checkpoints that say nothing. Source: the model card of baidu/ERNIE-4.5-300B-A47B-PT, "Best
# Practices"; no other ERNIE 4.5 text model's card gives values.
RECOMMENDED = {"temperature": 0.8, "top_p": 0.8}

# What each setting does when it does nothing.
_NEUTRAL = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def read_generation_config(folder: str | Path) -> dict[str, Any]:
    """The checkpoint's generation_config.json; empty if it has none.

    Raises:
        CheckpointError: If the file is damaged.
    """
    return read_json_object(Path(folder) / "generation_config.json")


def sampling_defaults(generation_config: Mapping[str, Any]) -> SamplingOptions:
    """How a checkpoint wants its tokens chosen; everything but max_tokens and seed is set.

    - ``do_sample`` false: the likeliest token, temperature 0.
    - ``do_sample`` true, or absent beside sampling values: sample with these values, the rest
      neutral. transformers would ignore the values where ``do_sample`` is absent, but 21B-Thinking
      is published so, and its 0.6 and 0.95 are meant.
    - nothing said: `RECOMMENDED`.

    ``frequency_penalty`` and ``presence_penalty``, which ERNIE's files set to 0, are not read.

    Raises:
        CheckpointError: If a value breaks its setting's rule.
    """
    given = {key: generation_config.get(key) for key in _NEUTRAL}
    given = {key: value for key, value in given.items() if value is not None}
    do_sample = generation_config.get("do_sample")
    if do_sample is False:
        values: dict[str, Any] = {**_NEUTRAL, "temperature": 0.0}
        values.update((key, value) for key, value in given.items() if key not in _SAMPLING)
    elif do_sample or any(key in given for key in _SAMPLING):
        values = {**_NEUTRAL, **given}
    else:
        values = {**_NEUTRAL, **RECOMMENDED, **given}
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(
                f'generation_config.json: {key} must be a number, got "{value}"',
                "correct the file, or download it again",
            )
    try:
        return SamplingOptions(**values)
    except UsageError as exc:
        raise CheckpointError(
            f"generation_config.json: {exc.message}", "correct the file, or download it again"
        ) from exc


def stop_token_ids(
    tokenizer: Tokenizer, template: ChatTemplate | None, *configs: Mapping[str, Any]
) -> frozenset[int]:
    """The tokens that end a reply.

    They are the ``eos_token_id`` of the configs, ``</s>``, and those of `TURN_ENDS` that the
    template writes: a turn end that the model was never shown is not one. 21B-Thinking's
    generation_config.json names ``</s>`` alone, and without ``<|im_end|>`` its answers would run
    on into an invented next turn. Without a template (a base model) they are the turn ends that
    are flagged special: nothing of them would be shown, and Baidu's runner stops on them too.
    An id without a token is never sampled, so it is none of them.

    Source: PaddlePaddle/ERNIE, tools/inference/infer.py (stops on eos and cls).

    Args:
        tokenizer: The checkpoint's tokenizer.
        template: Its chat template, if it has one.
        configs: Its config.json and generation_config.json.

    Raises:
        CheckpointError: If an ``eos_token_id`` is neither a number nor a list of numbers.
    """
    out: set[int] = set()
    for config in configs:
        out |= _eos_ids(config.get("eos_token_id"))
    ids = tokenizer.turn_end_ids
    if END_OF_TEXT in ids:
        out.add(ids[END_OF_TEXT])
    for text in TURN_ENDS:
        if text not in ids:
            continue
        if template.writes(text) if template else ids[text] in tokenizer.special_ids:
            out.add(ids[text])
    return frozenset(out.intersection(range(tokenizer.num_tokens)))


def _eos_ids(value: object) -> set[int]:
    items = value if isinstance(value, list) else [] if value is None else [value]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int):
            raise CheckpointError(
                f'eos_token_id must be a number or a list of numbers, got "{value}"',
                "correct config.json and generation_config.json, or download them again",
            )
    return set(items)
