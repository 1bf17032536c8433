"""Previews of models whose latents are not those of Stable Diffusion: their colours, and their decoder as a TAESD."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import comfy.latent_formats
import folder_paths
import torch

from ...pixart_core.config import PixArtConfig
from ...pixart_core.identify import FileInfo
from ...pixart_core.preview import COLOURS, preview_colours, taesd_decoder
from ...pixart_core.saving import save_weights
from ...pixart_core.vae import load_vae
from .family import part_of
from .files import BUNDLE

_NANO_CAPTION_CHANNELS = 64
"""Width of the bundled text encoder; T5-XXL, and with it every released model, has 4096."""
# Least squares of the 48 scenes in models/nano/scenes: latent and a constant to RGB in −1 … 1 (R² 0.84 to 0.87).
_NANO_RGB = (
    (-0.1395, -0.1159, -0.1142),
    (0.0265, 0.1761, 0.1510),
    (-0.4107, -0.2273, -0.1548),
    (-0.0819, 0.1304, 0.3918),
)
_NANO_BIAS = (-0.1064, -0.2217, -0.1568)
_NANO = {"factors": _NANO_RGB, "bias": _NANO_BIAS}


class FamilyLatent(comfy.latent_formats.SD15):
    """Stable Diffusion's latent format, as far as the scale goes, with the colours and the decoder of a family.

    Args:
        colours: see `pixart_core.preview.COLOURS`.
        vae: folder of its autoencoder; None if that is not known.
    """

    def __init__(self, colours: dict[str, Any], vae: Path | None) -> None:
        super().__init__()
        self.colours = colours
        self.latent_rgb_factors = [list(row) for row in colours["factors"]]
        self.latent_rgb_factors_bias = list(colours["bias"])
        self.taesd_decoder_name = None if vae is None else _offered_decoder(vae)


def latent_format(config: PixArtConfig, info: FileInfo) -> comfy.latent_formats.LatentFormat:
    """ComfyUI's description of a model's latents: their scale, and what previews are made with.

    Raises:
        CheckpointError: if the file describes its colours, and they are none.
    """
    if colours := preview_colours(info):
        return FamilyLatent(colours[COLOURS], part_of(info.path, "vae"))
    if config.caption_channels == _NANO_CAPTION_CHANNELS:  # files of the bundled family are older than `COLOURS`
        return FamilyLatent(_NANO, BUNDLE / "nano" / "vae")
    return comfy.latent_formats.SD15()


def described(form: comfy.latent_formats.LatentFormat) -> dict[str, Any]:
    """What a file of a model with this latent format has to say for `latent_format` to know it again."""
    return {COLOURS: form.colours} if isinstance(form, FamilyLatent) and form.colours != _NANO else {}


def _offered_decoder(vae: Path) -> str | None:
    """The name of the autoencoder's decoder in a place where ComfyUI looks for TAESDs; it is written there on the first
    call. None if TAESD cannot hold it.

    Where that is: a folder in ComfyUI's temporary one, that is emptied when the server starts.
    """
    stamps = "".join(f"{file} {file.stat().st_mtime_ns}" for file in sorted(vae.resolve().iterdir()))
    name = f"pixart_delta_{hashlib.sha256(stamps.encode()).hexdigest()[:16]}"
    folder = Path(folder_paths.get_temp_directory()) / "pixart_delta_vae_approx"
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        try:
            state = taesd_decoder(load_vae(vae, dtype=torch.float32))
        except ValueError as error:
            logging.info(f"--preview-method taesd will not show its pictures: {error}")
            return None
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(state, file)
    folder_paths.add_model_folder_path("vae_approx", str(folder))
    return name
