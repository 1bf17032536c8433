"""The frozen networks that turn inputs into samples: autoencoder, text encoder, edge detector."""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...pixart_core.hed import detect, load_hed
from ...pixart_core.pipeline import default_device
from ...pixart_core.text import TextEncoder, weight_files
from ...pixart_core.vae import load_vae, moments
from ..config import ConfigError, PrepareConfig
from ..data.shards import DataError, flipped, hash_file
from ..task import DTYPES
from .detectors import Detector
from .drawn import CHANNELS, SCALING_FACTOR, Painter, drawing_identity
from .inputs import Inputs

_PIXELS = 1 << 20
"""Most pixels that are encoded at once: in float32 the autoencoder takes 2.7 GB for them."""
_ROOM = 2e9
"""Bytes beside a text encoder's weights that encoding captions takes on a GPU."""
_OFFICIAL_SCALE = 0.18215
"""Scale of the latents in the authors' caches: that of Stable Diffusion's autoencoder."""


class Encoders:
    """Loads each network when it is first needed."""

    def __init__(self, config: PrepareConfig):
        self.config = config
        if config.device != "auto":
            self.device = torch.device(config.device)
        else:
            self.device = default_device()
            if self.device.type == "cuda":
                self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))

    @functools.cached_property
    def vae(self):
        # float32 unless told otherwise, as the authors: what is cached once should not carry a network's rounding.
        return load_vae(self._models(), DTYPES.get(self.config.precision, torch.float32), self.device)

    @functools.cached_property
    def text(self) -> TextEncoder:
        dtype = DTYPES.get(self.config.precision)  # none for "auto"
        if dtype is None and self.device.type == "cpu" and self.config.quantization == "none":
            dtype = torch.float32  # not what is measured to be fast: two hosts, or two runs, would differ
        models, how = self._models(), self.config.quantization
        text = TextEncoder.from_pretrained(models, dtype, self.device, how)
        if not self._has_room_for(text):
            text = TextEncoder.from_pretrained(models, dtype, self.device, how, streamed=True)
        return text

    def _has_room_for(self, text: TextEncoder) -> bool:
        """Whether the text encoder's weights fit on the device. In a computer's own memory they stay mapped in any
        case: what they need there is taken from nobody."""
        if self.device.type != "cuda" or self.config.quantization != "none":
            return self.device.type != "cpu"
        size = sum(file.stat().st_size for file in weight_files(text.folder)) * text.dtype.itemsize / 2
        return size + _ROOM < torch.cuda.mem_get_info(self.device)[0]

    @functools.cached_property
    def hed(self):
        return load_hed(self.config.hed, device=self.device)

    @functools.cached_property
    def painter(self) -> Painter:
        return Painter(self.config, self.device)

    @functools.cached_property
    def detector(self) -> Detector:
        return Detector(self.config, self.device)

    @property
    def needs_vae(self) -> bool:
        """Whether anything is left for the autoencoder to do; a folder of hints may hold features only."""
        config = self.config
        made = config.latents or config.prompts
        return not made or config.finds_hints or bool(config.hint_folder and config.models)

    def identity(self) -> dict[str, Any]:
        """Names the networks and settings that decide what a sample holds.

        The size of a batch is one: of a picture encoded alone about 0.2 % of the values differ in the last bit.
        """
        config = self.config
        named: dict[str, Any] = {"max_tokens": config.max_tokens, "batch_size": config.batch_size}
        if config.prompts:
            named["drawn"] = drawing_identity(config)
        if self.needs_vae:
            folder = Path(self._models())
            folder = folder / "vae" if (folder / "vae").is_dir() else folder
            named["vae"] = [hash_file(file) for file in weight_files(folder)], config.precision
            if config.batch_size * config.resolution**2 > _PIXELS:
                named["pixels"] = _PIXELS
        if not config.embeddings:
            named["text"] = self.text.identity, config.clean_caption
        if config.hints == "hed":
            named["hed"] = hash_file(Path(config.hed))
        elif config.finds_hints:
            named["hints"] = config.hints, importlib.metadata.version("controlnet_aux")
        named |= {
            name: value
            for name, value in (("flip", config.flip), ("masks", config.masks))
            if value not in (False, "none")
        }
        return named

    def shape(self) -> tuple[int, int]:
        """Channels of the moments and of the embeddings that are stored; PixArt-α's where no network says it."""
        if self.config.prompts:
            return CHANNELS, self.text.width
        has_vae, has_text = self.needs_vae and self.config.models, not self.config.embeddings and self.config.models
        moments = 4 if has_vae and not hasattr(self.vae.config, "down_block_types") else 8
        return moments, self.text.width if has_text else 4096

    def scaling_factor(self) -> float:
        """What latents are multiplied by before a transformer sees them."""
        if self.config.prompts:
            return SCALING_FACTOR
        return self.vae.config.scaling_factor if self.needs_vae else _OFFICIAL_SCALE

    def free(self, *networks: str) -> None:
        """Take networks (`text`, `vae`, `hed`, `painter`) out of memory; they are loaded again when they are needed."""
        if "text" in networks and "text" in self.__dict__:
            self.text.unload()
        for name in {*networks} - {"text"}:
            self.__dict__.pop(name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def encode(self, batch: Sequence[Inputs], done: Callable[[int], None]) -> list[dict[str, Any]]:
        """The parts of samples (see data/shards.py) of pictures of one bucket; embeddings of captions are among what is
        cached. The same batch gives the same bits. Large pictures go through the networks a few at a time.

        Args:
            done: told how many pictures went through, whenever some did and others follow.

        Raises:
            DataError: naming the picture whose features are not finite in half precision.
        """
        samples = [{**inputs.cached} for inputs in batch]
        shown = batch[0].picture if batch[0].picture is not None else batch[0].hint
        size = batch[0].size if self.config.prompts else (1, 1) if shown is None else shown.shape
        count = max(1, _PIXELS // (size[0] * size[1]))
        for start in range(0, len(batch), count):
            self._encode_some(samples[start : start + count], batch[start : start + count])
            if start + count < len(batch):
                done(count)
        for inputs, sample in zip(batch, samples, strict=True):
            for part, array in sample.items():
                _check_finite(inputs.source.name, part, array)
        return samples

    def _encode_some(self, samples: list[dict[str, Any]], batch: Sequence[Inputs]) -> None:
        if self.config.prompts:
            self._add(samples, "moments.npy", self.painter.draw(batch))
            return
        shown = {}
        if batch[0].picture is not None:
            shown["moments.npy"] = self._tensor(inputs.picture for inputs in batch)
        if self.config.hints == "hed":
            shown["hint.npy"] = detect(self.hed, shown["moments.npy"]).expand(-1, -1, -1, 3)
        elif self.config.finds_hints:
            found = (self.detector(inputs.picture) for inputs in batch if inputs.picture is not None)
            shown["hint.npy"] = self._tensor(found)
        elif batch[0].hint is not None:
            shown["hint.npy"] = self._tensor(inputs.hint for inputs in batch)
        for part, pictures in shown.items():
            if part not in samples[0]:
                self._add(samples, part, moments(self.vae, pictures))
                if self.config.flip:
                    self._add(samples, flipped(part), moments(self.vae, pictures.flip(2)))

    def encode_captions(self, batch: Sequence[tuple[str, tuple[str, ...]]]) -> list[tuple[np.ndarray, list[int]]]:
        """The embeddings (tokens, width) of all wordings of each picture, one after the other, and their lengths. The
        same batch gives the same bits.

        Args:
            batch: name and wordings of each picture.

        Raises:
            DataError: naming the picture whose features are not finite in half precision.
        """
        wordings = [text for _, captions in batch for text in captions]
        embeddings, mask = self.text.encode(wordings, self.config.max_tokens, self.config.clean_caption)
        rows = iter(zip(embeddings.half().cpu().numpy(), mask.sum(1).tolist(), strict=True))
        out = []
        for name, captions in batch:
            own = [embedding[:length] for embedding, length in itertools.islice(rows, len(captions))]
            out.append((np.concatenate(own), list(map(len, own))))
            _check_finite(name, "caption.npy", out[-1][0])
        return out

    def _tensor(self, pictures: Iterable[np.ndarray | None]) -> torch.Tensor:
        there = [picture for picture in pictures if picture is not None]
        return torch.from_numpy(np.stack(there)).to(self.device).float() / 255

    @staticmethod
    def _add(samples: list[dict[str, Any]], part: str, values: torch.Tensor) -> None:
        for sample, value in zip(samples, values.half().cpu().numpy(), strict=True):
            sample[part] = value

    def _models(self) -> str:
        if not self.config.models:
            raise ConfigError("models is not set: the pipeline folder with text_encoder/, tokenizer/ and vae/")
        return self.config.models


def _check_finite(name: str, part: str, array: Any) -> None:
    """Raises DataError if an array is not finite."""
    if isinstance(array, np.ndarray) and not np.isfinite(array).all():
        raise DataError(f"{name}: its {part} is not finite in half precision")
