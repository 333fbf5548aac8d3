"""What the launches of a decoded token are told beside their arguments. Imports Triton."""

from typing import Any

import torch
import triton

from quant.kernels.triton.step_weights import Tuning, attention_stages
from quant.kernels.triton.tables import BITS

INTERPRETED = bool(triton.knobs.runtime.interpret)


class LaunchOptions:
    """Options of launches on a device.

    Args:
        tuning: How kernels are cut.
        device: Where.
        asks: Whether launches go to two streams, since the CPU runs experts beside them.

    Attributes:
        every: Of every launch.
    """

    def __init__(self, tuning: Tuning, device: torch.device, asks: bool) -> None:
        self._tuning = tuning
        self._shared_nbytes = 0
        pdl = False
        if device.type == "cuda":
            found = torch.cuda.get_device_properties(device)
            self._shared_nbytes = found.shared_memory_per_block_optin  # type: ignore[attr-defined]
            pdl = tuning.pdl and not asks and not INTERPRETED and found.major >= 9
        self.every: dict[str, Any] = {"PDL": pdl, **({"launch_pdl": True} if pdl else {})}

    def attention_stages(self, head_dim: int) -> int:
        """Tiles that attention has on the way."""
        tuning = self._tuning
        if tuning.attention_stages is not None:
            return tuning.attention_stages
        return attention_stages(
            self._shared_nbytes, tuning.attention_tile, head_dim, pdl=self.every["PDL"]
        )

    def product(self, format_name: str, warps: int) -> dict[str, Any]:
        """Of a product with weights of a format; warps are for 4 bits."""
        bits = BITS[format_name]
        warps = warps if bits == 4 else self._tuning.row_warps
        return {
            "BITS": bits,
            "WARPS": warps,
            "PTX": not INTERPRETED,
            "num_warps": warps,
            **self.every,
        }
