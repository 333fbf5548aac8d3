"""Muon: momentum, then an orthogonal update, for the matrices of the model."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic iteration


@torch.no_grad()
def orthogonalize(gradient: Tensor, num_steps: int = 5) -> Tensor:
    """The orthogonal factor of each matrix of a batch ``[batch, rows, columns]``.

    Newton-Schulz iteration, in bfloat16 on a GPU. Source: Jordan et al., "Muon: an optimizer for
    hidden layers in neural networks", 2024.
    """
    x: Tensor = gradient.bfloat16() if gradient.is_cuda else gradient.float()
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    norm: Tensor = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    x = x / (norm + 1e-7)
    first, third, fifth = NEWTON_SCHULZ
    for _ in range(num_steps):
        gram = x @ x.transpose(1, 2)
        x = first * x + (third * gram + fifth * (gram @ gram)) @ x
    return x.transpose(1, 2) if tall else x


class Muon:
    """The optimizer; matrices of one shape are handled as one batch."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], momentum: float = 0.95, decay: float = 0.02
    ) -> None:
        self.momentum, self.decay = momentum, decay
        self.groups: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            self.groups.setdefault(parameter.shape[-2:], []).append(parameter)
        self.state = {
            shape: torch.zeros(
                sum(parameter.numel() // shape.numel() for parameter in group),
                *shape,
                device=group[0].device,
            )
            for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update the parameters from their gradients.

        Raises:
            ValueError: If a parameter has no gradient.
        """
        for shape, group in self.groups.items():
            gradients = [p.grad.view(-1, *shape) for p in group if p.grad is not None]
            if len(gradients) != len(group):
                raise ValueError(
                    f"{len(group) - len(gradients)} matrices of shape {tuple(shape)} have no "
                    "gradient; call backward() before step()"
                )
            gradient = torch.cat(gradients)
            average = self.state[shape].lerp_(gradient, 1 - self.momentum)
            update = orthogonalize(gradient.lerp_(average, self.momentum))
            update = update * max(1, shape[0] / shape[1]) ** 0.5
            sizes = [parameter.numel() // shape.numel() for parameter in group]
            updates = [
                part.view_as(parameter).to(parameter.dtype)
                for part, parameter in zip(update.split(sizes), group, strict=True)
            ]
            tensors: list[Tensor] = [*group]
            torch._foreach_mul_(tensors, 1 - learning_rate * self.decay)
            torch._foreach_add_(tensors, updates, alpha=-learning_rate)
