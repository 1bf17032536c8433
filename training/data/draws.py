"""The random numbers of a training step, as a function of seed, step and the sample's row in the global batch.

A run is therefore the same whatever the number of processes that share its batches, and resuming needs no random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Draws:
    """Noise, timesteps and choices of this process's b samples of one global micro-batch.

    Every sample has its own generator, so that a process draws for its own samples alone. The same calls in the same
    order give the same numbers.

    Args:
        seed: of the run.
        step: optimiser step, from 0.
        micro: which micro-batch of the step.
        total: samples of the global micro-batch, over all processes.
        rows: which of them are this process's: slice(rank, None, world), or their numbers.
        device: that the numbers are handed out on. They are drawn on the CPU, so they are the same everywhere.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        micro: int,
        total: int,
        rows: slice | Sequence[int],
        device: torch.device | str = "cpu",
    ):
        self.device = torch.device(device)
        chosen = range(total)[rows] if isinstance(rows, slice) else rows
        self._generators = [generator_for(seed, step, micro, row) for row in chosen]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """(b, *shape) float32, standard normal."""
        return self._each(lambda generator: torch.randn(*shape, generator=generator))

    def integers(self, high: int) -> Tensor:
        """(b,) int64, 0 … high - 1."""
        return self._each(lambda generator: torch.randint(high, (), generator=generator))

    def uniform(self) -> Tensor:
        """(b,) float32 in [0, 1)."""
        return self._each(lambda generator: torch.rand((), generator=generator))

    def _each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return to_device(torch.stack([draw(generator) for generator in self._generators]), self.device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device; the copy to a GPU is queued and waits for nothing, as only pinned memory's can be."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def generator_for(*key: int) -> torch.Generator:
    """A generator for these numbers; hashed, because neighbouring seeds of its algorithm are related."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
