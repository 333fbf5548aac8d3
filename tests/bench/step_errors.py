"""What each rounding on a GPU costs on the built-in model, one at a time, in torch.

    python -m tests.bench.step_errors [--quant nf4] [--lines 160] [--no-forced]

The first pass is exact (float32); the others repeat its choice of experts unless told otherwise,
since a near-tie that falls otherwise costs more than all else. Perplexity is against the exact
pass, with the standard error of the difference.
"""

import argparse
import math
import sys
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from erniechat.loader import load_engine
from erniechat.mini.scoring import heldout_documents
from erniechat.model.decoder import Decoder
from erniechat.model.layers import causal_attention, rotary_angles, rotate
from erniechat.options import LoadOptions
from quant.formats import FORMATS
from quant.formats.codebook import Codebook4
from quant.kernels.triton.tables import BF16_FACTORS, LEVELS_PER_UNIT
from quant.tensor import QuantTensor


@dataclass(frozen=True)
class Rounding:
    """What is rounded; the defaults round nothing.

    Attributes:
        levels: Levels per unit of 4-bit codes; 0 for the codebook.
        int8: Products whose activations are int8 by 16: q(kv), o, g(ate and up), d(own), h(ead).
        cache: Keys, values and queries in bfloat16.
        ends: The embedding and the experts' shares in bfloat16.
        stream: The residual stream in bfloat16.
        factor: What 4-bit values are multiplied with before they are rounded to bfloat16; 0 if
            they are not.
        activations: Of all products in bfloat16.
    """

    levels: float = 0
    int8: str = ""
    cache: bool = False
    ends: bool = False
    stream: bool = False
    factor: float = 0
    activations: bool = False


def to_bf16(x: Tensor, wanted: bool) -> Tensor:
    return x.bfloat16().float() if wanted else x


def to_int8(x: Tensor) -> Tensor:
    grouped = x.unflatten(-1, (-1, 16))
    largest = grouped.abs().amax(-1, keepdim=True)
    codes = (grouped * (127 / largest.clamp(min=1e-30)) + 0.5).floor()
    return (codes * (largest / 127)).flatten(-2)


def dense(weight: QuantTensor, rounding: Rounding) -> Tensor:
    found, levels, factor = FORMATS[weight.format], rounding.levels, rounding.factor
    if not (levels or factor) or not isinstance(found, Codebook4):
        return found.dequantize(weight, torch.float32)
    codes, absmax = found.to_rows(weight)
    if levels:
        table = (found.codebook * levels).round() / levels
    else:
        table = (found.codebook * factor).bfloat16().float() / factor
    return (table[codes.int()].view(*absmax.shape, -1) * absmax[..., None]).view(weight.shape)


@dataclass
class Pass:
    """A decoder in float32 with some things rounded."""

    decoder: Decoder
    rounding: Rounding
    routes: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    forced: bool = False

    def __post_init__(self) -> None:
        weights, how = self.decoder.weights, self.rounding
        self.linears = {k: dense(v.weight, how) for k, v in weights.linears.items()}
        self.experts = {
            layer_idx: [(dense(e.gate_up, how), dense(e.down, how)) for e in layer]
            for layer_idx, layer in self.decoder.experts._experts.items()
        }

    def _into(self, x: Tensor, product: str) -> Tensor:
        if product:
            x = to_bf16(x, self.rounding.activations)
        return to_int8(x) if product and product in self.rounding.int8 else x

    def _norm(self, x: Tensor, name: str, product: str) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.decoder.config.rms_norm_eps)
        weight = self.decoder.weights.tensors[name].float()
        if self.rounding.activations:  # prompts are normed first
            return self._into(x * weight * scale, product)
        return self._into(x * weight, product) * scale

    def _gated(self, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        gate, up = (x @ gate_up.T).chunk(2, -1)
        return self._into(F.silu(gate) * up, "d") @ down.T

    @torch.inference_mode()
    def logits(self, ids: list[int], document: int) -> Tensor:
        """float32 ``[num_tokens, vocab_size]``."""
        config, ends = self.decoder.config, self.rounding.ends
        x = to_bf16(dense(self.decoder.weights.embedding, Rounding())[ids], ends)
        angles = rotary_angles(torch.arange(len(ids)), config.head_dim, config.rope_theta)
        for layer_idx in range(config.num_hidden_layers):
            x = to_bf16(x + self._attention(x, layer_idx, angles), self.rounding.stream)
            x = to_bf16(x + self._mlp(x, layer_idx, document), self.rounding.stream)
        return self._norm(x, "norm", "h") @ self.linears["lm_head"].T

    def _attention(self, x: Tensor, layer_idx: int, angles: tuple[Tensor, Tensor]) -> Tensor:
        config, at = self.decoder.config, f"layers.{layer_idx}."
        heads = self._norm(x, at + "input_norm", "q") @ self.linears[at + "qkv"].T
        heads = heads.view(len(x), -1, config.head_dim).transpose(0, 1)
        num, first_v = config.num_attention_heads, -config.num_key_value_heads
        turned = rotate(heads[:first_v], *angles)
        q, k, v = (
            to_bf16(part, self.rounding.cache)
            for part in (turned[:num], turned[num:], heads[first_v:])
        )
        return self._into(causal_attention(q, k, v), "o") @ self.linears[at + "o"].T

    def _mlp(self, x: Tensor, layer_idx: int, document: int) -> Tensor:
        config, at = self.decoder.config, f"layers.{layer_idx}."
        tensors, linears = self.decoder.weights.tensors, self.linears
        y = self._norm(x, at + "post_attention_norm", "g")
        if layer_idx not in config.moe_layers:
            return self._gated(y, linears[at + "mlp.gate_up"], linears[at + "mlp.down"])
        exact = self._norm(x, at + "post_attention_norm", "")
        p = F.linear(exact, tensors[at + "router"]).softmax(-1)
        biased = p + tensors[at + "correction_bias"]
        chosen = biased.topk(config.num_experts_per_tok, -1).indices
        if self.forced:
            chosen = self.routes[document, layer_idx]
        self.routes.setdefault((document, layer_idx), chosen)
        share = p.gather(-1, chosen)
        share = to_bf16(share / share.sum(-1, keepdim=True), self.rounding.ends)
        out = self._gated(y, linears[at + "shared.gate_up"], linears[at + "shared.down"])
        for expert_idx, expert in enumerate(self.experts[layer_idx]):
            rows, places = (chosen == expert_idx).nonzero(as_tuple=True)
            out.index_add_(0, rows, self._gated(y[rows], *expert) * share[rows, places, None])
        return out


TILES = Rounding(factor=BF16_FACTORS["nf4"], activations=True, cache=True, ends=True)
STEP = Rounding(LEVELS_PER_UNIT, "qogdh", cache=True, ends=True)
CASES = {
    "levels 1/127": Rounding(127.0),
    f"levels 1/{LEVELS_PER_UNIT}": Rounding(LEVELS_PER_UNIT),
    "int8 activations": Rounding(int8="qogdh"),
    **{f"int8 activations: {product}": Rounding(int8=product) for product in "qogdh"},
    "bf16 cache": Rounding(cache=True),
    "bf16 embedding and shares": Rounding(ends=True),
    "bf16 residual stream": Rounding(stream=True),
    "all of the step": STEP,
    "the step with levels 1/127": replace(STEP, levels=127.0),
    "bf16 values": Rounding(factor=1.0),
    f"bf16 values by {BF16_FACTORS['nf4']}": Rounding(factor=BF16_FACTORS["nf4"]),
    "all of a prompt's kernels": TILES,
    "a prompt's kernels by 1": replace(TILES, factor=1.0),
}


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quant", default="nf4")
    parser.add_argument("--lines", type=int, default=160)
    parser.add_argument("--forced", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    engine = load_engine(
        LoadOptions(
            quant=args.quant, kernels="reference", device="cpu", dtype="float32", copy=False
        )
    )
    tokenizer = engine.prompts.tokenizer
    documents = [tokenizer.encode(text) for text in heldout_documents(num_lines=args.lines)]

    def run(which: Pass) -> tuple[Tensor, Tensor]:
        """Log-probabilities of all tokens, and the loss at each place."""
        logits = torch.cat([which.logits(ids[:-1], i) for i, ids in enumerate(documents)])
        found = logits[:, : tokenizer.num_tokens].double().log_softmax(-1)
        target = torch.tensor([token_id for ids in documents for token_id in ids[1:]])
        return found, -found.gather(1, target[:, None])[:, 0]

    exact = Pass(engine.decoder, Rounding())
    base, base_loss = run(exact)
    sys.stdout.write(f"{len(base_loss)} tokens, perplexity {float(base_loss.mean().exp()):.3f}\n")
    for name, rounding in CASES.items():
        found, loss = run(Pass(engine.decoder, rounding, dict(exact.routes), args.forced))
        kl = float((base.exp() * (base - found)).sum(-1).mean())
        lost = loss - base_loss
        error = float(lost.std()) / math.sqrt(len(lost))
        share = math.expm1(float(lost.mean()))
        change = f"{100 * share:+.3f} % ± {100 * error:.3f}"
        sys.stdout.write(f"{name:<32} KL {1e4 * kl:7.3f}e-4   perplexity {change}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
