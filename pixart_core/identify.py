"""Say what a file of weights is, from names and shapes alone, and map its tensors to the authors' names.

A file is known by its content, never by its name. What it cannot tell (the number of heads, say) comes from metadata
that we write, from diffusers' config.json, or from the released shapes; if none of them speaks, the caller must.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from .aliases import PathLike
from .config import KNOWN_CONFIGS, PixArtConfig
from .controlnet import WIRINGS, ControlNetTransformer
from .convert import config_from_diffusers, diffusers_sources
from .errors import CheckpointError, read_description, summary
from .textfile import parse_json
from .weightfile import WeightFile, open_weights

METADATA_KEY = "pixart_delta"
"""Entry in the metadata of safetensors files: JSON with `kind`, `config` and whatever else the maker wanted to say."""

# Where several transformers are in one file, the one under the first of these is meant: bare, ComfyUI's, the authors'.
_PREFERRED = ("", "model.diffusion_model.", "diffusion_model.", "base_model.")
# A whole checkpoint saved by ComfyUI carries these beside its transformer.
_OTHER_COMPONENTS = ("first_stage_model.", "vae.", "text_encoders.", "cond_stage_model.", "model_ema.")

_AUTHORS_MARKS = ("x_embedder.proj.weight", "y_embedder.y_proj.fc1.weight", "blocks.0.cross_attn.kv_linear.weight")
_DIFFUSERS_MARKS = (
    "pos_embed.proj.weight",
    "caption_projection.linear_1.weight",
    "transformer_blocks.0.attn2.to_k.weight",
)

# Other files, by a part of a tensor name that only they have; the first match counts.
_OTHER_KINDS = {
    "lora": (
        *("lora_A", "lora_B", "lora_up", "lora_down", "lora.up", "lora.down", "lora_linear_layer", "hada_w1"),
        *("lokr_w1", "oft_blocks", "oft_diag", ".diff_b", ".set_weight", ".dora_scale"),
    ),
    "sd-controlnet": ("control_model.", "input_hint_block.", "controlnet_cond_embedding."),
    "sd": ("input_blocks.0.0.weight", *(f"down_blocks.{index}.resnets.0.time_emb_proj.weight" for index in (0, 1))),
    "other transformer": (
        *("double_blocks.", "joint_blocks.", "joint_transformer_blocks.", "single_transformer_blocks."),
        *("x_embedder.proj", "img_in."),
    ),
    "t5": ("block.0.layer.0.SelfAttention.q.weight",),
    "clip": ("text_model.encoder.layers.0.", "transformer.resblocks.0."),
    "vae": (
        *("decoder.conv_in.weight", "encoder.conv_in.weight", "decoder.layers.0.weight", "decoder.layers.1.weight"),
        *("taesd_decoder.", "taesd_encoder.", "first_stage_model."),
    ),
    "hed": ("block1.convs.0.weight",),
}

_DESCRIPTIONS = {
    "pixart": ("a PixArt transformer", "the node “PixArt-δ Model Loader”"),
    "pixart+controlnet": (
        "a PixArt transformer with its ControlNet in one file",
        "the nodes “PixArt-δ Model Loader” and “PixArt-δ ControlNet Loader”",
    ),
    "controlnet": ("a PixArt ControlNet without its base model", "the node “PixArt-δ ControlNet Loader”"),
    "sigma": (
        "a PixArt-Σ transformer (300 tokens, SDXL's autoencoder), not PixArt-α/δ",
        "ComfyUI's own node “Load Diffusion Model”",
    ),
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
    """Shape of a PixArt model; None where neither the file nor the released shapes tell."""
    dtype: torch.dtype | None
    """The widest floating-point type in the file."""
    parameters: int
    """Numbers in the file."""
    copy_blocks_num: int = 0
    """Copied blocks of the ControlNet in it."""
    wiring: str = ""
    """How these are connected: "transformer", or "unet" (files of this project only)."""
    null_caption: int = 0
    """Tokens of the learned unconditional caption; 0 where the file has none."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What a file of this project says of itself."""
    names: tuple[str, ...] = ()
    """The first few tensor names, for messages."""

    def describe(self) -> str:
        """What it is and what takes it, to put into a sentence."""
        what, taker = _DESCRIPTIONS[self.kind]
        return f"{what}, which {taker} takes" if taker else f"{what} (it begins with {summary(self.names, 3)})"


def is_distilled(info: FileInfo) -> bool | None:
    """Whether a transformer draws in a few steps already: files of this project say how they were made, and the
    scheduler of a pipeline's folder what its transformer is for. None where nothing says so.

    Raises:
        CheckpointError: if the scheduler's description is damaged.
    """
    if "distilled" in info.metadata:
        return bool(info.metadata["distilled"])
    if _training(info).get("command") == "lcd":
        return True
    folder = info.path if info.path.is_dir() else info.path.parent
    pipeline = folder.parent if folder.name == "transformer" else folder
    scheduler = pipeline / "scheduler" / "scheduler_config.json"
    return read_description(scheduler).get("_class_name") == "LCMScheduler" if scheduler.is_file() else None


def is_fine_tuned(info: FileInfo) -> bool:
    """Whether the file says that this project's fine-tuning made it, which leaves the number of steps as it was."""
    return _training(info).get("command") == "finetune"


def is_scaled_linear(info: FileInfo) -> bool:
    """Whether a transformer was distilled on the original LCM's noise schedule, as exports of this project say."""
    config = _training(info).get("config")
    return isinstance(config, dict) and config.get("beta_schedule") == "scaled_linear"


def _training(info: FileInfo) -> dict[str, Any]:
    """What a file of this project says of the training that made it."""
    made = info.metadata.get("training")
    return made if isinstance(made, dict) else {}


def inspect_file(path: PathLike) -> FileInfo:
    """Say what a file or folder is, from names and shapes alone: no weights are read.

    Raises:
        CheckpointError: if it is missing, damaged, carries code, or holds no weights.
    """
    return identify(open_weights(path))


def identify(file: WeightFile) -> FileInfo:
    """As `inspect_file`, of a file that is open."""
    metadata = own_metadata(file)
    base, control = sections(file)
    floating = [
        info.dtype
        for info in file.tensors.values()
        if isinstance(info.dtype, torch.dtype) and info.dtype.is_floating_point
    ]
    info = FileInfo(
        file.path,
        "unknown",
        "",
        None,
        max(floating, key=lambda dtype: dtype.itemsize, default=None),
        sum(torch.Size(tensor.shape).numel() for tensor in file.tensors.values()),
        metadata=metadata,
        names=tuple(sorted(file.tensors)[:4]),
    )
    kinds = (kind for kind, marks in _OTHER_KINDS.items() if any(m in name for name in file.tensors for m in marks))
    kind = next(kinds, None)
    if kind == "lora" or any(name.endswith(".diff") for name in file.tensors):  # a full difference, as LoraSave's
        return replace(info, kind="lora")
    of_control: dict[str, Any] = {"copy_blocks_num": control.copies, "wiring": _wiring(file)} if control else {}
    if base:
        config = _config(file, base, metadata)
        is_sigma = METADATA_KEY not in file.metadata and _is_sigma(file, base)
        return replace(
            info,
            kind="sigma" if is_sigma else "pixart+controlnet" if control else "pixart",
            layout=base.layout,
            config=None if is_sigma else config,
            null_caption=base.size("y_embedder.y_embedding", 0),
            **of_control,
        )
    if control:
        config = _control_config(file, control, metadata)
        return replace(info, kind="controlnet", layout=control.layout, config=config, **of_control)
    return replace(info, kind=kind or "unknown")


@dataclass(frozen=True)
class Section:
    """The tensors of one model in a file, in the authors' names."""

    layout: str
    plan: dict[str, tuple[str, ...]]
    """Authors' name -> the stored names whose rows make it."""
    shapes: dict[str, tuple[int, ...]]
    left_out: tuple[str, ...] = ()
    """Stored names that belong to something else in the file."""

    def size(self, name: str, axis: int, default: int = 0) -> int:
        """Size of a tensor along an axis; the default where there is no such tensor or axis."""
        shape = self.shapes.get(name, ())
        return shape[axis] if axis < len(shape) else default

    @property
    def copies(self) -> int:
        return count_blocks(self.plan, "controlnet.")


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """One more than the highest block number behind a prefix."""
    indices = {name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)}
    # No model has 10⁹ blocks, and Python refuses to read longer numbers.
    return 1 + max((int(index) for index in indices if index.isdecimal() and len(index) < 10), default=-1)


def _section(file: WeightFile, prefix: str, names: Mapping[str, str], layout: str) -> Section:
    """Map those of `names` (unwrapped -> stored) that begin with `prefix` to the authors'."""
    stripped = {name[len(prefix) :]: stored for name, stored in names.items() if name.startswith(prefix)}
    if layout == "diffusers":
        try:
            sources = diffusers_sources(stripped)
        except ValueError as error:
            raise CheckpointError(f"{file.path}: {error}") from error
    else:
        sources = {name: (name,) for name in stripped}
    plan = {target: tuple(stripped[name] for name in parts) for target, parts in sources.items()}
    return Section(layout, plan, {target: _fused_shape(file, parts) for target, parts in plan.items()})


def _fused_shape(file: WeightFile, parts: tuple[str, ...]) -> tuple[int, ...]:
    shapes = [file.tensors[name].shape for name in parts]
    if len(parts) == 1:
        return shapes[0]
    if not all(shapes) or len({shape[1:] for shape in shapes}) > 1:
        raise CheckpointError(f"{file.path}: {summary(parts)} are of shapes that do not make one matrix")
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def sections(file: WeightFile) -> tuple[Section | None, Section | None]:
    """The base model and the ControlNet in a file."""
    control = control_section(file)
    taken = {name for names in control.plan.values() for name in names} if control else set()
    return _base_section(file, taken), control


def _unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Names without what torch.compile, FSDP and activation checkpointing put into them, anywhere: parts that begin
    with an underscore (`_orig_mod`, `_fsdp_wrapped_module`), as none of PixArt's does -> the stored names."""
    return {re.sub(r"(^|(?<=\.))_\w+\.", "", name): name for name in names}


def _prefixes(names: Iterable[str], marks: tuple[str, ...]) -> list[str]:
    """What precedes all of these marks, whatever it is: nothing, `module.`, `ema.student.`, …"""
    names = set(names)
    found = {name.removesuffix(marks[0]) for name in names if name.endswith(marks[0])}
    return sorted(
        prefix for prefix in found if prefix[-1:] in ("", ".") and all(prefix + mark in names for mark in marks)
    )


def _base_section(file: WeightFile, taken: set[str]) -> Section | None:
    # A name of one part that has no axes is a counter (n_averaged, num_updates).
    names = {
        name: stored
        for name, stored in _unwrapped(file.tensors).items()
        if stored not in taken and ("." in name or file.tensors[stored].shape)
    }
    layouts = {
        prefix: layout
        for layout, marks in (("diffusers", _DIFFUSERS_MARKS), ("authors", _AUTHORS_MARKS))
        for prefix in _prefixes(names, marks)
    }
    if not layouts:
        return None
    prefix = next(prefix for prefix in (*_PREFERRED, *layouts) if prefix in layouts)
    others = tuple(other for other in layouts if other != prefix and other.startswith(prefix))
    if prefix not in _PREFERRED and len(layouts) > 1:
        raise CheckpointError(
            f"{file.path} holds several PixArt transformers, under {summary(layouts)}: which is meant it does not say; "
            "save the one alone"
        )
    mine = {name: stored for name, stored in names.items() if name.startswith(prefix)}
    mine = {name: stored for name, stored in mine.items() if not name.startswith((*_OTHER_COMPONENTS, *others))}
    left_out = {name: stored for name, stored in names.items() if name not in mine}
    if stray := [stored for name, stored in left_out.items() if "." not in name]:
        raise CheckpointError(
            f"{file.path} holds a PixArt transformer and tensors that do not belong to one: {summary(stray)}"
        )
    comfyui = layouts[prefix] == "authors" and "diffusion_model." in prefix
    section = _section(file, prefix, mine, layouts[prefix])
    return replace(section, layout="comfyui" if comfyui else layouts[prefix], left_out=tuple(sorted(left_out.values())))


def control_section(file: WeightFile) -> Section | None:
    """The ControlNet in a file; None if there is none."""
    names = _unwrapped(file.tensors)
    for layout, stem, mark in (
        ("authors", "controlnet.", "0.copied_block.attn.qkv.weight"),
        ("diffusers", "controlnet_blocks.", "0.transformer_block.attn1.to_q.weight"),
    ):
        for prefix in _prefixes(names, (stem + mark,)):
            mine = {name: stored for name, stored in names.items() if name.startswith(prefix + stem)}
            return _section(file, prefix, mine, layout)
    return None


def own_metadata(file: WeightFile) -> dict[str, Any]:
    """What a file of this project says of itself; {} for all others."""
    try:
        values = parse_json(file.metadata.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise CheckpointError(f"{file.path}: its metadata key {METADATA_KEY} is not valid JSON: {error}") from error
    return values if isinstance(values, dict) else {}


def _is_sigma(file: WeightFile, base: Section) -> bool:
    """PixArt-Σ has PixArt-α's tensors, but 300 caption tokens; in diffusers' layout only the files beside it tell."""
    length = base.size("y_embedder.y_embedding", 0)
    described = file.described or _beside(file, base) is not None
    pipeline = str(file.configs.get("model_index.json", {}).get("_class_name", "")) if file.described else ""
    sample_size = file.configs.get("config.json", {}).get("sample_size", 0) if described else 0
    large = isinstance(sample_size, int) and sample_size >= 128
    compressed = any(".attn.sr." in name for name in base.plan)  # key/value compression of the 2K model
    unconditioned = "csize_embedder.mlp.0.weight" not in base.plan
    return length == 300 or "Sigma" in pipeline or compressed or (unconditioned and large)


def _config(file: WeightFile, base: Section, metadata: Mapping[str, Any]) -> PixArtConfig | None:
    """Our metadata, diffusers' config.json, or the one known shape that fits; None if none of them speaks."""
    if "config" in metadata:
        return _described(file, PixArtConfig.from_dict, metadata["config"])
    if base.layout == "diffusers" and file.described and "config.json" in file.configs:
        described = _described(file, config_from_diffusers, file.configs["config.json"])
        return _described(file, lambda _: _with_length(described, base), None)
    if beside := _beside(file, base):
        return beside
    fitting = [config for config in KNOWN_CONFIGS if _has_shape(base, config)]
    return fitting[0] if len(fitting) == 1 else None


def _beside(file: WeightFile, base: Section) -> PixArtConfig | None:
    """The configuration that a config.json beside a file of a free name describes, if it fits the file's shapes."""
    try:
        config = config_from_diffusers(file.configs["config.json"])
        return _with_length(config, base) if _has_shape(base, config) else None
    except (KeyError, ValueError):
        return None


def _with_length(config: PixArtConfig, base: Section) -> PixArtConfig:
    length = base.size("y_embedder.y_embedding", 0)
    return replace(config, model_max_length=length) if length else config


def _described(file: WeightFile, read: Callable[[dict[str, Any]], PixArtConfig], values: Any) -> PixArtConfig:
    try:
        return read(values)
    except ValueError as error:
        raise CheckpointError(f"{file.path}: {error}") from error


def _has_shape(base: Section, config: PixArtConfig) -> bool:
    """Whether a file is of this shape, as far as its tensors tell. A position grid need not be in it."""
    return (
        base.size("x_embedder.proj.weight", 0) == config.hidden_size
        and count_blocks(base.plan, "blocks.") == config.depth
        and base.size("y_embedder.y_proj.fc1.weight", 1) == config.caption_channels
        and base.size("pos_embed", 1, config.base_size**2) == config.base_size**2
        and ("csize_embedder.mlp.0.weight" in base.plan) == config.micro_condition
    )


def _control_config(file: WeightFile, control: Section, metadata: Mapping[str, Any]) -> PixArtConfig | None:
    if "config" in metadata:
        return _described(file, PixArtConfig.from_dict, metadata["config"])
    hidden = control.size("controlnet.0.copied_block.scale_shift_table", 1)
    # Width and heads are all that control reads of its base; those of 512 and 1024 px share them.
    return next((config for config in KNOWN_CONFIGS if config.hidden_size == hidden), None)


def _wiring(file: WeightFile) -> str:
    """Released files are ControlNet-Transformers; ours say what they are, as the names would not tell."""
    wiring = own_metadata(file).get("wiring", ControlNetTransformer.wiring)
    if wiring not in tuple(WIRINGS):
        raise CheckpointError(
            f"{file.path} holds a ControlNet of unknown wiring {reprlib.repr(wiring)}; known are "
            f"{', '.join(WIRINGS)}: update PixArt-δ"
        )
    return str(wiring)
