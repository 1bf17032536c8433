"""Muon: momentum of hidden layers' weights, made orthogonal (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

torch's own takes matrices only, has no rule for the rest, and is not in every torch that this project runs with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose iteration brings all singular values near 1."""
_ITERATIONS = 5
_AT_ONCE = 16
"""Matrices of one shape that are made orthogonal together: few launches on a GPU, and little memory."""
_MATCHED = 0.2
"""Root mean square of AdamW's steps, as a share of its rate (Liu et al., 2025, section 2.2)."""


class Muon(torch.optim.Optimizer):
    """Muon for the groups that are hidden, AdamW for the others, in one optimizer.

    Args:
        groups: each with `params`, `lr` and `is_hidden`, maybe `weight_decay`, and `parts`: so many matrices lie in
            each weight, one below the other, as those of queries, keys and values do.
        betas, epsilon: AdamW's.
        matched: whether steps are as large as AdamW's, so that its rates and decay carry over; else a rate is about
            the size of a step of each singular value.
        dtype: of the products that make a step orthogonal.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        betas: tuple[float, float] = (0.9, 0.99),
        epsilon: float = 1e-8,
        momentum: float = 0.95,
        matched: bool = False,
        dtype: torch.dtype = torch.float32,
    ):
        self._betas, self._epsilon, self._momentum = betas, epsilon, momentum
        self._matched, self._dtype = matched, dtype
        super().__init__(groups, {"weight_decay": 0.0, "parts": 1})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # of an earlier version
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every parameter by its gradient."""
        assert closure is None, "gradients are there already"
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            moves = self._orthogonal(trained, group["parts"]) if group["is_hidden"] else map(self._adam, trained)
            for parameter, move in zip(trained, moves, strict=True):
                if group["weight_decay"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(move, alpha=group["lr"])

    def _orthogonal(self, parameters: list[Tensor], parts: int) -> Iterator[Tensor]:
        """Each parameter's step of rate 1."""
        found: dict[int, list[Tensor]] = {}
        alike: dict[torch.Size, list[tuple[int, int, Tensor]]] = defaultdict(list)
        for index, parameter in enumerate(parameters):
            matrices = list(self._ahead(parameter).flatten(1).chunk(parts))
            found[index] = matrices
            alike[matrices[0].shape].extend((index, part, matrix) for part, matrix in enumerate(matrices))
        for shape, items in alike.items():
            scale = _MATCHED * max(shape) ** 0.5 if self._matched else max(1.0, shape[0] / shape[1]) ** 0.5
            for start in range(0, len(items), _AT_ONCE):
                chunk = items[start : start + _AT_ONCE]
                made = orthogonal(torch.stack([matrix for _, _, matrix in chunk]), self._dtype)
                for (index, part, matrix), step in zip(chunk, made, strict=True):
                    found[index][part] = step.to(matrix.dtype) * scale
        for index, parameter in enumerate(parameters):
            yield torch.cat(found[index]).view(parameter.shape)

    def _ahead(self, parameter: Tensor) -> Tensor:
        """Nesterov's look ahead: the gradient and its running mean."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        mean = state.setdefault("mean", torch.zeros_like(gradient)).lerp_(gradient, 1 - self._momentum)
        return gradient.lerp(mean, self._momentum)

    def _adam(self, parameter: Tensor) -> Tensor:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        state["step"] = state.get("step", 0) + 1
        mean = state.setdefault("mean", torch.zeros_like(gradient)).lerp_(gradient, 1 - self._betas[0])
        square = state.setdefault("square", torch.zeros_like(gradient)).lerp_(gradient.square(), 1 - self._betas[1])
        mean_bias, square_bias = (1 - beta ** state["step"] for beta in self._betas)
        return (mean / mean_bias) / ((square / square_bias).sqrt() + self._epsilon)


def orthogonal(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Matrices (…, N, M) with their singular values brought near 1 (0.7 to 1.2), computed in `dtype`."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-20)).to(dtype)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
