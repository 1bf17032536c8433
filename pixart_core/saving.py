"""Files of weights and their descriptions, written so that nothing is ever half written."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .aliases import PathLike
from .errors import CheckpointError
from .leftovers import temporary_folder


def save_weights(state: Mapping[str, Tensor], path: PathLike, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file so that `path` is, at any moment, the old file, the new one, or absent.

    Raises:
        CheckpointError: on a full disk, a missing folder or a file that cannot be replaced; nothing is left behind.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"weights are saved as safetensors, got the name {path}: let it end in .safetensors")
    if not path.parent.is_dir():
        raise CheckpointError(f"the folder {path.parent} does not exist: create it, or choose another")
    needed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise CheckpointError(f"saving {path} takes {needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free there")
    try:
        with replacing(path) as temporary:
            save_file(_standalone(state), temporary, {"format": "pt", **(metadata or {})})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not write {path}: {error}") from error
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what is then moved to `path`, in one go and for good; if the block fails, `path` is as it was.

    Raises:
        OSError: if it cannot be made or moved.
    """
    with temporary_folder(path) as folder:
        yield folder / "data"  # a plain name, that no list of models shows
        _publish(folder / "data", path)


def save_json(values: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file as atomically as `save_weights`."""
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")
    except OSError as error:
        raise CheckpointError(f"could not write {path}: {error}") from error


def _standalone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors takes contiguous CPU tensors that share no memory: only views (parts of fused ones) are copied."""
    out = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        is_view = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
        out[name] = tensor.clone(memory_format=torch.contiguous_format) if is_view else tensor.contiguous()
    return out


def _publish(temporary: Path, path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    with contextlib.suppress(OSError):  # mounts of other systems' disks may have no such permissions
        os.chmod(temporary, 0o666 & ~mask)  # safetensors makes files that only their owner may read
    with open(temporary, "rb+") as stream:
        sync(stream.fileno())
    _take_place(temporary, path)
    if hasattr(os, "O_DIRECTORY"):  # the rename itself has to reach the disk, too; Windows has no way to ask
        with contextlib.suppress(OSError):  # nor have some network mounts; the file is whole and in its place already
            folder = os.open(path.parent, os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _take_place(temporary: Path, path: Path) -> None:
    """Move a file over another. Windows does not replace one that a program has mapped, as ComfyUI has a model that it
    loaded, but renames it: the old one makes way, and is deleted as soon as nobody has it."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.old-*"):
        with contextlib.suppress(OSError):
            old.unlink()
    try:
        os.replace(temporary, path)
    except PermissionError:
        if not path.is_file():
            raise
        old = path.with_name(f".{path.name}.old-{secrets.token_hex(4)}")
        path.rename(old)
        try:
            os.replace(temporary, path)
        except OSError:
            old.rename(path)
            raise
        with contextlib.suppress(OSError):
            old.unlink()


def sync(descriptor: int) -> None:
    """Have an open file reach the disk, where its file system knows how; raises OSError if it tried and failed."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
