"""Hints that controlnet_aux finds in pictures, by name: edges, lines, depth and others. Loaded when they are needed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..config import ConfigError, PrepareConfig

PACKAGES = ("controlnet_aux", "cv2")
_CLASSES = {
    "canny": "CannyDetector",
    "lineart_standard": "LineartStandardDetector",
    "lineart": "LineartDetector",
    "lineart_anime": "LineartAnimeDetector",
    "depth": "MidasDetector",
    "mlsd": "MLSDdetector",
    "normal": "NormalBaeDetector",
    "softedge": "PidiNetDetector",
    "pose": "OpenposeDetector",
}
"""Of `config.DETECTED`."""


class Detector:
    """One of them. Nothing is downloaded: weights are read from the folder `annotators`.

    Raises:
        ImportError: if controlnet_aux is not installed.
        ConfigError: if the folder lacks the weights.
    """

    def __init__(self, config: PrepareConfig, device: torch.device):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages that other detectors would need
            import controlnet_aux

            kind = getattr(controlnet_aux, _CLASSES[config.hints])
            if not config.annotators:
                self._detector: Any = kind()
                return
            try:
                self._detector = kind.from_pretrained(config.annotators, local_files_only=True)
            except OSError as error:
                raise ConfigError(
                    f"annotators {config.annotators} lacks weights for hints={config.hints} ({error}): download "
                    "lllyasviel/Annotators from Hugging Face there"
                ) from error
        if hasattr(self._detector, "to"):
            self._detector.to(device)

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """uint8 (height, width, 3) -> its hint likewise, found at about the picture's size."""
        side = min(picture.shape[:2])
        found = self._detector(picture, detect_resolution=side, image_resolution=side, output_type="pil")
        size = picture.shape[1], picture.shape[0]  # detectors round to multiples of 64 px
        return np.asarray(found.convert("RGB").resize(size, Image.Resampling.BILINEAR))
