"""The formats by name. A new one is a file here and a line in FORMATS."""

from collections.abc import Mapping

from quant.errors import QuantError
from quant.formats.base import Format
from quant.formats.bf16 import BF16
from quant.formats.fp4 import FP4
from quant.formats.int8 import INT8
from quant.formats.nf4 import NF4

FORMATS: Mapping[str, Format] = {f.name: f for f in (BF16, INT8, NF4, FP4)}


def format_named(name: str) -> Format:
    """The format of that name.

    Raises:
        QuantError: If there is none.
    """
    if name not in FORMATS:
        raise QuantError(f'no format "{name}"; there are {", ".join(FORMATS)}')
    return FORMATS[name]
