"""The loss on pictures that are held out, by bands of timesteps: the same pictures, noise and timesteps every time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import FeatureDataset
from ..data.draws import Draws, to_device
from ..data.samples import to_float32
from ..task import Task

BANDS = 4
"""The first is the least noisy quarter of the timesteps, where details are decided, the last the noisiest."""
NAMES = ("validation", *(f"validation_{band + 1}" for band in range(BANDS)))
"""Of what `Validation.losses` gives: the mean of the bands, and each."""
_MOST = 64
"""Pictures that are looked at, at most: more tell little more."""
_SEED = 0x5EED
"""Of the noise; not that of the run's steps, so that nothing is seen in training."""


class BandDraws(Draws):
    """Draws whose whole numbers all lie in one band of their range, and that drop no caption.

    Args:
        band: 0 … BANDS - 1.
        samples: numbers of the pictures: each has its own noise, whatever it stands beside.
    """

    def __init__(self, band: int, samples: Sequence[int], device: torch.device):
        super().__init__(_SEED, band, 0, max(samples) + 1, samples, device)
        self.band = band

    def integers(self, high: int) -> Tensor:
        low, end = high * self.band // BANDS, high * (self.band + 1) // BANDS
        return super().integers(end - low) + low

    def uniform(self) -> Tensor:
        return torch.ones_like(super().uniform())  # none is below the share of captions to drop


class Validation:
    """Held-out pictures, read once.

    Args:
        batches: of the pictures, see `FeatureDataset.some`.
    """

    def __init__(self, batches: Sequence[tuple[list[int], dict[str, Tensor]]]):
        self._batches = batches
        self.pictures = sum(len(numbers) for numbers, _ in batches)

    @torch.no_grad()
    def losses(self, task: Task, model: torch.nn.Module) -> dict[str, float]:
        """Value of each of NAMES: means over the pictures."""
        sums = [0.0] * BANDS
        for numbers, batch in self._batches:
            moved = {name: to_float32(to_device(value, task.device)) for name, value in batch.items()}
            for band in range(BANDS):
                with task.autocast():
                    loss = task.loss(model, moved, BandDraws(band, numbers, task.device))
                sums[band] += loss.item() * len(numbers)
        bands = [total / self.pictures for total in sums]
        return dict(zip(NAMES, [sum(bands) / BANDS, *bands], strict=True))


def held_out(task: Task, data: FeatureDataset, share: float, other: str, batch_size: int) -> Validation | None:
    """The pictures that are held out; None if nothing is.

    Args:
        share: of `data`, which from then on is without it.
        other: folder or URL of other features, of which all are held out; empty = there are none.
        batch_size: most pictures of a forward pass.

    Raises:
        DataError, ConfigError: if the other features do not fit, or nothing would be left to train on.
    """
    if other:
        source = FeatureDataset(other)
        task.check_data(source)
        numbers = list(range(len(source)))
    elif share:
        source, numbers = data, data.hold_out(share)
    else:
        return None
    step = max(1, len(numbers) // _MOST)
    return Validation(source.some(numbers[::step][:_MOST], batch_size, task.needs_hint))
