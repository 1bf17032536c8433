"""PixArt checkpoints: say what a file is, load it strictly from any known layout, save it in two of them.

A file is known by its content, never by its name. What it cannot tell (the number of heads, say) comes from metadata
that we write, from diffusers' config.json, or from the released shapes; if none of them speaks, the caller must.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import PIXART_256, PIXART_512, PIXART_1024_MS, PixArtConfig
from .controlnet import WIRINGS, ControlNetTransformer
from .convert import (
    authors_to_diffusers,
    config_from_diffusers,
    config_to_diffusers,
    diffusers_sources,
    position_buffer,
    summary,
)
from .model import PixArt
from .weightfile import CheckpointError, TensorInfo, WeightFile, open_weights, save_json, save_weights

METADATA_KEY = "pixart_delta"
"""Of safetensors files: JSON with `kind`, `config` and whatever else the maker wanted to say."""

_OPTIONAL = ("pos_embed", "y_embedder.y_embedding")  # diffusers' layout drops them; the model does without

# What precedes the names of a transformer: nothing, ComfyUI, the authors' joint file, DistributedDataParallel.
_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "base_model.", "module.", "module.base_model.", "model.",
             "transformer.")
_CONTROL_PREFIXES = ("", "module.", "controlnet.", "model.")
# A whole checkpoint saved by ComfyUI carries these beside its transformer.
_OTHER_COMPONENTS = ("first_stage_model.", "vae.", "text_encoders.", "cond_stage_model.", "model_ema.")

_AUTHORS_MARKS = ("x_embedder.proj.weight", "y_embedder.y_proj.fc1.weight", "blocks.0.cross_attn.kv_linear.weight")
_DIFFUSERS_MARKS = ("pos_embed.proj.weight", "caption_projection.linear_1.weight",
                    "transformer_blocks.0.attn2.to_k.weight")

_RELEASED_CONTROL = 1152  # hidden size of the released ControlNets, whose shapes do not tell 512 from 1024 px

# Other files, by a part of a tensor name that only they have; the first match counts.
_OTHER_KINDS = (
    ("lora", ("lora_A", "lora_B", "lora_up", "lora_down", "lora.up", "lora.down", "lora_linear_layer", "hada_w1",
              "lokr_w1")),
    ("sd-controlnet", ("control_model.", "input_hint_block.", "controlnet_cond_embedding.")),
    ("sd", ("input_blocks.0.0.weight", "down_blocks.0.resnets.0.time_emb_proj.weight",
            "down_blocks.1.resnets.0.time_emb_proj.weight")),
    ("other transformer", ("double_blocks.", "joint_blocks.", "joint_transformer_blocks.", "single_transformer_blocks.",
                           "x_embedder.proj", "img_in.")),
    ("t5", ("block.0.layer.0.SelfAttention.q.weight",)),
    ("clip", ("text_model.encoder.layers.0.", "transformer.resblocks.0.")),
    ("vae", ("decoder.conv_in.weight", "encoder.conv_in.weight", "taesd_decoder.", "taesd_encoder.",
             "decoder.layers.0.weight", "decoder.layers.1.weight", "first_stage_model.")),
    ("hed", ("block1.convs.0.weight",)),
)

_DESCRIPTIONS = {
    "pixart": ("a PixArt transformer", "the node “PixArt-δ Model Loader”"),
    "pixart+controlnet": ("a PixArt transformer with its ControlNet in one file",
                          "the nodes “PixArt-δ Model Loader” and “PixArt-δ ControlNet Loader”"),
    "controlnet": ("a PixArt ControlNet without its base model", "the node “PixArt-δ ControlNet Loader”"),
    "sigma": ("a PixArt-Σ transformer (300 tokens, SDXL's autoencoder), not PixArt-α/δ",
              "ComfyUI's own node “Load Diffusion Model”"),
    "lora": ("a LoRA", "the node “PixArt-δ LoRA Loader”"),
    "sd-controlnet": ("a ControlNet of another model family", "ComfyUI's own node “Load ControlNet Model”"),
    "sd": ("a Stable Diffusion UNet or checkpoint", "ComfyUI's own nodes “Load Checkpoint” and “Load Diffusion Model”"),
    "other transformer": ("a diffusion transformer of another family", "ComfyUI's own node “Load Diffusion Model”"),
    "t5": ("a T5 text encoder", "the node “PixArt-δ Text Encoder Loader”"),
    "clip": ("a CLIP text encoder, which PixArt does not use", "ComfyUI's own node “Load CLIP”"),
    "vae": ("an autoencoder (VAE)", "ComfyUI's own node “Load VAE” or “PixArt-δ VAE Loader”"),
    "hed": ("a HED edge detector", "the node “PixArt-δ HED Preprocessor”"),
    "unknown": ("nothing that PixArt knows", ""),
}


@dataclass(frozen=True)
class FileInfo:
    """What a file of weights is."""

    path: Path
    kind: str
    """pixart, pixart+controlnet, controlnet, lora, sigma, sd, sd-controlnet, other transformer, t5, clip, vae, hed or
    unknown."""
    layout: str
    """authors, comfyui or diffusers; "" where that means nothing."""
    config: PixArtConfig | None
    """Of PixArt files; None where neither the file nor the released shapes tell."""
    dtype: torch.dtype | None
    """The widest floating-point type in the file."""
    parameters: int
    """Numbers in the file."""
    copy_blocks_num: int = 0
    """Copied blocks of the ControlNet in it."""
    wiring: str = ""
    """How these are connected: "transformer", or "unet" (files of this project only)."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What a file of this project says of itself."""
    names: tuple[str, ...] = ()
    """The first few tensor names, for messages."""

    def describe(self) -> str:
        """What it is and what takes it, to put into a sentence."""
        what, taker = _DESCRIPTIONS[self.kind]
        return f"{what}, which {taker} takes" if taker else f"{what} (it begins with {summary(self.names, 3)})"


def inspect_file(path: str | os.PathLike) -> FileInfo:
    """Say what a file or folder is, from names and shapes alone: no weights are read.

    Raises:
        CheckpointError: if it is missing, damaged, carries code, or holds no weights.
    """
    return _inspect(open_weights(path))


def _inspect(file: WeightFile) -> FileInfo:
    metadata = own_metadata(file)
    base, control = _sections(file)
    floating = [info.dtype for info in file.tensors.values()
                if isinstance(info.dtype, torch.dtype) and info.dtype.is_floating_point]
    info = FileInfo(file.path, "unknown", "", None, max(floating, key=lambda dtype: dtype.itemsize, default=None),
                    sum(torch.Size(tensor.shape).numel() for tensor in file.tensors.values()), metadata=metadata,
                    names=tuple(sorted(file.tensors)[:4]))
    kind = next((kind for kind, marks in _OTHER_KINDS if any(m in name for name in file.tensors for m in marks)), None)
    if kind == "lora":
        return replace(info, kind="lora")
    if base:
        config = _config(file, base, metadata)
        is_sigma = METADATA_KEY not in file.metadata and _is_sigma(file, base)
        return replace(info, kind="sigma" if is_sigma else "pixart+controlnet" if control else "pixart",
                       layout=base.layout, config=None if is_sigma else config,
                       copy_blocks_num=control.copies if control else 0, wiring=_wiring(file, control))
    if control:
        return replace(info, kind="controlnet", layout=control.layout, config=_control_config(control, metadata),
                       copy_blocks_num=control.copies, wiring=_wiring(file, control))
    return replace(info, kind=kind or "unknown")


@dataclass(frozen=True)
class _Section:
    """The tensors of one model in a file, in the authors' names."""

    layout: str
    plan: dict[str, tuple[str, ...]]
    """Authors' name -> the stored names whose rows make it."""
    shapes: dict[str, tuple[int, ...]]

    @property
    def copies(self) -> int:
        return _count(self.plan, "controlnet.")


def _count(names: Iterable[str], prefix: str) -> int:
    indices = {name[len(prefix):].split(".")[0] for name in names if name.startswith(prefix)}
    return 1 + max((int(index) for index in indices if index.isdecimal()), default=-1)


def _section(file: WeightFile, prefix: str, names: Iterable[str], layout: str) -> _Section:
    """Map `names`, which begin with `prefix`, to the authors'."""
    stripped = {name[len(prefix):]: name for name in names}
    if layout == "diffusers":
        try:
            sources = diffusers_sources(stripped)
        except ValueError as error:
            raise CheckpointError(f"{file.path}: {error}") from error
    else:
        sources = {name: (name,) for name in stripped}
    plan = {target: tuple(stripped[name] for name in parts) for target, parts in sources.items()}
    return _Section(layout, plan, {target: _fused_shape([file.tensors[name] for name in parts])
                                   for target, parts in plan.items()})


def _fused_shape(parts: list[TensorInfo]) -> tuple[int, ...]:
    if len(parts) == 1:
        return parts[0].shape
    return (sum(part.shape[0] for part in parts), *parts[0].shape[1:])


def _sections(file: WeightFile) -> tuple[_Section | None, _Section | None]:
    """The base model and the ControlNet in a file."""
    control = _control_section(file)
    taken = {name for names in control.plan.values() for name in names} if control else set()
    return _base_section(file, taken), control


def _base_section(file: WeightFile, taken: set[str]) -> _Section | None:
    for prefix in _PREFIXES:
        for layout, marks in (("authors", _AUTHORS_MARKS), ("diffusers", _DIFFUSERS_MARKS)):
            if all(prefix + mark in file.tensors for mark in marks):
                names = [name for name in file.tensors
                         if name not in taken and not name.startswith(_OTHER_COMPONENTS)]
                if stray := [name for name in names if not name.startswith(prefix)]:
                    raise CheckpointError(f"{file.path} holds a PixArt transformer and tensors that do not belong to "
                                          f"one: {summary(stray)}")
                comfyui = layout == "authors" and "diffusion_model." in prefix
                return replace(_section(file, prefix, names, layout), layout="comfyui" if comfyui else layout)
    return None


def _control_section(file: WeightFile) -> _Section | None:
    for prefix in _CONTROL_PREFIXES:
        for layout, stem, mark in (("authors", "controlnet.", "0.copied_block.attn.qkv.weight"),
                                   ("diffusers", "controlnet_blocks.", "0.transformer_block.attn1.to_q.weight")):
            if prefix + stem + mark in file.tensors:
                names = [name for name in file.tensors if name.startswith(prefix + stem)]
                return _section(file, prefix, names, layout)
    return None


def own_metadata(file: WeightFile) -> dict[str, Any]:
    """What a file of this project says of itself; {} for all others."""
    try:
        values = json.loads(file.metadata.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise CheckpointError(f"{file.path}: its metadata key {METADATA_KEY} is not valid JSON: {error}") from error
    return values if isinstance(values, dict) else {}


def _is_sigma(file: WeightFile, base: _Section) -> bool:
    """PixArt-Σ has PixArt-α's tensors, but 300 caption tokens; in diffusers' layout only the files beside it tell."""
    length = base.shapes.get("y_embedder.y_embedding", (0,))[0]
    pipeline = file.configs.get("model_index.json", {}).get("_class_name", "")
    sample_size = file.configs.get("config.json", {}).get("sample_size", 0)
    compressed = any(".attn.sr." in name for name in base.plan)  # key/value compression of the 2K model
    unconditioned = "csize_embedder.mlp.0.weight" not in base.plan
    return length == 300 or "Sigma" in pipeline or compressed or (unconditioned and sample_size >= 128)


def _config(file: WeightFile, base: _Section, metadata: Mapping[str, Any]) -> PixArtConfig | None:
    """Our metadata, diffusers' config.json, or the released shapes; None if none of them speaks."""
    try:
        if "config" in metadata:
            return PixArtConfig.from_dict(metadata["config"])
        if base.layout == "diffusers" and "config.json" in file.configs:
            config = config_from_diffusers(file.configs["config.json"])
            length = base.shapes.get("y_embedder.y_embedding", (config.model_max_length,))[0]
            return replace(config, model_max_length=length)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file.path}: {error}") from error
    return next((config for config in (PIXART_1024_MS, PIXART_512, PIXART_256) if _is_released(base, config)), None)


def _is_released(base: _Section, config: PixArtConfig) -> bool:
    """Whether a file is of this released shape: by width, depth, micro-conditions and the size of its position grid."""
    grid = base.shapes.get("pos_embed", (1, 64**2) if config.micro_condition else (1, 0))  # only one has the former
    return (base.shapes["x_embedder.proj.weight"][0] == config.hidden_size
            and _count(base.plan, "blocks.") == config.depth and grid[1] == config.base_size**2
            and ("csize_embedder.mlp.0.weight" in base.plan) == config.micro_condition)


def _control_config(control: _Section, metadata: Mapping[str, Any]) -> PixArtConfig | None:
    if "config" in metadata:
        return PixArtConfig.from_dict(metadata["config"])
    hidden = control.shapes["controlnet.0.copied_block.scale_shift_table"][-1]
    return PIXART_1024_MS if hidden == _RELEASED_CONTROL else None


def _wiring(file: WeightFile, control: _Section | None) -> str:
    """Released files are ControlNet-Transformers; ours say what they are, as the names would not tell."""
    wiring = own_metadata(file).get("wiring", ControlNetTransformer.wiring) if control else ""
    if control and wiring not in WIRINGS:
        raise CheckpointError(f"{file.path} holds a ControlNet of unknown wiring {wiring!r}; known are "
                              f"{', '.join(WIRINGS)}: update PixArt-δ")
    return wiring


def _expected(config: PixArtConfig, copy_blocks_num: int = 0) -> dict[str, tuple[int, ...]]:
    model = ControlNetTransformer(config, copy_blocks_num, device="meta") if copy_blocks_num else PixArt(
        config, device="meta")
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _problems(shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]],
              optional: tuple[str, ...] = ()) -> list[str]:
    """What keeps tensors of these shapes from being the expected ones, in words."""
    missing = [name for name in expected if name not in shapes and name not in optional]
    extra = [name for name in shapes if name not in expected]
    wrong = [f"{name} is {list(shapes[name])} instead of {list(expected[name])}" for name in expected
             if name in shapes and tuple(shapes[name]) != expected[name]]
    return ([f"it lacks {summary(missing)}"] if missing else []) + (
        [f"it has unknown {summary(extra)}"] if extra else []) + ([summary(wrong, 3)] if wrong else [])


def _require(path: Path, shapes: Mapping[str, tuple[int, ...]], config: PixArtConfig, copy_blocks_num: int = 0) -> None:
    problems = _problems(shapes, _expected(config, copy_blocks_num), _OPTIONAL)
    if problems:
        what = f"ControlNet of {copy_blocks_num} blocks" if copy_blocks_num else "transformer"
        raise CheckpointError(f"{path} does not fit a PixArt {what} of hidden size {config.hidden_size}, depth "
                              f"{config.depth}: {'; '.join(problems)}")


def _needs_config(path: Path, argument: str) -> CheckpointError:
    return CheckpointError(f"{path} is a PixArt file that does not say its number of attention heads or its position "
                           "grid, and its shapes are not those of exactly one released PixArt-α model: keep diffusers' "
                           f"config.json beside it, or give {argument}")


def read_pixart(path: str | os.PathLike, dtype: torch.dtype | None = None, device: torch.device | str | None = None,
                config: PixArtConfig | None = None) -> tuple[PixArtConfig, dict[str, Tensor]]:
    """The configuration and state dict (authors' names) of a transformer in any layout, checked name by name.

    Args:
        path: file, diffusers folder, pipeline folder, or index of shards.
        dtype: to cast to; None = the file's, or the widest if it mixes several (bfloat16 for float8).
        device: to put the weights on; on the CPU they stay memory-mapped where nothing has to be computed.
        config: for files of unreleased shapes that do not describe themselves; wins over what the file says.

    Returns:
        The state has `pos_embed` always and `y_embedder.y_embedding` only if the file has it.

    Raises:
        CheckpointError: if it is not a PixArt-α/δ transformer, is damaged, or does not fit its configuration.
    """
    file = open_weights(path)
    info = _inspect(file)
    if info.kind not in ("pixart", "pixart+controlnet") and not (config and info.kind == "sigma"):
        raise CheckpointError(f"{path} is not a PixArt-α/δ transformer but {info.describe()}")
    base, _ = _sections(file)
    config = config or info.config
    if config is None:
        raise _needs_config(file.path, "load_pixart(path, config=PixArtConfig(…))")
    _require(file.path, base.shapes, config)
    state = file.assemble(base.plan, dtype or _common_dtype(file, base), device)
    if "pos_embed" not in state:
        state["pos_embed"] = position_buffer(config).to(state["x_embedder.proj.weight"])
    return config, state


def _common_dtype(file: WeightFile, section: _Section) -> torch.dtype | None:
    """None where a section has one type that can be computed with, else the type to cast it to."""
    found = {file.tensors[name].dtype for names in section.plan.values() for name in names}
    unknown = [dtype for dtype in found if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point]
    if unknown:
        raise CheckpointError(f"{file.path} holds weights quantised to {unknown[0]}: load it with ComfyUI's own "
                              "loader, or take a 16- or 32-bit version")
    widest = max(found, key=lambda dtype: dtype.itemsize)
    if widest.itemsize == 1:
        return torch.bfloat16
    return None if len(found) == 1 else widest


def load_pixart(path: str | os.PathLike, dtype: torch.dtype | None = None, device: torch.device | str | None = None,
                operations=nn, config: PixArtConfig | None = None) -> PixArt:
    """A transformer from a file or folder in any known layout, strict, in eval mode.

    The weights are the mapped file itself as long as they need no cast, no fusing and no other device.

    Args:
        operations: namespace that Linear and Conv2d are taken from.
        Others: as in `read_pixart`.

    Raises:
        CheckpointError: as `read_pixart`.
    """
    config, state = read_pixart(path, dtype, device, config)
    model = PixArt(config, device="meta", operations=operations)
    if "y_embedder.y_embedding" not in state:
        model.y_embedder.y_embedding = None
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def save_pixart(model_or_state: PixArt | Mapping[str, Tensor], path: str | os.PathLike, layout: str = "authors",
                config: PixArtConfig | None = None, dtype: torch.dtype | None = None,
                metadata: Mapping[str, Any] | None = None, max_shard_size: str | int | None = None) -> Path:
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
    description = config_to_diffusers(config)
    folder.mkdir(parents=True, exist_ok=True)
    _save_sharded(authors_to_diffusers(state), folder, header, max_shard_size)
    save_json(description, folder / "config.json")
    return folder


def _save_sharded(state: dict[str, Tensor], folder: Path, header: dict[str, str],
                  max_shard_size: str | int | None) -> None:
    name = "diffusion_pytorch_model.safetensors"
    if max_shard_size is None:
        save_weights(state, folder / name, header)
        return
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(
        state, filename_pattern="diffusion_pytorch_model{suffix}.safetensors", max_shard_size=max_shard_size)
    for file, names in split.filename_to_tensors.items():
        save_weights({name: state[name] for name in names}, folder / file, header)
    if split.is_sharded:
        save_json({"metadata": split.metadata, "weight_map": split.tensor_to_filename}, folder / f"{name}.index.json")


def _model_state(model_or_state, config: PixArtConfig | None, path) -> tuple[PixArtConfig, dict[str, Tensor]]:
    if isinstance(model_or_state, nn.Module):
        return config or model_or_state.config, dict(model_or_state.state_dict())
    if config is None:
        raise CheckpointError(f"saving a state dict to {path} needs its configuration: give config=")
    return config, dict(model_or_state)


def _header(kind: str, config: PixArtConfig, metadata: Mapping[str, Any] | None, **more: Any) -> dict[str, str]:
    return {METADATA_KEY: json.dumps({**(metadata or {}), "kind": kind, "config": config.to_dict(), **more})}


def read_controlnet(path: str | os.PathLike, dtype: torch.dtype | None = None, device: torch.device | str | None = None,
                    config: PixArtConfig | None = None) -> tuple[PixArtConfig, int, str, dict[str, Tensor]]:
    """The base's configuration, copied blocks, wiring (a key of `controlnet.WIRINGS`) and state dict of a ControlNet.

    Takes the authors' joint file (base and control), a control-only file, and the layout of diffusers' example
    (`controlnet_blocks.{i}.…`). A released control-only file does not say whether its base is the 512 or the 1024 px
    model; as control reads only the width and the heads, which both share, the 1024 px one is reported.

    Args and raises: as `read_pixart`.
    """
    file = open_weights(path)
    info = _inspect(file)
    if info.kind not in ("controlnet", "pixart+controlnet"):
        raise CheckpointError(f"{path} is not a PixArt ControlNet but {info.describe()}")
    control = _control_section(file)
    config = config or info.config
    if config is None:
        raise _needs_config(file.path, "load_controlnet(path, config=…) the configuration of the base model")
    _require_copies(file.path, config, control.copies, info.wiring)
    _require(file.path, control.shapes, config, control.copies)
    state = file.assemble(control.plan, dtype or _common_dtype(file, control), device)
    return config, control.copies, info.wiring, state


def _require_copies(path: Path, config: PixArtConfig, copies: int, wiring: str) -> None:
    try:
        WIRINGS[wiring].check_copies(config, copies)
    except ValueError as error:
        raise CheckpointError(f"{path}: a ControlNet of {copies} blocks does not fit a base model of depth "
                              f"{config.depth}: {error}") from error


def load_controlnet(path: str | os.PathLike, dtype: torch.dtype | None = None,
                    device: torch.device | str | None = None, operations=nn,
                    config: PixArtConfig | None = None) -> ControlNetTransformer:
    """A ControlNet from any layout of `read_controlnet`, strict, in eval mode, memory-mapped.

    Of class `ControlNetUNet` where the file says so.
    """
    config, copy_blocks_num, wiring, state = read_controlnet(path, dtype, device, config)
    control = WIRINGS[wiring](config, copy_blocks_num, device="meta", operations=operations)
    control.load_state_dict(state, strict=True, assign=True)
    return control.eval()


def save_controlnet(model_or_state: ControlNetTransformer | Mapping[str, Tensor], path: str | os.PathLike,
                    layout: str = "authors", config: PixArtConfig | None = None, dtype: torch.dtype | None = None,
                    metadata: Mapping[str, Any] | None = None,
                    base: PixArt | Mapping[str, Tensor] | None = None, wiring: str | None = None) -> Path:
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
    copies = _count(state, "controlnet.")
    wiring = wiring or getattr(model_or_state, "wiring", ControlNetTransformer.wiring)
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


def split_controlnet(joint: str | os.PathLike, base_path: str | os.PathLike, control_path: str | os.PathLike,
                     dtype: torch.dtype | None = None) -> tuple[Path, Path]:
    """Write the authors' joint file as two safetensors files: the base model and the ControlNet.

    Raises:
        CheckpointError: if `joint` does not hold both.
    """
    info = inspect_file(joint)
    if info.kind != "pixart+controlnet":
        raise CheckpointError(f"{joint} is not a base model and its ControlNet in one file but {info.describe()}")
    config, base = read_pixart(joint)
    _, _, wiring, control = read_controlnet(joint)
    return (save_pixart(base, base_path, config=config, dtype=dtype),
            save_controlnet(control, control_path, config=config, dtype=dtype, wiring=wiring))


def merge_controlnet(base_path: str | os.PathLike, control_path: str | os.PathLike, joint: str | os.PathLike,
                     dtype: torch.dtype | None = None) -> Path:
    """Write a base model and a ControlNet, each in any layout, as the authors' joint file (as safetensors).

    Raises:
        CheckpointError: if they do not belong to the same shape of model.
    """
    config, base = read_pixart(base_path)
    _, _, wiring, control = read_controlnet(control_path, config=config)
    return save_controlnet(control, joint, config=config, dtype=dtype, base=base, wiring=wiring)
