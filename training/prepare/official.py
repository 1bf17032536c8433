"""The caches of PixArt's authors (tools/extract_features.py, diffusion/model/hed.py), read as a source for `prepare`.

T5 features   dir_name.npz: caption_feature (1, 120, width), attention_mask (1, 120)
VAE features  dir_name.npy: mean and deviation (8, h, w), unscaled
HED features  dir/name.npz: the same, of the edge map, as arr_0

They are converted rather than trained on directly: so there is one format that is streamed, checked and resumed.
"""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

import numpy as np

from .pictures import PictureError


def find_cached(folder: str | Path, name: str, suffixes: tuple[str, ...]) -> Path | None:
    """The cache file of a picture called `name` (dir/name.png): dir/name or dir_name with one of `suffixes`."""
    path = PurePosixPath(name)
    for flat in (path, PurePosixPath("_".join(name.rsplit("/", 1)))):
        for suffix in suffixes:
            for each in (suffix, suffix.upper()):
                if (file := Path(folder, flat.with_suffix(each))).is_file():
                    return file
    return None


def read_moments(file: Path) -> np.ndarray:
    """Mean and deviation (8, h, w), or latents without deviation (4, h, w), half.

    Raises:
        PictureError: if that is not what the file holds.
    """
    array = _load(file)
    array = array["arr_0"] if isinstance(array, dict) and "arr_0" in array else array
    if isinstance(array, dict) or array.ndim != 3 or array.shape[0] not in (4, 8):
        raise PictureError(f"{file.name} does not hold (8, h, w) means and deviations of a latent")
    return _half(array, file)


def read_embedding(file: Path) -> np.ndarray:
    """Text embedding (tokens, width) of the real tokens, half.

    Raises:
        PictureError: if that is not what the file holds.
    """
    arrays = _load(file)
    if not isinstance(arrays, dict) or "caption_feature" not in arrays:
        raise PictureError(f"{file.name} does not hold a caption_feature")
    caption = arrays["caption_feature"].reshape(-1, arrays["caption_feature"].shape[-1])
    mask = arrays.get("attention_mask", np.ones(len(caption))).reshape(-1).astype(bool)
    if len(mask) != len(caption) or not mask.any():
        raise PictureError(f"{file.name} has an attention_mask that does not fit its caption_feature")
    return _half(caption[mask], file)


def _load(file: Path) -> np.ndarray | dict[str, np.ndarray]:
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise PictureError(f"{file.name} cannot be read: {error}") from error


def _half(array: np.ndarray, file: Path) -> np.ndarray:
    half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise PictureError(f"{file.name} holds values that are not finite in half precision")
    return half
