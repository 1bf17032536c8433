"""A step's numbers on their way to the host, and what the processes wish for on the same way."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from .engine import StepResult
from .run_dir import REQUESTS


class Outcome:
    """What a step gave, the same on all processes. Making one waits for nothing; reading `loss`, `norm` or `wishes`
    waits for the step.

    Args:
        wishes: what this process was asked for (see `run_dir.REQUESTS`); `wishes` are those of all.
    """

    def __init__(self, result: StepResult, wishes: list[str], accelerator: Accelerator):
        self.result, self._own_wishes, self._processes = result, wishes, accelerator.num_processes
        numbers = torch.stack([result.loss, result.gradient_norm]).float()
        if self._processes > 1:
            asked = torch.tensor([float(name in wishes) for name in REQUESTS]).to(numbers.device, non_blocking=True)
            numbers = torch.cat([numbers / self._processes, asked])
            torch.distributed.all_reduce(numbers)
        # Only CUDA has the event below; from other devices a copy that nobody waits for could be read half done.
        self._numbers = numbers.to("cpu", non_blocking=numbers.is_cuda)
        self._arrived = torch.cuda.Event() if numbers.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def _get(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()

    @property
    def loss(self) -> float:
        return self._get()[0]

    @property
    def norm(self) -> float:
        return self._get()[1]

    @property
    def wishes(self) -> set[str]:
        if self._processes == 1:
            return set(self._own_wishes)
        return {name for name, asked in zip(REQUESTS, self._get()[2:], strict=True) if asked}
