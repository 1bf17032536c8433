"""Which folders a training that is asked for from a browser may read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import folder_paths

from ...training.config import Kind, PrepareConfig, Settings
from ...training.prepare.inside import is_inside
from ..bridge import files

ROOTS_VARIABLE = "PIXART_DELTA_ROOTS"
"""Environment variable with which who runs the server lists more folders, separated as in PATH."""
_OWN = ("run", "output", "only_inside")
"""Settings that are chosen here: where a job writes, and what it may read, is not for others to say."""
_LISTED = {"base": "model", "student": "model", "models": "pipeline", "hed": "hed", "lora": "lora"}
"""Settings that may also be a name from a loader's list (`files.names`)."""


class PathError(ValueError):
    """A path that may not be read, or is not there."""


def allowed_roots() -> list[str]:
    """ComfyUI's input, output and models folders, the bundled models, and what the operator lists."""
    told = [part for part in os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep) if part]
    kinds = folder_paths.folder_names_and_paths
    models = [path for kind, (paths, _) in kinds.items() if kind != "custom_nodes" for path in paths]
    roots = [*_bases(), folder_paths.models_dir, str(files.BUNDLE)]
    return list(dict.fromkeys(map(os.path.realpath, [*roots, *models, *told])))


def is_allowed(path: str | Path) -> bool:
    """Whether a file or folder is, links followed, inside an allowed folder."""
    return is_inside(Path(path), allowed_roots())


def inside_roots(text: str) -> str:
    """The real path of a file or folder, given absolute or relative to ComfyUI's input or output folder.

    Raises:
        PathError: if it is not there, or, links followed, not inside an allowed folder.
    """
    if "\0" in text or "://" in text or text.startswith("pipe:"):
        raise PathError(f"{text[:200]!r} is not a path: only folders of this machine can be read from here")
    named = [path for path in (os.path.join(base, text) for base in _bases()) if _on_known_drive(path)]
    allowed = [path for path in map(os.path.realpath, named) if is_allowed(path)]
    if not allowed:
        raise PathError(
            f"{text[:200]!r} is not in a folder that trainings may read: use ComfyUI's input, output or models folder, "
            f"or list another in the environment variable {ROOTS_VARIABLE}"
        )
    found = next((path for path in allowed if os.path.exists(path)), None)
    if found is None:
        raise PathError(f"there is no {text[:200]!r} in ComfyUI's input or output folder")
    return found


def listed(values: Mapping[str, Any]) -> dict[str, str]:
    """The paths of those settings, of values or texts, that are a name from a loader's list (`files.names`)."""
    named = {name: kind for name, kind in _LISTED.items() if values.get(name)}
    return {name: files.locate(kind, values[name]) for name, kind in named.items() if values[name] in files.names(kind)}


def checked_settings(kind: type[Kind], values: Mapping[str, Any], known: Mapping[str, str]) -> Kind:
    """Settings as they came from outside, with every path that they read checked and made absolute. Where the job
    writes is left to the queue.

    Args:
        known: paths that need no check, in the place of what `values` say: see `listed`.

    Raises:
        ConfigError: naming the setting that is wrong.
        PathError: on a path that may not be read, and on a place to write to.
    """
    if own := [name for name in _OWN if name in values]:
        raise PathError(f"{own[0]} is chosen by the queue: give the job a name instead")
    config = kind.make({**values, **known, kind.required[0]: "chosen-by-the-queue"})
    checked = {name: inside_roots(value) for name, value in _files_read(config) if name not in known}
    return _confined(replace(config, **checked))


def check_start(config: Settings) -> Settings:
    """The settings of a job that is to be started, with what it may read as it is now.

    Args:
        config: the places where it writes are chosen by the queue.

    Raises:
        PathError: unless every path that it reads is absolute and, links followed, in an allowed folder.
    """
    for name, value in _files_read(config):
        if not (os.path.isabs(value) and _on_known_drive(value) and is_allowed(value)):
            raise PathError(
                f"{name} is {value[:200]!r}, which is not, links followed, in a folder that trainings may read "
                f"({ROOTS_VARIABLE} lists more)"
            )
    return _confined(config)


def _confined(config: Kind) -> Kind:
    """The settings with what the job may read, where it finds files itself."""
    return replace(config, only_inside=allowed_roots()) if isinstance(config, PrepareConfig) else config


def _bases() -> list[str]:
    """The folders that a path may be relative to."""
    return [folder_paths.get_input_directory(), folder_paths.get_output_directory()]


def _files_read(config: Settings) -> Iterator[tuple[str, str]]:
    """Name and value of every setting that names a file or folder to read."""
    for each in fields(config):
        if each.metadata.get("path") and each.name not in _OWN and getattr(config, each.name):
            yield each.name, getattr(config, each.name)


def _on_known_drive(path: str) -> bool:
    """Whether a path is, as text, on the drive of an allowed folder. Everywhere but on Windows there are none.

    There, only to look at \\\\host\\share signs in to that host.
    """
    drives = {os.path.splitdrive(root)[0].lower() for root in allowed_roots()}
    return os.path.splitdrive(path)[0].lower() in drives
