"""Muon: momentum of convolutions' weights, made orthogonal (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

torch's own takes matrices only, and is not in every torch that this project runs with.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose iteration brings all singular values near 1."""
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon for the convolutions between hidden channels, Adam for the others and for biases, in one optimizer.

    Args:
        net: of convolutions.
        learning_rate: of Adam.
        hidden_rate: of Muon: about the size of a step of each singular value.
        outer: convolutions whose one side is not hidden channels, such as the first and the last.
    """

    def __init__(
        self,
        net: nn.Module,
        learning_rate: float,
        hidden_rate: float,
        outer: Iterable[nn.Module],
        momentum: float = 0.95,
    ):
        excluded = set(outer)
        hidden = [each.weight for each in net.modules() if isinstance(each, nn.Conv2d) and each not in excluded]
        moved = set(map(id, hidden))
        others = [each for each in net.parameters() if id(each) not in moved]
        self._momentum = momentum
        super().__init__(
            [
                {"params": hidden, "lr": hidden_rate, "is_hidden": True},
                {"params": others, "lr": learning_rate, "is_hidden": False},
            ],
            {},
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every parameter by its gradient."""
        assert closure is None, "gradients are there already"
        for group in self.param_groups:
            move = self._orthogonal if group["is_hidden"] else self._adam
            for parameter in group["params"]:
                parameter.sub_(move(parameter.grad, self.state[parameter]), alpha=group["lr"])

    def _orthogonal(self, gradient: Tensor, state: dict) -> Tensor:
        mean = state.setdefault("mean", torch.zeros_like(gradient)).lerp_(gradient, 1 - self._momentum)
        ahead = gradient.lerp(mean, self._momentum)
        return orthogonal(ahead.flatten(1)).view_as(ahead)

    @staticmethod
    def _adam(gradient: Tensor, state: dict, betas: tuple[float, float] = (0.9, 0.99)) -> Tensor:
        state["step"] = state.get("step", 0) + 1
        mean = state.setdefault("mean", torch.zeros_like(gradient)).lerp_(gradient, 1 - betas[0])
        square = state.setdefault("square", torch.zeros_like(gradient)).lerp_(gradient.square(), 1 - betas[1])
        mean_bias, square_bias = (1 - beta ** state["step"] for beta in betas)
        return (mean / mean_bias) / ((square / square_bias).sqrt() + 1e-8)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix (N, M) with its singular values brought near 1 (0.7 to 1.2), scaled by √(N / M) where N > M."""
    a, b, c = _COEFFICIENTS
    tall = len(matrix) > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x) * max(1, len(matrix) / matrix.shape[1]) ** 0.5
