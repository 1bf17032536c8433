"""Latents that a base model draws itself, to make it fast with: a dataset for prompts alone.

A distillation teaches a student what its teacher makes of noisy latents; the teacher's own pictures do for that, and no
others are needed. They are drawn as the base is used, by DPM-Solver++ with guidance, and stored as the transformer sees
them, so that no autoencoder has a part in it. The noise of each is a function of the seed and of its number: what it is
made together with does not matter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...pixart_core.checkpoint import load_pixart
from ...pixart_core.delta import apply_lora
from ...pixart_core.functional import sampling_dtype
from ...pixart_core.lora import load_lora
from ...pixart_core.sampling import dpm_timesteps, guided, plan_steps, sample
from ...pixart_core.steps import Steps
from ...pixart_core.vae import FACTOR
from ..config import PrepareConfig
from ..data.contents import identify
from ..data.draws import generator_for
from ..data.samples import collate
from ..task import DTYPES
from .inputs import Inputs, digest, with_trigger
from .prompted import shapes_of
from .sources import Source
from .survey import Finding

SCALING_FACTOR = 1.0
"""Drawn latents are stored scaled."""
CHANNELS = 4
"""They are latents, not moments."""


def plan_drawing(sources: Sequence[Source], config: PrepareConfig) -> list[Finding]:
    """What a look at pictures would have found: their sizes, and what names each."""
    ratios = {shape.bucket: shape.ratio for shape in shapes_of(config)}
    findings = []
    for source in sources:
        assert source.size is not None and source.listed is not None
        captions = with_trigger(source.listed, config.trigger)
        content = digest(json.dumps([source.name, captions, source.size]).encode())
        lengths = tuple(map(len, captions))
        findings.append(Finding("", "", *source.size, ratios[source.size], source.size, content, content, lengths))
    return findings


def drawing_identity(config: PrepareConfig) -> list[Any]:
    """Names all that decides what is drawn, prompts and sizes aside."""
    files = [identify("base", config.base), identify("base", config.lora), config.lora_strength * bool(config.lora)]
    return [*files, config.guidance, config.draw_steps, config.seed, config.precision]


class Painter:
    """The base model, with its LoRA.

    Raises:
        CheckpointError: as `prompted.check_drawing`, and if a file is damaged.
    """

    def __init__(self, config: PrepareConfig, device: torch.device):
        self.config = config
        # On a CPU not what is measured to be fast: two hosts, or two runs, would differ.
        usual = torch.float32 if device.type == "cpu" else sampling_dtype(device)
        self.model = load_pixart(config.base, DTYPES.get(config.precision, usual)).eval().requires_grad_(False)
        if config.lora:
            apply_lora(self.model, load_lora(config.lora), config.lora_strength)
        self.model.to(device)
        self.device = device

    @torch.no_grad()
    def draw(self, batch: Sequence[Inputs]) -> torch.Tensor:
        """Latents (B, 4, h, w) float32, scaled, of pictures of one size.

        Args:
            batch: with the embeddings of their prompts among what is cached.

        Raises:
            ValueError: if the model returns NaN or infinite values.
        """
        height, width = batch[0].size
        shape = (self.model.config.in_channels, height // FACTOR, width // FACTOR)
        noise = torch.stack([self._noise(inputs.source.name, shape) for inputs in batch]).to(self.device)
        rows = [
            {
                "caption": torch.from_numpy(np.asarray(inputs.cached["caption.npy"])),
                "image_size": inputs.size,
                "aspect_ratio": (height / width,),
                "keys": inputs.source.name,
            }
            for inputs in batch
        ]
        together = collate(rows)
        caption = together["caption"].to(self.device, self.model.product_dtype)
        null = self.model.null_caption(len(batch), caption.shape[1]).to(caption)
        conditions = {
            "caption": torch.cat([caption, null]),  # under the caption's own mask, as it was trained
            "caption_mask": together["caption_mask"].to(self.device).repeat(2, 1),
        }
        predictor = Steps(self.model, dpm_timesteps(self.config.draw_steps))
        model_fn = guided(predictor, conditions, self.config.guidance)
        return sample(model_fn, noise, plan_steps("dpm", self.config.draw_steps))

    def _noise(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator_for(self.config.seed, int(name)))
