"""Shards: webdataset tar files of prepared samples, written whole or not at all, read in any order.

<key>.moments.npy   (8, h, w) half: mean and deviation of the latent, unscaled; (4, h, w) from an autoencoder without
<key>.caption.npy   (tokens, width) half: the embeddings of all wordings one after the other, real tokens only
<key>.hint.npy      as moments, of the hint picture; only if the dataset has hints
<key>.json          height, width (of the original, px), bucket (height, width, px), ratio (key of the bucket),
                    captions, tokens (of each wording), source
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import mmap
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..pixart_core.weightfile import replacing, save_json

KIND = "pixart_delta_features"
VERSION = 2
DESCRIPTION = "dataset.json"
_NPY_PREFIX = 10
"""Bytes of an .npy file (version 1) before its header: magic, version, and the header's length."""


class DataError(ValueError):
    """A dataset that is missing, damaged or of another kind."""


@dataclass(frozen=True)
class ShardInfo:
    """A shard as dataset.json lists it."""

    name: str
    bucket: tuple[int, int]
    """Height, width in px of every picture in it."""
    count: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        # A description may come from a stranger's server, and both become parts of paths.
        if not re.fullmatch(r"\w[\w.-]*", self.name) or not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise DataError(
                f"{DESCRIPTION} lists a shard of the name {self.name!r} and checksum {self.sha256!r}: names are plain, "
                "without folders, and checksums 64 hexadecimal digits. Use a dataset that `prepare` made"
            )


class Shard:
    """A tar file, mapped: a sample is read when it is asked for, in any order, by any number of processes."""

    def __init__(self, path: Path, info: ShardInfo):
        self.path, self.info = path, info
        try:
            size = path.stat().st_size
            if size != info.bytes:
                raise self.error(f"is damaged: it has {size} of its {info.bytes} bytes")
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    members = [(member.name, member.offset_data, member.size) for member in tar]
        except (OSError, tarfile.TarError) as error:
            raise self.error(f"cannot be read: {error}") from error
        self._samples: dict[str, dict[str, tuple[int, int]]] = {}
        for name, offset, size in members:
            key, _, part = name.partition(".")
            self._samples.setdefault(key, {})[part] = offset, offset + size
        self.keys = list(self._samples)
        if len(self.keys) != info.count:
            raise self.error(f"is damaged: it holds {len(self.keys)} of its {info.count} samples")

    def read(self, row: int, parts: Iterable[str]) -> dict[str, Any]:
        """Parts of sample `row` in the order of the file: arrays for .npy, parsed for json.

        Raises:
            DataError: naming the file and the sample.
        """
        key = self.keys[row]
        try:
            return {part: _decode(part, self._map, *self._samples[key][part]) for part in parts}
        except KeyError as error:
            raise self.error(f"has no {error} for sample {key}") from error
        except (ValueError, EOFError) as error:
            raise self.error(f"is damaged at sample {key}: {error}") from error

    def error(self, problem: str) -> DataError:
        """An error about this file, with the way out."""
        return DataError(f"shard {self.path} {problem}. Run `prepare` again on its folder: it makes bad shards anew")


def _decode(part: str, data: mmap.mmap, start: int, end: int) -> Any:
    if part == "json":
        return json.loads(data[start:end])
    begin = start + _NPY_PREFIX + int.from_bytes(data[start + _NPY_PREFIX - 2 : start + _NPY_PREFIX], "little")
    shape, order, dtype = _array_header(data[start:begin])
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{part} holds {end - begin} bytes for an array {shape} of {dtype}")
    return np.frombuffer(data, dtype, math.prod(shape), begin).reshape(shape, order=order).copy()


@functools.lru_cache(maxsize=1024)
def _array_header(header: bytes) -> tuple[tuple[int, ...], str, np.dtype]:
    """Shape, order and type that the head of an .npy file (version 1) names. Kept: there are few different ones, and
    numpy takes longer to read one than to read the array."""
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array is not in version 1 of numpy's format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("an array holds Python objects, which are not read: they could carry code")
    return shape, "F" if fortran else "C", dtype


def hash_file(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class HashingFile:
    """A file that is hashed and counted as it is written."""

    def __init__(self, file):
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0

    def write(self, data) -> int:
        self.digest.update(data)
        self.bytes += len(data)
        return self.file.write(data)


def write_shard(folder: Path, name: str, bucket: tuple[int, int], samples: Iterable[Mapping[str, Any]]) -> ShardInfo:
    """Write a tar file that appears under `name` only when it is complete and on the disk. Equal samples, equal bytes.

    Args:
        samples: parts by name, see above, and `__key__`.
    """
    import webdataset

    count = 0
    with replacing(folder / name) as temporary, temporary.open("wb") as file:
        stream = HashingFile(file)
        with webdataset.TarWriter(stream, mtime=0) as tar:
            for sample in samples:
                tar.write(sample)
                count += 1
    return ShardInfo(name, tuple(bucket), count, stream.bytes, stream.digest.hexdigest())


def write_description(folder: Path, shards: Iterable[ShardInfo], **values: Any) -> None:
    """Write dataset.json, which makes the folder a dataset; the last thing to do.

    values: scaling_factor (of the latents) and whatever else is worth knowing.
    """
    listed = [{**asdict(shard), "bucket": list(shard.bucket)} for shard in shards]
    save_json({"kind": KIND, "version": VERSION, **values, "shards": listed}, folder / DESCRIPTION)
