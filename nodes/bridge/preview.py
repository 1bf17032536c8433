"""True colours for previews of the bundled family, whose latents are not those of Stable Diffusion."""

from __future__ import annotations

import comfy.latent_formats

from ...pixart_core.config import PixArtConfig

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


class NanoLatent(comfy.latent_formats.SD15):
    """Stable Diffusion's latent format with the colours of the bundled autoencoder; it has no TAESD."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_rgb_factors = [list(row) for row in _NANO_RGB]
        self.latent_rgb_factors_bias = list(_NANO_BIAS)
        self.taesd_decoder_name = None


def latent_format(config: PixArtConfig) -> comfy.latent_formats.LatentFormat:
    """ComfyUI's description of a model's latents: their scale, and colours for previews."""
    return NanoLatent() if config.caption_channels == _NANO_CAPTION_CHANNELS else comfy.latent_formats.SD15()
