"""Which text encoder a model reads, where several are equally wide: those with a vocabulary of their own.

Every released model reads T5 v1.1 XXL, so that there is nothing to compare. The small families have each their own, and
a prompt that another one's encoder read gives a picture of something else.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...pixart_core.errors import CheckpointError
from ...pixart_core.t5 import T5_VOCABULARY
from ...pixart_core.weightfile import open_weights
from .files import name_of
from .ui import say_once

READER = "pixart_delta_text_encoder"
"""In a conditioning: the `mark` of the encoder that read it."""
SOURCE = "pixart_delta_source"
"""Attachment of our MODELs: the file or folder that they were loaded from."""
_EMBEDDINGS = "shared.weight"


def mark(embeddings: Tensor) -> str:
    """Tells text encoders with a vocabulary of their own from one another, by their embeddings (V, C); "" for T5's own
    vocabulary. The same in float16 and in float32."""
    if len(embeddings) == T5_VOCABULARY:
        return ""
    return hashlib.sha256(embeddings.to(torch.float16).contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def part_of(path: Path, part: str) -> Path | None:
    """A network of the pipeline folder that a model lies in: beside its folder, or in it."""
    places = (folder / part for folder in (path.parent, path.parent.parent))
    return next((place for place in places if (place / "config.json").is_file()), None)


def name_other_reader(source: str, conditioning: Iterable[Mapping[str, Any]]) -> None:
    """Say it if a prompt was read by another text encoder than the one in a model's pipeline folder.

    Args:
        source: where the model was loaded from.
        conditioning: of a sampling run.
    """
    read_by = {each[READER] for each in conditioning if READER in each}
    folder = part_of(Path(source), "text_encoder") if read_by else None
    if folder is None or read_by <= {own := _mark_of(folder)} or not own:
        return
    say_once(
        "Warning: the prompt comes from another text encoder than this model was trained with, so the picture does not "
        f"show what it says: choose {name_of('text_encoder', folder)} in PixArt-δ Text Encoder Loader",
        logging.WARNING,
    )


def _mark_of(folder: Path) -> str:
    """`mark` of a text encoder that nobody loads; "" where it cannot be read."""
    try:
        weights = open_weights(folder)
        shape = weights.tensors[_EMBEDDINGS].shape
        return "" if shape[0] == T5_VOCABULARY else mark(weights.read([_EMBEDDINGS])[_EMBEDDINGS])
    except (CheckpointError, KeyError):
        return ""
