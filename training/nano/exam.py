"""The measure of a nano model: attributes right and Fréchet distance over captions that nothing was trained on."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from ...pixart_core.hed import HED
from ...pixart_core.pipeline import Pipeline
from ...pixart_core.vae import FACTOR
from ..sampling import pictures, sample_latents
from .evaluate import AT_ONCE, BATCH, PROMPTS, SEED, by_size, encoded, resolution_of, score
from .frechet import features, frechet_distance, picture_features, require_samples
from .worlds import WORLDS, World

SEEDS = (0, 1, 2)
SHOWN = 7
"""Pictures in a row of a sheet."""


class Exam:
    """Held-out captions, encoded once, and what the latents of scenes drawn for them look like.

    Args:
        pipeline: its text encoder and autoencoder are used.
        count: captions; a Fréchet distance of 64 features needs more than 64.
        drawings: scenes drawn for each caption.
        captions: a kind of `evaluate.PROMPTS`.
        world: that the pipeline's family lives in.
        network: edge detector whose features the distance is one of; None = of the latents.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        count: int,
        drawings: int = 4,
        captions: str = "held-out",
        world: World = WORLDS[1],
        network: HED | None = None,
    ):
        self.vae, self.world, self.network = pipeline.vae, world, network
        self.prompts = PROMPTS[captions](count, resolution_of(pipeline), world)
        length = pipeline.transformer.config.model_max_length
        texts = [text for _, text, _ in self.prompts]
        parts = [pipeline.text.encode(texts[i : i + BATCH], length) for i in range(0, count, BATCH)]
        self.caption, self.mask = (torch.cat(part) for part in zip(*parts, strict=True))
        rng = random.Random(SEED)
        scenes = [world.draw(scene, size, rng.randrange(2**31)) for scene, _, size in self.prompts * drawings]
        if network is None:
            self.reference = torch.cat([features(encoded(self.vae, picture)) for picture in scenes])
        else:
            self.reference = picture_features(network, scenes)

    def mark(
        self, predictor: Callable[..., Tensor], steps: int, seeds: Sequence[int] = SEEDS, **options
    ) -> dict[str, list[float]]:
        """attributes (percent right), at once (percent of pictures in which all of them and the counts are right) and
        distance, each as mean and half of its 95 % interval over the seeds.

        Args:
            predictor: see `Task.predictor`.
            options: sampler, table, null and guidance of `sample_latents`.
        """
        require_samples(len(self.prompts), self.reference.shape[1])
        marks = [self._mark_once(predictor, steps, seed, **options) for seed in seeds]
        return {name: interval([mark[name] for mark in marks]) for name in marks[0]}

    def _mark_once(self, predictor, steps: int, seed: int, **options) -> dict[str, float]:
        made = self._latents(predictor, steps, seed, **options)
        drawn = pictures(self.vae, made)
        if self.network is None:
            found = torch.cat([features(latent[None]) for latent in made])
        else:
            found = picture_features(self.network, drawn)
        shares = score(drawn, self.prompts, self.world)
        distance = frechet_distance(found, self.reference)
        return {"attributes": shares["all"], AT_ONCE: shares[AT_ONCE], "distance": distance}

    def _latents(self, predictor, steps: int, seed: int, sampler: str = "lcm", null: Tensor | None = None, **options):
        def make(size: tuple[int, int], rows: list[int], start: int) -> Tensor:
            batch = self._batch(size, rows)
            return sample_latents(predictor, batch, sampler, null, seed * 1000 + start, steps=steps, **options)

        return by_size(self.prompts, make)

    def _batch(self, size: tuple[int, int], rows: list[int]) -> dict[str, Tensor]:
        """Empty latents and the captions of some prompts, which are all of one size."""
        latent = torch.empty(len(rows), 4, *(side // FACTOR for side in size))
        return {"latent": latent, "caption": self.caption[rows], "caption_mask": self.mask[rows]}

    @property
    def shown(self) -> list[int]:
        """Numbers of the prompts that `show` draws: the first square ones."""
        return [index for index, (_, _, (height, width)) in enumerate(self.prompts) if height == width][:SHOWN]

    def show(
        self, predictor: Callable[..., Tensor], steps: int, sampler: str = "lcm", null: Tensor | None = None, **options
    ) -> list[Image]:
        """Pictures of the prompts `shown`, which begin with the same noise every time; arguments as of `mark`."""
        batch = self._batch(self.prompts[self.shown[0]][2], self.shown)
        return pictures(self.vae, sample_latents(predictor, batch, sampler, null, steps=steps, **options))


def interval(values: Sequence[float]) -> list[float]:
    """Mean, and half the width of its 95 % interval (Student's t); 0 for a single value, of which nothing is known."""
    if len(values) == 1:
        return [float(values[0]), 0.0]
    from scipy import stats

    return [statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))]
