"""What a format costs: perplexity, and against bf16 the KL divergence and top-1 agreement."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erniechat.engine import Engine
from erniechat.errors import UsageError
from erniechat.loader import load_engine
from erniechat.options import BenchOptions, LoadOptions

REFERENCE = "bf16"
FORMATS = ("int8", "nf4")


@dataclass(slots=True)
class _Sums:
    """Totals over all scored tokens."""

    nll: float = 0.0
    kl: float = 0.0
    agreeing: int = 0
    tokens: int = 0


def measure_quality(
    load: LoadOptions, bench: BenchOptions, report: Callable[[str], None]
) -> dict[str, Any]:
    """Score a text under bf16 and under each format, or under the one that ``--quant`` names.

    The text is cut into windows of ``bench.prompt_tokens`` tokens, each read on its own behind the
    checkpoint's beginning-of-text token. KL is that of bf16 from the format, in nats a token.

    Raises:
        UsageError: If the file cannot be read as UTF-8 text or is too short.
    """
    text = _read(Path(bench.quality or ""))
    names = FORMATS if load.quant in ("auto", REFERENCE) else (load.quant,)
    engines = {}
    for name in (REFERENCE, *names):
        report(f"loading {name}")
        engines[name] = load_engine(dataclasses.replace(load, quant=name))
    reference = engines[REFERENCE]
    windows = _windows(reference, text, bench.prompt_tokens)
    sums = {name: _Sums() for name in engines}
    for done, window in enumerate(windows):
        report(f"window {done + 1} of {len(windows)}")
        expected = _log_probabilities(reference, window)
        for name, engine in engines.items():
            actual = expected if engine is reference else _log_probabilities(engine, window)
            _add(sums[name], expected, actual, torch.tensor(window[1:]))
    return {
        "model": load.model,
        "quality": str(bench.quality),
        "window": bench.prompt_tokens,
        "tokens": sums[REFERENCE].tokens,
        "formats": {
            name: {
                "weights": engines[name].memory().weights_nbytes,
                "perplexity": math.exp(total.nll / total.tokens),
            }
            | (
                {"kl": total.kl / total.tokens, "top1": total.agreeing / total.tokens}
                if name != REFERENCE
                else {}
            )
            for name, total in sums.items()
        },
    }


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else f"byte {exc.start} is none"
        raise UsageError(f'--quality must name a UTF-8 text file, got "{path}" ({reason})') from exc


def _windows(engine: Engine, text: str, length: int) -> list[list[int]]:
    ids = engine.prompts.tokenizer.encode(text)
    begin = engine.prompts.tokenizer.token_id("<s>")
    first = [] if begin is None else [begin]
    windows = [[*first, *ids[at : at + length]] for at in range(0, len(ids), length)]
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        raise UsageError("--quality must name a file with at least two tokens of text")
    return windows


def _log_probabilities(engine: Engine, window: list[int]) -> Tensor:
    """float32 ``[len(window) - 1, num_tokens]``; padding rows of the vocabulary are left out."""
    kv_cache = engine.decoder.new_kv_cache(len(window))
    logits = engine.decoder.forward(window[:-1], kv_cache, all_logits=True)
    return logits[:, : engine.prompts.tokenizer.num_tokens].log_softmax(-1).cpu()


def _add(sums: _Sums, expected: Tensor, actual: Tensor, targets: Tensor) -> None:
    sums.nll -= float(actual.gather(-1, targets[:, None]).sum(dtype=torch.float64))
    sums.kl += float((expected.exp() * (expected - actual)).sum(dtype=torch.float64))
    sums.agreeing += int((expected.argmax(-1) == actual.argmax(-1)).sum())
    sums.tokens += len(targets)
