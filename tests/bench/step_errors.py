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
from quant.kernels.triton.tables import BF16_FACTORS, level_values
from quant.tensor import QuantTensor


@dataclass(frozen=True)
class Rounding:
    """What is rounded; the defaults round nothing.

    Attributes:
        mlp: How 4-bit values of the MLPs and experts are held: "" for the codebook's, "first" and
            "exact" for those of `level_values`, a number for its multiples' inverses.
        attention: As mlp, of QKV and the output projection.
        int8: Products whose activations are int8 by 16: q(kv), o, g(ate and up), d(own), h(ead).
        int16: As int8.
        cache: Keys, values and queries in bfloat16, and each key's share before it is divided.
        embedding: In bfloat16.
        shares: Of the experts, in bfloat16.
        stream: The residual stream in bfloat16.
        factor: What 4-bit values are multiplied with before they are rounded to bfloat16; 0 if
            they are not.
        activations: Of all products in bfloat16.
    """

    mlp: str | float = ""
    attention: str | float = ""
    int8: str = ""
    int16: str = ""
    cache: bool = False
    embedding: bool = False
    shares: bool = False
    stream: bool = False
    factor: float = 0
    activations: bool = False


def to_bf16(x: Tensor, wanted: bool) -> Tensor:
    return x.bfloat16().float() if wanted else x


def coded(x: Tensor, largest_code: int) -> Tensor:
    """Activations as integers with a scale for 16 of them stand for them."""
    grouped = x.unflatten(-1, (-1, 16))
    largest = grouped.abs().amax(-1, keepdim=True)
    codes = (grouped * (largest_code / largest.clamp(min=1e-30)) + 0.5).floor()
    return (codes * (largest / largest_code)).flatten(-2)


def held_values(format_name: str, codebook: Tensor, held: str | float, factor: float) -> Tensor:
    """What stands for the 16 values of a codebook."""
    if isinstance(held, str) and held:
        return level_values(format_name, held == "exact")
    if held:
        return (codebook * held).round() / held
    return (codebook * factor).bfloat16().float() / factor if factor else codebook


def dense(weight: QuantTensor, held: str | float = "", factor: float = 0) -> Tensor:
    found = FORMATS[weight.format]
    if not isinstance(found, Codebook4):
        return found.dequantize(weight, torch.float32)
    codes, absmax = found.to_rows(weight)
    table = held_values(weight.format, found.codebook, held, factor)
    return (table[codes.int()].view(*absmax.shape, -1) * absmax[..., None]).view(weight.shape)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention ``[num_tokens, …]`` with each key's part in bfloat16, as a kernel has it."""
    rep = len(q) // len(k)
    score = q @ k.repeat_interleave(rep, 0).transpose(1, 2) * q.shape[-1] ** -0.5
    score += torch.full(score.shape[1:], -torch.inf).triu(1)
    part = (score - score.amax(-1, keepdim=True)).exp()
    out = part.bfloat16().float() @ v.repeat_interleave(rep, 0) / part.sum(-1, keepdim=True)
    return out.transpose(0, 1).flatten(1)


@dataclass
class Pass:
    """A decoder in float32 with some things rounded."""

    decoder: Decoder
    rounding: Rounding
    routes: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    forced: bool = False

    def __post_init__(self) -> None:
        how, attention = self.rounding, ("qkv", ".o")

        def mlp(weight: QuantTensor) -> Tensor:
            return dense(weight, how.mlp, how.factor)

        self.linears = {
            name: dense(linear.weight, how.attention, how.factor)
            if name.endswith(attention)
            else mlp(linear.weight)
            for name, linear in self.decoder.weights.linears.items()
        }
        self.experts = {
            layer_idx: [(mlp(e.gate_up), mlp(e.down)) for e in layer]
            for layer_idx, layer in self.decoder.experts._experts.items()
        }

    def _into(self, x: Tensor, product: str) -> Tensor:
        if product:
            x = to_bf16(x, self.rounding.activations)
        if product and product in self.rounding.int16:
            return coded(x, 32767)
        return coded(x, 127) if product and product in self.rounding.int8 else x

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
        config = self.decoder.config
        x = to_bf16(dense(self.decoder.weights.embedding)[ids], self.rounding.embedding)
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
        out = (attend if self.rounding.cache else causal_attention)(q, k, v)
        return self._into(out, "o") @ self.linears[at + "o"].T

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
        share = to_bf16(share / share.sum(-1, keepdim=True), self.rounding.shares)
        out = self._gated(y, linears[at + "shared.gate_up"], linears[at + "shared.down"])
        for expert_idx, expert in enumerate(self.experts[layer_idx]):
            rows, places = (chosen == expert_idx).nonzero(as_tuple=True)
            out.index_add_(0, rows, self._gated(y[rows], *expert) * share[rows, places, None])
        return out


ALL = "qogdh"
TILES = Rounding(
    factor=BF16_FACTORS["nf4"], activations=True, cache=True, embedding=True, shares=True
)
STEP = Rounding("first", "exact", int16=ALL, cache=True, shares=True)
CASES = {
    "levels 1/127": Rounding(127.0, 127.0),
    "levels 1/112.05": Rounding(112.05, 112.05),
    "levels of two steps": Rounding("first", "first"),
    "levels of two steps: attention": Rounding(attention="first"),
    "levels of two steps: MLPs": Rounding("first"),
    "levels with rests: attention": Rounding(attention="exact"),
    "int8 activations": Rounding(int8=ALL),
    **{f"int8 activations: {product}": Rounding(int8=product) for product in ALL},
    "int16 activations": Rounding(int16=ALL),
    "bf16 cache": Rounding(cache=True),
    "bf16 embedding": Rounding(embedding=True),
    "bf16 shares": Rounding(shares=True),
    "bf16 residual stream": Rounding(stream=True),
    "all of the step": STEP,
    "the step with int8 activations": replace(STEP, int16="", int8=ALL),
    "the step with two steps throughout": replace(STEP, attention="first"),
    "the step with levels 1/112.05": replace(STEP, mlp=112.05, attention=112.05),
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
        sys.stdout.write(f"{name:<34} KL {1e4 * kl:7.3f}e-4   perplexity {change}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
