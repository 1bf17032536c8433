"""What a sample is made from: the picture, its hint and captions, read and checked. Runs in the reading processes."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..config import PrepareConfig
from .folder import caption_files
from .inside import check_inside
from .official import find_cached, read_embedding, read_moments
from .pictures import MAX_RATIO, PictureError, coverage, fit, open_alpha, open_picture, suffixes
from .sources import Source

_USUAL = (".png", ".jpg", ".jpeg", ".webp")


class MaskError(ValueError):
    """No mask, or one that does not fit its picture, or leaves nothing of it."""


class HintError(ValueError):
    """No hint picture, or one that does not fit its picture."""


@dataclass
class Inputs:
    """Everything about one picture that needs no network, for a bucket (height, width in px)."""

    source: Source
    size: tuple[int, int]
    """Height, width of the original."""
    captions: tuple[str, ...]
    picture: np.ndarray | None = None
    """uint8 (height, width, 3); None if its latent is in a cache, and no network wants to see it."""
    hint: np.ndarray | None = None
    """uint8 likewise, if hints are pictures."""
    cached: dict[str, np.ndarray] = field(default_factory=dict)
    """Parts of the sample that the authors' caches hold already, by name."""


class InputReader:
    """Reads `Inputs` as the settings say."""

    def __init__(self, config: PrepareConfig):
        self.config = config
        # The usual suffixes first: on a network disk each look takes a while.
        self.hint_suffixes = (".npz", ".npy", *sorted(suffixes(), key=lambda suffix: (suffix not in _USUAL, suffix)))
        self.needs_picture = config.finds_hints or not (config.latents or config.prompts)

    def files(self, source: Source) -> list[Path]:
        """Every file that a sample is made from, archives aside; of those that are missing, where it should be."""
        config = self.config
        found: list[Path | None] = []
        if self.needs_picture and source.packed is None:
            found.append(source.path)
        if config.latents:
            found.append(find_cached(config.latents, source.name, (".npy",)))
        if config.embeddings:
            found.append(find_cached(config.embeddings, source.name, (".npz",)))
        elif source.listed is None:
            found += caption_files(source.path)
        for folder in (config.hint_folder, config.mask_folder):
            if folder:
                found.append(find_cached(folder, source.name, self.hint_suffixes))
        return [file for file in found if file is not None]

    def read(self, source: Source, bucket: tuple[int, int] | None = None) -> Inputs:
        """Read one.

        Args:
            bucket: height, width to fit pictures to; None leaves them out, everything is only checked.

        Raises:
            PictureError, CaptionError, HintError, MaskError: saying what is wrong.
            OutsideError: if one of its files is not where files may be read.
        """
        self._check_places(source)
        cached = {}
        file = _content(source) if source.packed else source.path
        picture = open_picture(file) if self.needs_picture else None
        if self.config.latents:
            cached["moments.npy"] = read_moments(_need(self.config.latents, source, (".npy",)))
        size = (picture.height, picture.width) if picture else source.size or pixels(cached["moments.npy"])
        if self.config.embeddings:
            cached["caption.npy"] = read_embedding(_need(self.config.embeddings, source, (".npz",)))
        inputs = Inputs(source, size, self._captions(source), cached=cached)
        if bucket is not None and picture is not None:
            inputs.picture = fit(picture, *bucket)
        if self.config.hint_folder:
            self._read_hint(inputs, bucket)
        if self.config.masks != "none":
            cached["mask.npy"] = self._mask(inputs, file, bucket)
        if bucket is not None:
            check_hint(inputs, bucket)
        return inputs

    def captions(self, source: Source) -> tuple[str, ...]:
        """The wordings alone; raises as `read`."""
        self._check_places(source)
        return self._captions(source)

    def _captions(self, source: Source) -> tuple[str, ...]:
        # A cache holds one embedding, of the first prompt if a list says it at all.
        if self.config.embeddings:
            return (source.listed or ("",))[:1]
        return with_trigger(source.captions(self.config.encoding), self.config.trigger)

    def contents(self, source: Source) -> list[str]:
        """Names the content of everything that a sample is made from, that of the picture first."""
        picture = [digest(_content(source))] if source.packed and self.needs_picture else []
        return picture + [digest(file.read_bytes()) for file in self.files(source) if file.is_file()]

    def _check_places(self, source: Source) -> None:
        if self.config.only_inside:
            for file in (
                source.path,
                *self.files(source),
            ):  # the picture, or its archive, first: it leads to all others
                check_inside(file, self.config.only_inside)

    def _mask(self, inputs: Inputs, file: Path | bytes, bucket: tuple[int, int] | None) -> np.ndarray:
        """What is trained on; see `coverage`. Without a bucket it is as large as the picture."""
        try:
            if self.config.masks == "alpha":
                mask = open_alpha(file)
            else:
                found = find_cached(self.config.mask_folder, inputs.source.name, self.hint_suffixes[2:])
                if found is None:
                    raise MaskError(f"there is no mask of this name in {self.config.mask_folder}")
                mask = open_picture(found)
        except PictureError as error:
            raise MaskError(f"its mask: {error}") from error
        if not _same_shape(mask, inputs.size):
            size = _text((mask.height, mask.width))
            raise MaskError(f"its mask is {size} px, of another shape than its {_text(inputs.size)} px")
        covered = coverage(fit(mask, *(bucket or (max(8, mask.height // 8 * 8), max(8, mask.width // 8 * 8)))))
        if not covered.any():
            raise MaskError("its mask leaves nothing of it to train on")
        return covered

    def _read_hint(self, inputs: Inputs, bucket: tuple[int, int] | None) -> None:
        file = find_cached(self.config.hint_folder, inputs.source.name, self.hint_suffixes)
        if file is None:
            raise HintError(f"there is no hint of this name in {self.config.hint_folder}")
        try:
            if file.suffix in (".npz", ".npy"):
                inputs.cached["hint.npy"] = read_moments(file)
                return
            hint = open_picture(file)
        except PictureError as error:
            raise HintError(f"its hint: {error}") from error
        if not _same_shape(hint, inputs.size):
            size = _text((hint.height, hint.width))
            raise HintError(f"its hint is {size} px, of another shape than its {_text(inputs.size)} px")
        if bucket is not None:
            inputs.hint = fit(hint, *bucket)


def with_trigger(captions: tuple[str, ...], trigger: str) -> tuple[str, ...]:
    """Captions behind the words that come before every one of them, if there are such."""
    return tuple(f"{trigger}, {each}" if each else trigger for each in captions) if trigger else captions


@functools.lru_cache(maxsize=1)
def _content(source: Source) -> bytes:
    """The file of a picture in an archive; it is looked at, and then its content is named."""
    assert source.packed is not None
    return source.packed.read()


def check_hint(inputs: Inputs, bucket: tuple[int, int]) -> None:
    """Raises HintError if a hint that is features already is of another size than the bucket (height, width in px)."""
    hint = inputs.cached.get("hint.npy")
    if hint is not None and pixels(hint) != bucket:
        raise HintError(f"its hint is prepared for {_text(pixels(hint))} px, it for {_text(bucket)} px")


def check_ratio(size: tuple[int, int]) -> None:
    """Raises PictureError if a picture (height, width) is longer than any bucket."""
    ratio = max(size) / min(size)
    if ratio > MAX_RATIO:
        raise PictureError(f"{_text(size)} px: a side is {ratio:.1f} times the other, more than {MAX_RATIO}")


def digest(data: bytes) -> str:
    """A name for content."""
    return hashlib.sha256(data).hexdigest()[:32]


def _need(folder: str, source: Source, suffixes: tuple[str, ...]) -> Path:
    file = find_cached(folder, source.name, suffixes)
    if file is None:
        raise PictureError(f"there is no feature file ({', '.join(suffixes)}) of this name in {folder}")
    return file


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def pixels(moments: np.ndarray) -> tuple[int, int]:
    """Height, width in px of the picture that a latent stands for."""
    return moments.shape[1] * 8, moments.shape[2] * 8


def _same_shape(hint: Image.Image, size: tuple[int, int]) -> bool:
    """Whether a hint, enlarged to the picture, is at most a pixel of either off."""
    height = hint.height * size[1] / hint.width
    return abs(height - size[0]) <= max(1, size[1] / hint.width)
