"""Shards: webdataset tar files of prepared samples, written whole or not at all, read in any order.

<key>.moments.npy   (8, h, w) half: mean and deviation of the latent, unscaled; (4, h, w) from an autoencoder without
<key>.caption.npy   (tokens, width) half: the embeddings of all wordings one after the other, real tokens only
<key>.hint.npy      as moments, of the hint picture; only if the dataset has hints
<key>.moments_flipped.npy, <key>.hint_flipped.npy   the same of the mirrored picture; only if it was asked for
<key>.mask.npy      (1, h, w) half: the share of each latent pixel that is trained on; only if the dataset has masks
<key>.crc32         JSON: zlib's crc32 of each of the others; not in shards of earlier versions
<key>.json          height, width (of the original, px), bucket (height, width, px), ratio (key of the bucket),
                    captions, tokens (of each wording), source
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import os
import re
import tarfile
import threading
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...pixart_core.saving import replacing, save_json

KIND = "pixart_delta_features"
VERSION = 2
DESCRIPTION = "dataset.json"
_NPY_PREFIX = 10
"""Bytes of an .npy file (version 1) before its header: magic, version, and the header's length."""


def flipped(part: str) -> str:
    """The name of a part (moments.npy, hint.npy) of the mirrored picture."""
    return part.replace(".", "_flipped.")


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
        numbers = (*self.bucket, self.count, self.bytes)
        if len(self.bucket) != 2 or not all(type(each) is int and each > 0 for each in numbers):
            raise DataError(f"{DESCRIPTION} lists shard {self.name!r} with numbers that cannot be: {numbers}")
        if not isinstance(self.name, str) or not isinstance(self.sha256, str):
            raise DataError(f"{DESCRIPTION} lists a shard whose name or checksum is no text: {self.name!r}")
        if not re.fullmatch(r"\w[\w.-]*", self.name) or not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise DataError(
                f"{DESCRIPTION} lists a shard of the name {self.name!r} and checksum {self.sha256!r}: names are plain, "
                "without folders, and checksums 64 hexadecimal digits. Use a dataset that `prepare` made"
            )


class Shard:
    """A tar file: a sample is read when it is asked for, in any order, by any number of processes and threads.

    It is read and not mapped: a mapped file that somebody cuts short ends the process without a word.
    """

    def __init__(self, path: Path, info: ShardInfo):
        self.path, self.info = path, info
        try:
            size = path.stat().st_size
            if size != info.bytes:
                raise self.error(f"is damaged: it has {size} of its {info.bytes} bytes")
            self._file = path.open("rb", buffering=0)
            with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                members = [(member.name, member.offset_data, member.size) for member in tar]
        except (OSError, tarfile.TarError) as error:
            raise self.error(f"cannot be read: {error}") from error
        self._turn = threading.Lock()
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
            DataError: naming the file and the sample; also if a part is not what its checksum says.
        """
        key = self.keys[row]
        spans = self._samples[key]
        try:
            sums = json.loads(self._bytes(*spans["crc32"])) if "crc32" in spans else None
            out = {}
            for part in parts:
                data = self._bytes(*spans[part])
                if sums is not None and sums[part] != zlib.crc32(data):
                    raise ValueError(f"{part} is not what was written")
                out[part] = _decode(part, data)
            return out
        except KeyError as error:
            raise self.error(f"has no {error} for sample {key}") from error
        except (OSError, ValueError, TypeError, EOFError, RecursionError) as error:
            raise self.error(f"is damaged at sample {key}: {error}") from error

    def _bytes(self, start: int, end: int) -> bytearray:
        """A part of the file. Forked processes share where a file is read, so that it is said each time."""
        data = bytearray(end - start)
        if hasattr(os, "preadv"):
            count = os.preadv(self._file.fileno(), [data], start)
        else:
            with self._turn:
                self._file.seek(start)
                count = self._file.readinto(data)
        if count != len(data):
            raise ValueError("the file ends there, shorter than it was")
        return data

    def error(self, problem: str) -> DataError:
        """An error about this file, with the way out."""
        return DataError(f"shard {self.path} {problem}. Run `prepare` again on its folder: it makes bad shards anew")


def _decode(part: str, data: bytearray) -> Any:
    if part == "json":
        return json.loads(data)
    begin = _NPY_PREFIX + int.from_bytes(data[_NPY_PREFIX - 2 : _NPY_PREFIX], "little")
    shape, fortran, dtype = _array_header(bytes(data[:begin]))
    if math.prod(shape) * dtype.itemsize != len(data) - begin:
        raise ValueError(f"{part} holds {len(data) - begin} bytes for an array {shape} of {dtype}")
    return np.frombuffer(data, dtype, math.prod(shape), begin).reshape(shape, order="F" if fortran else "C")


@functools.lru_cache(maxsize=1024)
def _array_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type that the head of an .npy file (version 1) names.

    Kept: there are few different ones, and numpy takes longer to read one than to read the array."""
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array is not in version 1 of numpy's format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("an array holds Python objects, which are not read: they could carry code")
    return shape, fortran, dtype


def hash_file(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _with_checksums(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample's parts as bytes, and their checksums."""
    from webdataset.writer import make_encoder

    parts = make_encoder(True)(dict(sample))
    sums = {name: zlib.crc32(data) for name, data in parts.items() if not name.startswith("_")}
    return {**parts, "crc32": json.dumps(sums).encode()}


def write_shard(folder: Path, name: str, bucket: tuple[int, int], samples: Iterable[Mapping[str, Any]]) -> ShardInfo:
    """Write a tar file that appears under `name` only when it is complete and on the disk. Equal samples, equal bytes.

    Args:
        samples: parts by name, see above, and `__key__`.
    """
    import webdataset

    count = 0
    with replacing(folder / name) as temporary:
        with temporary.open("wb") as file, webdataset.TarWriter(file, mtime=0, encoder=_with_checksums) as tar:
            for sample in samples:
                tar.write(sample)
                count += 1
        size, digest = temporary.stat().st_size, hash_file(temporary)
    height, width = bucket
    return ShardInfo(name, (height, width), count, size, digest)


def write_description(folder: Path, shards: Iterable[ShardInfo], **values: Any) -> None:
    """Write dataset.json, which makes the folder a dataset; the last thing to do.

    values: scaling_factor (of the latents) and whatever else is worth knowing.
    """
    listed = [{**asdict(shard), "bucket": list(shard.bucket)} for shard in shards]
    save_json({"kind": KIND, "version": VERSION, **values, "shards": listed}, folder / DESCRIPTION)
