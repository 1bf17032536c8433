"""Embeddings of captions on their way: they are made before the pictures of some shards are encoded, so that the text
encoder and the autoencoder are never in memory together, and wait on the disk for their shard to be written.

They lie beside the shard as .NAME.STATE.text and .text.json, and stay when `prepare` is ended, for the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ...pixart_core.saving import replacing, save_json
from ...pixart_core.textfile import read_json

Encoded = tuple[tuple[str, ...], list[int], np.ndarray]
"""A picture's wordings, their tokens, and their embeddings (tokens, width) one after the other."""


class Captions:
    """The captions of one shard.

    Args:
        folder: of the dataset.
        name: of the shard.
        state: names all that the shard is made from.
    """

    def __init__(self, folder: Path, name: str, state: str):
        self._folder, self._name = folder, name
        self.file = folder / f".{name}.{state[:16]}.text"
        self._about = self.file.with_name(f"{self.file.name}.json")

    def made(self) -> bool:
        """Whether they are there as a whole."""
        return self._about.exists() and self.file.exists()

    def write(self, captions: Iterable[Encoded]) -> None:
        """Keep them; those of an earlier state go."""
        self.remove()
        entries, width = [], 0
        with replacing(self.file) as temporary, temporary.open("wb") as file:
            for wordings, tokens, embedding in captions:
                file.write(np.ascontiguousarray(embedding, np.float16).tobytes())
                entries.append([wordings, tokens])
                width = embedding.shape[1]
        save_json({"width": width, "captions": entries}, self._about)

    def read(self) -> Iterator[Encoded]:
        """Them again, in their order."""
        about = read_json(self._about)
        array = np.memmap(self.file, np.float16, "r").reshape(-1, about["width"])
        start = 0
        for wordings, tokens in about["captions"]:
            end = start + sum(tokens)
            yield tuple(wordings), tokens, np.array(array[start:end])
            start = end

    def remove(self) -> None:
        """They are in the shard, or no longer wanted."""
        remove_captions(self._folder, self._name)


def remove_captions(folder: Path, name: str = "*") -> None:
    """Remove those of a shard, or of all."""
    for file in folder.glob(f".{name}.*.text*"):
        with contextlib.suppress(OSError):
            file.unlink()
