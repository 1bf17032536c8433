"""Which model files the loaders offer, and where they are.

A name in a loader's list is one of: a file in one of ComfyUI's model folders; a folder there in diffusers' layout,
shown with a closing slash; a bundled model, shown as "bundled/…".
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import folder_paths

from ...pixart_core.errors import CheckpointError, read_description
from ...pixart_core.weightfolder import find_weights, is_shard, weight_sets

FOLDER = "pixart_delta"
"""ComfyUI model folder for whole downloads: models/pixart_delta/PixArt-LCM-XL-2-1024-MS/{transformer,vae,…}."""

BUNDLE = Path(__file__).resolve().parents[2] / "models"
_SEARCHED = {
    "model": ("diffusion_models", FOLDER, "checkpoints"),
    "text_encoder": ("text_encoders", FOLDER),
    "vae": ("vae", FOLDER),
    "lora": ("loras", FOLDER),
    "controlnet": ("controlnet", FOLDER),
    "hed": (FOLDER,),
    "pipeline": (FOLDER,),
}
_PART = {"model": "transformer", "text_encoder": "text_encoder", "vae": "vae", "controlnet": "controlnet"}
"""Sub-folder of a diffusers pipeline folder that a kind lives in."""
_BUNDLED = {
    "model": {
        "bundled/nano 256 (student)": "nano256/transformer",
        "bundled/nano 256 (base)": "nano256/base/pixart_nano_base.safetensors",
        "bundled/nano (student)": "nano/transformer",
        "bundled/nano (base)": "nano/base/pixart_nano_base.safetensors",
    },
    "text_encoder": {"bundled/nano 256": "nano256/text_encoder", "bundled/nano": "nano/text_encoder"},
    "vae": {"bundled/nano 256": "nano256/vae", "bundled/nano": "nano/vae"},
    "lora": {
        "bundled/nano 256 (LCM-LoRA)": "nano256/lcm_lora",
        "bundled/nano 256 (sepia)": "nano256/style_lora",
        "bundled/nano (LCM-LoRA)": "nano/lcm_lora",
        "bundled/nano (sepia)": "nano/style_lora",
    },
    "controlnet": {
        "bundled/nano 256 (HED ControlNet)": "nano256/controlnet",
        "bundled/nano (HED ControlNet)": "nano/controlnet",
    },
    "hed": {"bundled/nano (HED)": "nano/hed/hed.safetensors"},
    "pipeline": {"bundled/nano 256": "nano256", "bundled/nano": "nano"},
}
"""The family of 256 px first: in a folder without models, defaults are of one family."""
_PICTURES = {"bundled/nano scenes": "nano/scenes"}
HED_WEIGHTS = "ControlNetHED.pth"
"""The file of the released network."""
_DOWNLOADS = {HED_WEIGHTS: f"download {HED_WEIGHTS} from lllyasviel/Annotators on Hugging Face into models/{FOLDER}"}
_TRIED = 32
"""Files that are looked into for one that works."""
_DEPTH = 5
"""How deep folders are searched: as deep as the parts in a repository of the hub's cache lie."""
_CONTENT = {
    "model": ("pixart", "pixart+controlnet"),
    "controlnet": ("controlnet", "pixart+controlnet"),
    "text_encoder": ("t5",),
}
"""What `inspect_file` has to call a single file in models/pixart_delta, which holds files of all kinds, for it to be
offered; for kinds that are not listed, their own name."""
_EXAMPLES = ("nano256/examples", "nano/examples")


def register_folder() -> None:
    """Tell ComfyUI about models/pixart_delta (extra_model_paths.yaml may add more places for it)."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, folder_paths.supported_pt_extensions)


def names(kind: str) -> list[str]:
    """What a loader of `kind` (a key of `_SEARCHED`) offers, bundled models last."""
    return [*sorted(_found(kind)), *_bundled(kind)]


def locate(kind: str, name: str) -> str:
    """Path of an entry of `names`. Raises FileNotFoundError naming the folders that were searched."""
    path = _bundled(kind).get(name) or _found(kind).get(name)
    if path is None:
        searched = [root for folder in _SEARCHED[kind] for root in folder_paths.get_folder_paths(folder)]
        help_ = _DOWNLOADS.get(name, "choose a file from the list (press R to refresh it), or put the download there")
        raise FileNotFoundError(f"{name!r} is not in {', '.join(searched)}: {help_}")
    return path


def name_of(kind: str, path: Path) -> str:
    """How `names` calls a file or folder; its path, if it is in no list."""
    known = {**_found(kind), **_bundled(kind)}
    return next((name for name, place in known.items() if Path(place).resolve() == path.resolve()), str(path))


def first_usable(kind: str, use: str = "") -> str | None:
    """The first entry of `names` that is, going by its content, what it is listed as; those with PixArt in their name
    are looked at before others, and no more than a few. None if there is none.

    Args:
        use: "training" wants a model that trainings can start from: with a learned null caption, and not distilled.
    """
    found = _found(kind)
    likely = sorted(found, key=lambda name: ("pixart" not in name.lower(), name))[:_TRIED]
    candidates = [*((name, found[name]) for name in likely), *_bundled(kind).items()]
    return next((name for name, path in candidates if _is_usable(path, kind, use)), None)


def picture_folders() -> list[str]:
    """Names of folders with pictures to train on: those in ComfyUI's input folder, and the bundled one."""
    root = Path(folder_paths.get_input_directory())
    found = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return sorted(found) + [name for name, path in _PICTURES.items() if (BUNDLE / path).exists()]


def picture_folder(name: str) -> str:
    """Path of an entry of `picture_folders`."""
    return str(BUNDLE / _PICTURES[name] if name in _PICTURES else Path(folder_paths.get_input_directory()) / name)


def stamp(kind: str, name: str) -> str:
    """Changes when the file or folder behind a name does, so that ComfyUI loads it again."""
    path = Path(locate(kind, name))
    parts = sorted(path.iterdir()) if path.is_dir() else [path]
    return " ".join(f"{part.name}:{part.stat().st_mtime_ns}" for part in parts)


def example_pictures() -> list[str]:
    """Names of the bundled pictures."""
    return list(_examples())


def example_picture(name: str) -> str:
    """Path of an entry of `example_pictures`. Raises FileNotFoundError for any other name."""
    examples = _examples()
    if name not in examples:
        raise FileNotFoundError(f"{name!r} is none of the bundled pictures {', '.join(examples)}")
    return str(examples[name])


def _examples() -> dict[str, Path]:
    return {path.name: path for folder in _EXAMPLES for path in sorted((BUNDLE / folder).glob("*.png"))}


def _bundled(kind: str) -> dict[str, str]:
    """Name -> path of those of our models that are there."""
    return {name: str(BUNDLE / path) for name, path in _BUNDLED[kind].items() if (BUNDLE / path).exists()}


def _found(kind: str) -> dict[str, str]:
    """Name -> path of every candidate in ComfyUI's model folders."""
    found: dict[str, str] = {}
    for folder in _SEARCHED[kind]:
        for root in folder_paths.get_folder_paths(folder):
            for path in _folders(Path(root), kind, _DEPTH):
                found.setdefault(path.relative_to(root).as_posix() + "/", str(path))
            if kind == "pipeline":
                found |= {
                    path.parent.relative_to(root).as_posix() + "/": str(path.parent)
                    for path in _folders(Path(root), "text_encoder", _DEPTH)
                    if (path.parent / "vae").is_dir() and path.parent != Path(root)
                }
        for name in folder_paths.get_filename_list(folder):
            path = Path(folder_paths.get_full_path_or_raise(folder, name))
            in_folder = f"{Path(name).parent.as_posix()}/" in found
            if folder == FOLDER and (in_folder or not _is_kind(path, kind)):
                continue  # a part of a folder found above, or something else
            if not is_shard(path):
                found.setdefault(name, str(path))
            elif not in_folder:  # shards are offered as what they make, once
                whole = find_weights(path).path
                found.setdefault((Path(name).parent / whole.name).as_posix(), str(whole))
    return found


def _folders(root: Path, kind: str, depth: int) -> list[Path]:
    """Folders below `root` that hold one model of a kind: those that are called as its part of a pipeline, and those
    whose config.json says so, whatever they are called."""
    if kind in ("pipeline", "hed") or depth == 0:
        return []
    found = []
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir())
    except OSError:
        return []
    for path in folders:
        named = path.name == _PART.get(kind) and ((path / "config.json").is_file() or bool(weight_sets(path)))
        if named or (_is_described(path, kind) and weight_sets(path)):
            found.append(path)
        else:
            found += _folders(path, kind, depth - 1)
    return found


def _is_described(folder: Path, kind: str) -> bool:
    file = folder / ("adapter_config.json" if kind == "lora" else "config.json")
    if not file.is_file():
        return False
    from ...pixart_core import convert, t5, vae

    asks = {"model": convert.is_transformer, "text_encoder": t5.is_t5, "vae": vae.is_autoencoder}
    try:
        return kind == "lora" or (kind in asks and asks[kind](read_description(file)))
    except CheckpointError:
        return False


def _is_kind(path: Path, kind: str) -> bool:
    return path.is_file() and _about(path)[0] in _CONTENT.get(kind, (kind,))


def _is_usable(path: str, kind: str, use: str) -> bool:
    if kind == "pipeline":
        return True  # a folder with the parts that were looked for
    is_kind = _about(Path(path))[0] in _CONTENT.get(kind, (kind,))
    return is_kind and (not use or use in _about(Path(path))[1])


def _about(path: Path) -> tuple[str, tuple[str, ...]]:
    try:
        files = [path, *(sorted(path.iterdir()) if path.is_dir() else ())]
        state = [(file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    except OSError:
        return "", ()
    return _inspected(str(path), tuple(state))


@functools.lru_cache(maxsize=1024)
def _inspected(path: str, _state: tuple) -> tuple[str, tuple[str, ...]]:
    """What a file or folder is, and what it can be used for; "" for one that cannot be read. Kept until it changes."""
    from ...pixart_core.identify import inspect_file, is_distilled
    from ...pixart_core.lora import is_for_pixart

    try:
        info = inspect_file(path)
        if info.kind == "lora" and not is_for_pixart(path):
            return "lora of another model", ()
        is_base = bool(info.null_caption) and not is_distilled(info)
        return info.kind, ("training",) if is_base else ()
    except (CheckpointError, OSError):
        return "", ()
