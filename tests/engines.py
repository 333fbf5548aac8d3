"""Engines for tests: the built-in model, loaded in a format."""

from erniechat.engine import Engine
from erniechat.loader import load_engine
from erniechat.options import LoadOptions


def load_mini(quant: str = "bf16", dtype: str = "bfloat16", **options: object) -> Engine:
    """The built-in model; where its copy is kept is the caller's business."""
    return load_engine(LoadOptions(quant=quant, dtype=dtype, **options))  # type: ignore[arg-type]
