"""PixArt checkpoints: load them strictly from any layout that `identify` knows, save them in two of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .aliases import Device, PathLike
from .config import PixArtConfig
from .controlnet import WIRINGS, ControlNetTransformer
from .convert import authors_to_diffusers, config_to_diffusers, position_buffer
from .errors import CheckpointError, summary
from .identify import METADATA_KEY, FileInfo, Section, control_section, count_blocks, identify, inspect_file, sections
from .layers import is_in_stream, stream_dtype
from .model import PixArt
from .modelspec import modelspec
from .preview import preview_colours
from .saving import save_json, save_weights
from .weightfile import WeightFile, open_weights

logger = logging.getLogger(__name__)

_OPTIONAL = ("pos_embed", "y_embedder.y_embedding")  # diffusers' layout drops them; the model does without


def _expected(config: PixArtConfig, copy_blocks_num: int = 0) -> dict[str, tuple[int, ...]]:
    model = (
        ControlNetTransformer(config, copy_blocks_num, device="meta")
        if copy_blocks_num
        else PixArt(config, device="meta")
    )
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _problems(
    shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], optional: tuple[str, ...] = ()
) -> list[str]:
    """What keeps tensors of these shapes from being the expected ones, in words."""
    missing = [name for name in expected if name not in shapes and name not in optional]
    extra = [name for name in shapes if name not in expected]
    wrong = [
        f"{name} is {list(shapes[name])} instead of {list(expected[name])}"
        for name in expected
        if name in shapes and tuple(shapes[name]) != expected[name]
    ]
    return (
        ([f"it lacks {summary(missing)}"] if missing else [])
        + ([f"it has unknown {summary(extra)}"] if extra else [])
        + ([summary(wrong, 3)] if wrong else [])
    )


def _require(path: Path, shapes: Mapping[str, tuple[int, ...]], config: PixArtConfig, copy_blocks_num: int = 0) -> None:
    if (copy_blocks_num or config.depth) > len(shapes):  # before a block is built of what is only claimed
        problems = [f"it has only {len(shapes)} tensors"]
    else:
        problems = _problems(shapes, _expected(config, copy_blocks_num), _OPTIONAL)
    if problems:
        what = f"ControlNet of {copy_blocks_num} blocks" if copy_blocks_num else "transformer"
        raise CheckpointError(
            f"{path} does not fit a PixArt {what} of hidden size {config.hidden_size}, depth "
            f"{config.depth}: {'; '.join(problems)}"
        )


def _needs_config(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is a PixArt file that does not say its number of attention heads or its position "
        "grid, and its shapes are not those of exactly one released PixArt-α model: keep diffusers' config.json (of "
        "the same shape) beside it, or save the model with the node “PixArt-δ Save Checkpoint”, which writes them into "
        "the file (in Python: config=PixArtConfig(…))"
    )


def read_pixart(
    path: PathLike,
    dtype: torch.dtype | None = None,
    device: Device = None,
    config: PixArtConfig | None = None,
    exact_stream: bool = False,
) -> tuple[PixArtConfig, dict[str, Tensor]]:
    """The configuration and state dict (authors' names) of a transformer in any layout, checked name by name.

    Args:
        path: file, diffusers folder, pipeline folder, or index of shards.
        dtype: to cast to; None = the file's, or the widest if it mixes several (bfloat16 for float8).
        device: to put the weights on; on the CPU they stay memory-mapped where nothing has to be computed.
        config: for files of unreleased shapes that do not describe themselves; wins over what the file says.
        exact_stream: to compute with: the modules that `layers.is_in_stream` names are float32 at least.

    Returns:
        The state has `pos_embed` always and `y_embedder.y_embedding` only if the file has it.

    Raises:
        CheckpointError: if it is not a PixArt-α/δ transformer, is damaged, or does not fit its configuration.
    """
    file, _, base, config = _checked(path, config)
    if base.left_out:
        logger.warning("%s: the transformer is taken; left out are %s", file.path, summary(base.left_out, 3))
    dtype = _dtype(file, base, dtype)
    stream: dict[str, torch.dtype] = {}
    if exact_stream:
        stored = file.require_numbers(names[0] for names in base.plan.values())
        stream = {
            name: stream_dtype(dtype or stored[names[0]]) for name, names in base.plan.items() if is_in_stream(name)
        }
    state = file.assemble(base.plan, dtype, device, stream)
    if "pos_embed" not in state:
        state["pos_embed"] = position_buffer(config).to(state["blocks.0.attn.proj.weight"])
    return config, state


def describe_pixart(path: PathLike) -> tuple[PixArtConfig, FileInfo]:
    """The configuration of a transformer, and what its file says, of which only the transformer's numbers are counted;
    from names and shapes alone.

    Raises:
        CheckpointError: as `read_pixart`, but for what only the numbers tell.
    """
    _, info, base, config = _checked(path)
    return config, replace(info, parameters=sum(torch.Size(shape).numel() for shape in base.shapes.values()))


def _checked(path: PathLike, config: PixArtConfig | None = None) -> tuple[WeightFile, FileInfo, Section, PixArtConfig]:
    """A file, the transformer in it and its configuration; raises CheckpointError as `read_pixart`."""
    file = open_weights(path)
    info = identify(file)
    base, _ = sections(file)
    if base is None or info.kind not in ("pixart", "pixart+controlnet") and not (config and info.kind == "sigma"):
        raise CheckpointError(f"{path} is not a PixArt-α/δ transformer but {info.describe()}")
    config = config or info.config
    if config is None:
        raise _needs_config(file.path)
    _require(file.path, base.shapes, config)
    return file, info, base, config


def _dtype(file: WeightFile, section: Section, asked: torch.dtype | None) -> torch.dtype | None:
    """What to cast a section to: what was asked for; None where it has one type that can be computed with. What is
    float32 in every model does not count."""
    stored = file.require_numbers([name for names in section.plan.values() for name in names])
    if asked:
        return asked
    counted = [names for target, names in section.plan.items() if not is_in_stream(target)]
    found = {stored[name] for names in counted for name in names}
    widest = max(found, key=lambda dtype: dtype.itemsize)
    if widest.itemsize == 1:
        return torch.bfloat16
    return None if len(found) == 1 else widest


def load_pixart(
    path: PathLike, dtype: torch.dtype | None = None, device: Device = None, config: PixArtConfig | None = None
) -> PixArt:
    """A transformer from a file or folder in any known layout, strict, in eval mode.

    The weights are the mapped file itself as long as they need no cast, no fusing and no other device.

    Args and raises: as `read_pixart`.
    """
    config, state = read_pixart(path, dtype, device, config, exact_stream=True)
    model = PixArt(config, device="meta")
    if "y_embedder.y_embedding" not in state:
        model.y_embedder.y_embedding = None
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def save_pixart(
    model_or_state: PixArt | Mapping[str, Tensor],
    path: PathLike,
    layout: str = "authors",
    config: PixArtConfig | None = None,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, Any] | None = None,
    max_shard_size: str | int | None = None,
) -> Path:
    """Save a transformer as safetensors, atomically, with its configuration in the metadata.

    Args:
        model_or_state: the model, or its state dict in the authors' names (then `config` is needed).
        path: a .safetensors file (layout "authors"), or a folder (layout "diffusers"; made if missing), which then
            holds config.json and diffusion_pytorch_model.safetensors as diffusers' from_pretrained wants them.
        layout: "authors" or "diffusers".
        config: the shape; None = the model's.
        dtype: to save in; None = as it is.
        metadata: JSON-able values to store beside the configuration.
        max_shard_size: split the diffusers layout into files of at most this size ("2GB", bytes).

    Raises:
        CheckpointError: if the state does not fit `config`, or the disk is full; nothing half written stays.
    """
    config, state = _model_state(model_or_state, config, path)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    _require(Path(path), shapes, config)
    state = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in state.items()}
    header = _header("pixart", config, metadata)
    if layout == "authors":
        return save_weights(state, path, header)
    if layout != "diffusers":
        raise CheckpointError(f"unknown layout {layout!r}: choose authors or diffusers")
    folder = Path(path)
    if folder.suffix == ".safetensors":
        raise CheckpointError(f"the diffusers layout is a folder, got the file name {folder}")
    try:
        description = config_to_diffusers(config)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    _save_sharded(authors_to_diffusers(state), folder, header, max_shard_size)
    save_json(description, folder / "config.json")
    return folder


def _save_sharded(
    state: dict[str, Tensor], folder: Path, header: dict[str, str], max_shard_size: str | int | None
) -> None:
    name = "diffusion_pytorch_model.safetensors"
    if max_shard_size is None:
        save_weights(state, folder / name, header)
        return
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(
        state, filename_pattern="diffusion_pytorch_model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        save_weights({name: state[name] for name in names}, folder / file, header)
    if split.is_sharded:
        save_json({"metadata": split.metadata, "weight_map": split.tensor_to_filename}, folder / f"{name}.index.json")


def _model_state(
    model_or_state: PixArt | ControlNetTransformer | Mapping[str, Tensor], config: PixArtConfig | None, path: PathLike
) -> tuple[PixArtConfig, dict[str, Tensor]]:
    if isinstance(model_or_state, nn.Module):
        return config or model_or_state.config, dict(model_or_state.state_dict())
    if config is None:
        raise CheckpointError(f"saving a state dict to {path} needs its configuration: give config=")
    return config, dict(model_or_state)


def _header(kind: str, config: PixArtConfig, metadata: Mapping[str, Any] | None, **more: Any) -> dict[str, str]:
    about = {**(metadata or {}), "kind": kind, "config": config.to_dict(), **more}
    return {METADATA_KEY: json.dumps(about), **modelspec(kind, about, config)}


def read_controlnet(
    path: PathLike,
    dtype: torch.dtype | None = None,
    device: Device = None,
    config: PixArtConfig | None = None,
) -> tuple[PixArtConfig, int, str, dict[str, Tensor]]:
    """The base's configuration, copied blocks, wiring (a key of `controlnet.WIRINGS`) and state dict of a ControlNet.

    Takes the authors' joint file (base and control), a control-only file, and the layout of diffusers' example
    (`controlnet_blocks.{i}.…`). A released control-only file does not say whether its base is the 512 or the 1024 px
    model; as control reads only the width and the heads, which both share, the 1024 px one is reported.

    Args and raises: as `read_pixart`.
    """
    file = open_weights(path)
    info = identify(file)
    control = control_section(file)
    if control is None or info.kind not in ("controlnet", "pixart+controlnet"):
        raise CheckpointError(f"{path} is not a PixArt ControlNet but {info.describe()}")
    config = config or info.config
    if config is None:
        raise _needs_config(file.path)
    _require_copies(file.path, config, control.copies, info.wiring)
    _require(file.path, control.shapes, config, control.copies)
    state = file.assemble(control.plan, _dtype(file, control, dtype), device)
    return config, control.copies, info.wiring, state


def _require_copies(path: Path, config: PixArtConfig, copies: int, wiring: str) -> None:
    try:
        WIRINGS[wiring].check_copies(config, copies)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: a ControlNet of {copies} blocks does not fit a base model of depth {config.depth}: {error}"
        ) from error


def load_controlnet(
    path: PathLike, dtype: torch.dtype | None = None, device: Device = None, config: PixArtConfig | None = None
) -> ControlNetTransformer:
    """A ControlNet from any layout of `read_controlnet`, strict, in eval mode, memory-mapped.

    Of class `ControlNetUNet` where the file says so.
    """
    config, copy_blocks_num, wiring, state = read_controlnet(path, dtype, device, config)
    control = WIRINGS[wiring](config, copy_blocks_num, device="meta")
    control.load_state_dict(state, strict=True, assign=True)
    return control.eval()


def save_controlnet(
    model_or_state: ControlNetTransformer | Mapping[str, Tensor],
    path: PathLike,
    layout: str = "authors",
    config: PixArtConfig | None = None,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, Any] | None = None,
    base: PixArt | Mapping[str, Tensor] | None = None,
    wiring: str | None = None,
) -> Path:
    """Save a ControlNet as a safetensors file.

    Args:
        wiring: a key of `controlnet.WIRINGS`; None = the model's, "transformer" for a state dict.
        layout: "authors" (`controlnet.{i}.…`) or "diffusers" (the example's `controlnet_blocks.{i}.…`).
        base: with it the file becomes the authors' joint one: `base_model.…` and `controlnet.…`.
        Others: as in `save_pixart`.

    Raises:
        CheckpointError: as `save_pixart`.
    """
    config, state = _model_state(model_or_state, config, path)
    copies = count_blocks(state, "controlnet.")
    if wiring is None:
        wiring = str(getattr(model_or_state, "wiring", ControlNetTransformer.wiring))
    _require_copies(Path(path), config, copies, wiring)
    _require(Path(path), {name: tuple(tensor.shape) for name, tensor in state.items()}, config, copies)
    kind = "controlnet"
    if layout == "diffusers":
        if base is not None:
            raise CheckpointError("the joint file exists in the authors' layout only")
        state = authors_to_diffusers(state)
    elif layout != "authors":
        raise CheckpointError(f"unknown layout {layout!r}: choose authors or diffusers")
    if base is not None:
        _, weights = _model_state(base, config, path)
        _require(Path(path), {name: tuple(tensor.shape) for name, tensor in weights.items()}, config)
        state = {f"base_model.{name}": tensor for name, tensor in weights.items()} | state
        kind = "pixart+controlnet"
    state = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in state.items()}
    return save_weights(state, path, _header(kind, config, metadata, copy_blocks_num=copies, wiring=wiring))


def split_controlnet(
    joint: PathLike,
    base_path: PathLike,
    control_path: PathLike,
    dtype: torch.dtype | None = None,
) -> tuple[Path, Path]:
    """Write the authors' joint file as two safetensors files: the base model and the ControlNet.

    Raises:
        CheckpointError: if `joint` does not hold both.
    """
    info = inspect_file(joint)
    if info.kind != "pixart+controlnet":
        raise CheckpointError(f"{joint} is not a base model and its ControlNet in one file but {info.describe()}")
    config, base = read_pixart(joint)
    _, _, wiring, control = read_controlnet(joint)
    return (
        save_pixart(base, base_path, config=config, dtype=dtype, metadata=preview_colours(info)),
        save_controlnet(control, control_path, config=config, dtype=dtype, wiring=wiring),
    )


def merge_controlnet(
    base_path: PathLike,
    control_path: PathLike,
    joint: PathLike,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a base model and a ControlNet, each in any layout, as the authors' joint file (as safetensors).

    Raises:
        CheckpointError: if they do not belong to the same shape of model.
    """
    config, base = read_pixart(base_path)
    _, _, wiring, control = read_controlnet(control_path, config=config)
    colours = preview_colours(inspect_file(base_path))
    return save_controlnet(control, joint, config=config, dtype=dtype, metadata=colours, base=base, wiring=wiring)
