"""The optimizer of the demo model: Muon on the matrices of the layers, AdamW on everything else.

Owns the update rule and the learning-rate schedule. Knows nothing about data or tasks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP_STEPS = 100


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push all singular values of a stack of matrices towards 1 by a Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal: every direction of a matrix learns at the same pace.

    Matrices of one shape are stacked, so a step is a handful of batched products.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: losses come from outside
        """Update all matrices that have a gradient once."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                self._step_shape(group, shape, parameters)

    def _step_shape(self, group: dict[str, Any], shape: torch.Size, parameters: list[Tensor]) -> None:
        updates = []
        for parameter in parameters:
            assert parameter.grad is not None
            velocity = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter))
            velocity.lerp_(parameter.grad, 1 - group["momentum"])
            updates.append(parameter.grad.lerp(velocity, group["momentum"]))
        scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
        for parameter, update in zip(parameters, orthogonal(torch.stack(updates)), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-scale)


def optimizers(model: nn.Module, decay: float = 0.1) -> list[torch.optim.Optimizer]:
    """Return Muon 0.02 for the matrices inside layers, and AdamW 3e-3 for the embedding and the norms (norms do not
    decay)."""
    matrices: list[Tensor] = []
    embedding: list[Tensor] = []
    norms: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (norms if parameter.ndim < 2 else matrices if ".layers." in name else embedding).append(parameter)
    groups = [{"params": embedding, "weight_decay": decay}, {"params": norms, "weight_decay": 0.0}]
    made = [Muon(matrices, lr=0.02, weight_decay=decay), torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))]
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made


def set_rate(made: list[torch.optim.Optimizer], step: int, done: float, scale: float = 1.0) -> None:
    """Set the learning rate: a linear warm-up by steps, then a cosine down to 2 % over the share of tokens done. The
    clock plays no part."""
    factor = scale * min(1.0, (step + 1) / WARM_UP_STEPS) * (0.02 + 0.98 * (1 + math.cos(math.pi * min(done, 1))) / 2)
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
