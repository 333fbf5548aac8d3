"""One training step: loss, optimizers, and the balance of the experts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from erniechat.mini.layers import causal_in_documents
from erniechat.mini.model import Model
from erniechat.mini.optimizer import Muon

ATTENTION_TOLERANCE = 0.02  # relative, bfloat16 on the GPU against float32 on the CPU
MIN_BIAS_FACTOR = 0.05  # the bias goes on moving while the learning rate ends
# Learning rates of the parameters that are not Muon's, relative to AdamW's.
EMBED_SCALE, NORM_SCALE, ROUTER_SCALE = 1.0, 0.5, 0.3


def reply_loss(hidden_states: Tensor, embed: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the tokens that have a target.

    Args:
        hidden_states: ``[num_tokens, hidden_size]``.
        embed: The tied head, ``[vocab_size, hidden_size]``.
        targets: ``[num_tokens]``; 0 carries no loss.
    """
    total = hidden_states.new_zeros((), dtype=torch.float32)
    for x, target in zip(hidden_states.chunk(4), targets.chunk(4), strict=True):
        logits = F.linear(x, embed.to(x.dtype)).float()
        total = total + F.cross_entropy(logits, target, ignore_index=0, reduction="sum")
    return total / (targets > 0).sum().clamp(min=1)


def check_attention(device: torch.device) -> list[float]:
    """Compare the GPU's packed attention with the plain one, forward and backward.

    Returns:
        Relative errors of the result and of the gradients of q, k and v.

    Raises:
        RuntimeError: If one is above two percent.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(300, heads, 64, generator=generator) for heads in (4, 2, 2)]
    starts = torch.tensor([0, 5, 130, 300, 300, 300], dtype=torch.int32)
    results = []
    for place, dtype in ((torch.device("cpu"), torch.float32), (device, torch.bfloat16)):
        q, k, v = (t.clone().to(place, dtype).requires_grad_() for t in inputs)
        y = causal_in_documents(q, k, v, starts.to(place), 300)
        (y.float() ** 2).sum().backward()  # type: ignore[no-untyped-call]  # torch's own
        gradients = [t.grad for t in (q, k, v) if t.grad is not None]
        results.append([t.float().cpu() for t in (y.detach(), *gradients)])
    errors = [float((a - b).norm() / a.norm()) for a, b in zip(*results, strict=True)]
    if max(errors) >= ATTENTION_TOLERANCE:
        raise RuntimeError(
            f"packed attention on {device} is off by {max(errors):.3f}, allowed is "
            f"{ATTENTION_TOLERANCE}; this torch build cannot train here"
        )
    return errors


class Trainer:
    """The model with its optimizers and the running sum of the loss."""

    def __init__(
        self,
        model: Model,
        *,
        learning_rate: float,
        adam_learning_rate: float,
        bias_step: float,
    ) -> None:
        self.model = model
        self.device = model.embed.device
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.learning_rate, self.bias_step = learning_rate, bias_step
        self.adam_learning_rate = adam_learning_rate
        self.loss = reply_loss
        self.loss_sum = torch.zeros((), device=self.device)
        self.num_summed = 0
        self.last_loads = torch.zeros(())
        self.muon = Muon(
            parameter
            for name, parameter in model.named_parameters()
            if parameter.ndim > 1 and name != "embed" and not name.endswith("mlp.gate")
        )
        routers = [moe.gate for moe in model.moe_layers]
        norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
        self.adam = torch.optim.AdamW(
            [
                {"params": [model.embed], "scale": EMBED_SCALE},
                {"params": norms, "scale": NORM_SCALE},
                {"params": routers, "scale": ROUTER_SCALE},
            ],
            lr=adam_learning_rate,
            betas=(0.9, 0.97),
            eps=1e-10,
            weight_decay=0.0,
            fused=self.device.type == "cuda",
        )

    def compile(self) -> None:
        """Compile the blocks (once the dense one, once for all MoE blocks) and the loss."""
        torch._dynamo.config.recompile_limit = 32
        for block in self.model.blocks:
            block.compile(dynamic=False)
        self.loss = torch.compile(reply_loss, dynamic=False)

    def step(
        self, ids: Tensor, targets: Tensor, starts: Tensor, longest: int, *, factor: float
    ) -> None:
        """Train on one batch; the factor scales the learning rates."""
        hidden_states, loads = self.model.packed(ids, starts, longest, self.dtype)
        loss = self.loss(hidden_states, self.model.embed, targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        self.muon.step(self.learning_rate * factor)
        for group in self.adam.param_groups:
            group["lr"] = self.adam_learning_rate * factor * group["scale"]
        self.adam.step()
        for parameter in self.model.parameters():
            parameter.grad = None
        self._balance(loads.float(), factor)
        self.loss_sum += loss.detach()
        self.num_summed += 1

    @torch.no_grad()
    def _balance(self, loads: Tensor, factor: float) -> None:
        """Move the correction bias: busy experts down, idle experts up."""
        self.last_loads = loads
        directions = torch.sign(loads.mean(1, keepdim=True) - loads)
        moves = directions * self.bias_step * max(factor, MIN_BIAS_FACTOR)
        for moe, move in zip(self.model.moe_layers, moves, strict=True):
            moe.bias += move

    def mean_loss(self, *, reset: bool) -> float:
        """Mean loss of the steps since the last reset."""
        mean = float(self.loss_sum) / max(self.num_summed, 1)
        if reset:
            self.loss_sum.zero_()
            self.num_summed = 0
        return mean

    def busiest_expert(self) -> float:
        """The largest load of an expert in the last step, relative to an even load."""
        return float((self.last_loads.max(1).values / self.last_loads.mean(1)).max())
