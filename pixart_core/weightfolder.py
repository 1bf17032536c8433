"""Which files make one set of weights: the names that transformers, diffusers, PEFT and the hub's cache give them.

A set is an index with its shards (`NAME.safetensors.index.json`, `NAME.bin.index.json`, with a variant
`NAME.safetensors.index.fp16.json`), a row of `NAME-00001-of-00003.EXT` without an index, or a single file. Names are
read by their form, so that every variant and every container that the libraries write is found; the few stems that
they use only say which of several sets is meant.
"""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError, MissingFileError, field, read_description, summary

SUFFIXES = (".safetensors", ".sft", ".bin", ".pth", ".pt", ".ckpt", ".gguf")
"""Suffixes of files of weights; what a file is, its content says."""
# What libraries call the only weights of a folder, best first.
_STEMS = ("diffusion_pytorch_model", "adapter_model", "pytorch_lora_weights", "model", "pytorch_model")
_INDEX = re.compile(r"\.index(\.[\w-]+)?\.json")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.)")


@dataclass(frozen=True)
class WeightSet:
    """The files that one model is read from."""

    path: Path
    """The index, or the first file: what stands for the set."""
    files: tuple[Path, ...]
    missing: tuple[str, ...] = ()
    """Names of files that belong to it and are not there."""
    listed: Mapping[str, set[str]] | None = None
    """File name -> the tensors that the index has in it; None without an index: all that the files hold."""

    @property
    def conventional(self) -> bool:
        """Whether it has a name that libraries give to the only weights of a folder."""
        return self._stem in _STEMS

    @property
    def sharded(self) -> bool:
        return self.path.name.endswith(".json") or len(self.files) > 1

    @property
    def _base(self) -> str:
        name = _INDEX.sub("", self.path.name)
        return _SHARD.sub("", name).removesuffix(self._suffix)

    @property
    def _suffix(self) -> str:
        return next((suffix for suffix in SUFFIXES if _INDEX.sub("", self.path.name).lower().endswith(suffix)), "")

    @property
    def _stem(self) -> str:
        return next((stem for stem in _STEMS if self._base == stem or self._base.startswith(stem + ".")), self._base)

    @property
    def _variant(self) -> str:
        index = _INDEX.search(self.path.name)
        return (index and index[1] or "") + self._base[len(self._stem) :]

    @property
    def rank(self) -> tuple[object, ...]:
        """Sorts sets by which is to be taken: one of which nothing is there last, else by container, variant and name.
        One that is there in part is not passed over: it is a download that has to be finished."""
        stem = _STEMS.index(self._stem) if self.conventional else len(_STEMS)
        container = self._suffix not in (".safetensors", ".sft")
        no_index = not self.path.name.endswith(".json")
        return (not self.files, not self.conventional, container, self._variant, stem, len(self.files) > 1, no_index)


def weight_sets(folder: Path) -> list[WeightSet]:
    """The sets of weights in a folder, the one to be taken first. A folder that cannot be read has none."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    sets = [
        found
        for name in names
        if _INDEX.search(name) and (folder / name).is_file() and (found := _indexed_or_broken(folder / name))
    ]
    listed = {file.name for each in sets for file in each.files} | {name for each in sets for name in each.missing}
    free = [name for name in names if name not in listed and name.lower().endswith(SUFFIXES) and name[0] != "."]
    rows: dict[str, list[str]] = {}
    for name in free:
        rows.setdefault(_SHARD.sub(r"-of-\2", name), []).append(name)
    sets += [_row(folder, row) for row in rows.values() if not (folder / row[0]).is_dir()]
    return sorted(sets, key=lambda each: each.rank)


def is_shard(file: Path) -> bool:
    """Whether a file is one of a whole row of files that make one model."""
    found = _set_of(file) if _SHARD.search(file.name) else None
    return found is not None and found.sharded and not found.missing


def find_weights(path: Path) -> WeightSet:
    """The set of weights that a path means: a file, a shard, an index, a folder, a pipeline folder with transformer/ in
    it, or a repository in the hub's cache.

    Raises:
        CheckpointError: if there is none, several could be meant, or files are missing.
    """
    if path.is_file():
        found = _set_of(path)
    elif path.is_dir():
        found = _in_folder(snapshot(path), "transformer")
    elif path.is_symlink():
        raise CheckpointError(f"{path} is a link to a file that is not there: finish the download, or copy it again")
    else:
        raise MissingFileError(f"{path} does not exist: check the path, or download the file and put it there")
    if found.missing == (found.path.name,) and found.path.is_symlink():
        raise CheckpointError(f"{found.path} is a link to a file that is not there: finish the download")
    if found.missing:
        if _INDEX.search(found.path.name):
            _indexed(found.path)  # if the index itself is what is wrong, says how
        raise CheckpointError(
            f"{found.path} lists {len(found.files) + len(found.missing)} files, of which these are missing: "
            f"{summary(found.missing)}"
        )
    return found


def snapshot(path: Path) -> Path:
    """The newest snapshot in a repository's folder of the hub's cache (`models--…`); any other path as it is."""
    snapshots = path / "snapshots"
    if not snapshots.is_dir():
        return path
    main = path / "refs" / "main"
    named = snapshots / main.read_text("utf-8").strip() if main.is_file() else snapshots
    if named != snapshots and named.is_dir():
        return named
    found = [each for each in snapshots.iterdir() if each.is_dir()]
    return max(found, key=lambda each: each.stat().st_mtime, default=path)


def find_part(path: Path, part: str, is_it: Callable[[dict[str, Any]], bool]) -> Path:
    """The folder of one model in a download: `part`/ of a pipeline folder, the folder itself, or the one sub-folder
    whose config.json says that it is (the authors' `t5-v1_1-xxl`, `sd-vae-ft-ema`).

    Args:
        is_it: whether a config.json's values describe that model.

    Raises:
        CheckpointError: if several sub-folders could be meant.
    """
    path = snapshot(path)
    if (path / part).is_dir():
        return path / part
    if (path / "config.json").is_file() or not path.is_dir():
        return path
    found = [each for each in sorted(path.iterdir()) if (each / "config.json").is_file() and _is(each, is_it)]
    if len(found) > 1:
        names = [each.name + "/" for each in found]
        raise CheckpointError(f"the folder {path} holds several models for {part}, choose one: {summary(names)}")
    return found[0] if found else path


def _is(folder: Path, is_it: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        return is_it(read_description(folder / "config.json"))
    except CheckpointError:
        return False


def _in_folder(folder: Path, part: str) -> WeightSet:
    pipeline = (folder / "model_index.json").is_file()
    sets = [] if pipeline and (folder / part).is_dir() else weight_sets(folder)
    if not sets and part and (folder / part).is_dir():
        return _in_folder(folder / part, "")
    if not sets:
        raise MissingFileError(
            f"the folder {folder} holds no weights: expected one of diffusion_pytorch_model.safetensors, "
            "model.safetensors, adapter_model.safetensors, … or a pipeline folder with model_index.json and "
            f"{part or 'transformer'}/"
        )
    whole = [each for each in sets if not each.missing]
    if len(whole) > 1 and not whole[0].conventional:
        names = [each.path.name for each in whole]
        raise CheckpointError(f"the folder {folder} holds several files of weights, choose one: {summary(names)}")
    return sets[0]


def _set_of(file: Path) -> WeightSet:
    """The set that a file stands for: an index or a shard for the whole, anything else for itself."""
    if _INDEX.search(file.name):
        return _indexed(file)
    if _SHARD.search(file.name):
        mine = [each for each in weight_sets(file.parent) if file.name in {part.name for part in each.files}]
        if mine and mine[0].sharded:
            return mine[0]
    return WeightSet(file, (file,))


def _indexed(index: Path) -> WeightSet:
    """The shards that an index lists. Raises CheckpointError when it is another JSON file, or damaged."""
    listed: dict[str, set[str]] = {}
    try:
        for tensor, name in field(read_description(index), "weight_map", dict).items():
            if not isinstance(name, str):
                raise ValueError("its weight_map gives no file names")
            listed.setdefault(name, set()).add(tensor)
        if not listed:
            raise ValueError("its weight_map is empty")
    except ValueError as error:
        raise CheckpointError(f"{index} is no index of sharded safetensors or PyTorch files: {error}") from error
    outside = [name for name in listed if re.search(r"[/\\\0]", name) or name in ("", ".", "..") or len(name) > 255]
    if outside:
        raise CheckpointError(f"{index} lists what is no file of its folder: {summary(map(reprlib.repr, outside))}")
    there = {name: (index.parent / name).is_file() for name in sorted(listed)}
    files = tuple(index.parent / name for name in there if there[name])
    return WeightSet(index, files, tuple(name for name in there if not there[name]), listed)


def _indexed_or_broken(index: Path) -> WeightSet | None:
    """As `_indexed`; a damaged index is a set that lacks everything, another JSON file none."""
    try:
        return _indexed(index)
    except CheckpointError:
        weights = _INDEX.sub("", index.name).endswith(SUFFIXES)
        return WeightSet(index, (index,), (index.name,)) if weights else None


def _row(folder: Path, names: list[str]) -> WeightSet:
    """Files of one name that differ in their number only: shards whose index was not copied with them, or one file."""
    mark = _SHARD.search(names[0])
    if mark is None:
        whole = (folder / names[0]).is_file()  # and not a link to nothing
        return WeightSet(folder / names[0], (folder / names[0],) if whole else (), () if whole else tuple(names))
    wanted = [_SHARD.sub(f"-{number:05d}-of-{mark[2]}", names[0]) for number in range(1, int(mark[2]) + 1)]
    files = tuple(folder / name for name in wanted if (folder / name).is_file())
    missing = tuple(name for name in wanted if not (folder / name).is_file())
    return WeightSet(folder / names[0], files, missing)
