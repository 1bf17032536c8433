"""Named tensors on disk, whatever the container: safetensors, sharded safetensors, PyTorch pickles, diffusers folders.

Nothing is copied on reading: tensors are views of the mapped file, and only header bytes are touched until one is used.
Nothing is executed on reading: see `picklefile`.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .aliases import Device, PathLike
from .errors import CheckpointError, damaged, read_description, summary
from .picklefile import StoredTensor, map_tensors, read_pickle
from .weightfolder import find_weights

CHUNK_BYTES = 256 * 2**20
"""How much of a file is resident at a time while tensors are checked, cast, fused or moved."""

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class TensorInfo:
    shape: tuple[int, ...]
    dtype: torch.dtype | str
    """A string for types that torch cannot read."""


@dataclass(frozen=True)
class WeightFile:
    """Which tensors a checkpoint holds; `read` maps them."""

    path: Path
    """The file or folder that was asked for."""
    tensors: dict[str, TensorInfo]
    sources: dict[str, Path]
    """Tensor name -> the file that holds it."""
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    """Metadata of safetensors files."""
    configs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """JSON files found beside the weights: config.json, adapter_config.json, model_index.json."""
    described: bool = False
    """Whether `configs` surely are of these weights (a folder was asked for, or the file has the name that libraries
    give to the only one there). Otherwise they are if they fit."""
    pickled: dict[str, StoredTensor] = dataclasses.field(default_factory=dict)
    """Where in a PyTorch file they lie; empty for safetensors."""

    def read(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Tensors by name (default: all), memory-mapped. The mapping goes when the last of them does."""
        wanted: dict[Path, list[str]] = {}
        for name in self.tensors if names is None else names:
            wanted.setdefault(self.sources[name], []).append(name)
        out: dict[str, Tensor] = {}
        for source, group in wanted.items():
            if group[0] in self.pickled:
                out.update(map_tensors(source, {name: self.pickled[name] for name in group}))
            else:
                with safe_open(source, framework="pt", device="cpu") as file:
                    out.update((name, file.get_tensor(name)) for name in group)
        return out

    def require_numbers(self, names: Iterable[str] | None = None) -> dict[str, torch.dtype]:
        """The types of tensors (default: all), all of them floating-point numbers.

        Raises:
            CheckpointError: where they are something else, quantised ones, say.
        """
        found = {name: self.tensors[name].dtype for name in (self.tensors if names is None else names)}
        numbers = {
            name: dtype for name, dtype in found.items() if isinstance(dtype, torch.dtype) and dtype.is_floating_point
        }
        wrong = {name: dtype for name, dtype in found.items() if name not in numbers}
        if wrong:
            raise CheckpointError(
                f"{self.path} holds weights quantised to {next(iter(wrong.values()))} ({summary(wrong)}): load it with "
                "ComfyUI's own loader, or take a 16- or 32-bit version"
            )
        return numbers

    def assemble(
        self,
        plan: Mapping[str, tuple[str, ...]],
        dtype: torch.dtype | None = None,
        device: Device = None,
        others: Mapping[str, torch.dtype] | None = None,
    ) -> dict[str, Tensor]:
        """Make target tensors, each from the rows of one or more stored ones, without ever holding two copies.

        What can be used as stored stays mapped. What has to be cast, fused or moved is made, and everything is checked,
        in chunks of short-lived mappings, so that the pages read on the way are given back at once.

        Args:
            plan: target name -> stored names.
            dtype: to cast to; None = as stored.
            device: to move to; None = stays on the CPU.
            others: targets that are cast to another dtype than the rest.

        Raises:
            CheckpointError: naming weights that are NaN or infinite.
        """

        wanted = {**dict.fromkeys(plan, dtype), **(others or {})}
        on_cpu = device is None or torch.device(device).type == "cpu"

        def as_stored(target: str) -> bool:
            names = plan[target]
            kept = {None, self.tensors[names[0]].dtype}
            return on_cpu and len(names) == 1 and {wanted[target], dtype} <= kept

        mapped = self.read(names[0] for target, names in plan.items() if as_stored(target))
        out: dict[str, Tensor] = {}
        bad = []
        for chunk in _chunks(plan, self.tensors):
            stored = self.read(name for target in chunk for name in plan[target])
            for target in chunk:
                parts = [stored[name] for name in plan[target]]
                if as_stored(target):  # checked in the passing mapping, so that the lasting one stays untouched
                    out[target], checked = mapped[plan[target][0]], parts[0]
                else:
                    made = torch.cat(parts) if len(parts) > 1 else parts[0]
                    out[target] = checked = made.to(device, wanted[target] or made.dtype, copy=len(parts) == 1)
                if not _is_finite(checked):
                    bad.append(target)
            del stored, parts, checked
        if bad:
            raise CheckpointError(
                f"{self.path} holds NaN or infinite weights ({summary(bad)}), as a diverged training "
                "or a cast to float16 leaves them: use another copy or an earlier checkpoint"
            )
        return out


def _chunks(plan: Mapping[str, tuple[str, ...]], tensors: Mapping[str, TensorInfo]) -> Iterable[list[str]]:
    chunk: list[str] = []
    size = 0
    for target, names in plan.items():
        chunk.append(target)
        size += sum(4 * torch.Size(tensors[name].shape).numel() for name in names)
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _is_finite(tensor: Tensor) -> bool:
    """One pass, no temporary: NaN and infinities survive minimum and maximum."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.dtype.itemsize == 1:  # float8: no aminmax, and too small to be worth a faster way
        tensor = tensor.float()
    return tensor.numel() == 0 or all(bool(x.isfinite()) for x in tensor.aminmax())


def open_weights(path: PathLike) -> WeightFile:
    """List the tensors of a file, a sharded file (index, shard or folder), or a diffusers or PEFT folder.

    Args:
        path: see `weightfolder.find_weights`.

    Raises:
        CheckpointError: if there is nothing, or it is damaged, carries code, or is no file of weights.
    """
    path = Path(path)
    found = find_weights(path)
    described = path.is_dir() or found.conventional
    out = WeightFile(path, {}, {}, configs=_configs(found.path, described), described=described)
    for shard in found.files:
        tensors, pickled, metadata = _list(shard)
        listed = (found.listed or {}).get(shard.name, set())
        if missing := sorted(listed - tensors.keys()):
            raise CheckpointError(
                f"{found.path} says that {summary(missing)} is in {shard.name}, where it is not: the files are of two "
                "versions; download all of them again"
            )
        names = listed or tensors.keys()
        out.tensors.update((name, tensors[name]) for name in names)
        out.pickled.update((name, pickled[name]) for name in names if name in pickled)
        out.sources.update(dict.fromkeys(names, shard))
        out.metadata.update(metadata)
    return out


def _list(file: Path) -> tuple[dict[str, TensorInfo], dict[str, StoredTensor], dict[str, str]]:
    """The tensors in one file, where a pickle has them, and the metadata of a safetensors file."""
    if _is_safetensors(file):
        tensors, metadata = _safetensors_header(file)
        return tensors, {}, metadata
    stored = _pickled_state(file)
    return {name: TensorInfo(each.shape, each.dtype) for name, each in stored.items()}, stored, {}


def _configs(file: Path, described: bool) -> dict[str, dict[str, Any]]:
    """The JSON files beside `file`, and the index of the pipeline that its folder is part of. One that cannot be read
    is an error only if it is surely of this file."""
    out = {}
    for folder, name in (
        (file.parent, "config.json"),
        (file.parent, "adapter_config.json"),
        (file.parent.parent, "model_index.json"),
    ):
        if not (folder / name).is_file():
            continue
        try:
            out[name] = read_description(folder / name)
        except CheckpointError:
            if described:
                raise
    return out


def _is_safetensors(file: Path) -> bool:
    """By content: 8 bytes of header length, then JSON. Refuses what is no file of weights at all."""
    with open(file, "rb") as stream:
        head = stream.read(512)
    if not head:
        raise CheckpointError(f"{file} is empty: download or copy it again")
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        raise CheckpointError(f"{file} is a web page, not weights: the download link asked for a login or has moved")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file} is a Git LFS pointer, not weights: run `git lfs pull`, or download the file")
    if head.startswith(b"GGUF"):
        raise CheckpointError(f"{file} is a GGUF file: load it with ComfyUI-GGUF's nodes, or take safetensors")
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**31


def _safetensors_header(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            tensors = {}
            for name in opened.keys():
                view = opened.get_slice(name)
                dtype = view.get_dtype()
                tensors[name] = TensorInfo(tuple(view.get_shape()), _SAFETENSORS_DTYPES.get(dtype, dtype))
            return tensors, opened.metadata() or {}
    except SafetensorError as error:
        raise damaged(file, f" [{error}]") from error


def _pickled_state(file: Path) -> dict[str, StoredTensor]:
    """The state dict in a PyTorch file: under `state_dict`, `state_dict_ema`, bare, or under entries of other names.

    Authors' training files hold optimizer state as well; never mapped, it costs nothing.
    """
    loaded = read_pickle(file)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{file} holds a {type(loaded).__name__}, not named weights")
    for key in ("state_dict", "state_dict_ema"):
        if isinstance(loaded.get(key), Mapping):
            return _only_tensors(file, loaded[key])
    # Trainers keep several ({"model": …, "ema": …, "epoch": 3}): each is a component of the file, by its entry's name.
    parts = {name: part for name, part in loaded.items() if isinstance(name, str) and _is_state(part)}
    if parts:
        return {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.items()}
    return _only_tensors(file, loaded)


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(each, StoredTensor) for key, each in value.items())
    )


def _only_tensors(file: Path, state: Mapping[Any, Any]) -> dict[str, StoredTensor]:
    other = [
        reprlib.repr(name) if not isinstance(name, str) else name
        for name, value in state.items()
        if not isinstance(value, StoredTensor) or not isinstance(name, str)
    ]
    if other or not state:
        raise CheckpointError(
            f"{file} holds no state dict: expected named tensors, bare or under state_dict or "
            f"state_dict_ema, found {summary(other) or 'nothing'}"
        )
    return dict(state)
