"""What a training command trains: its networks, its loss for a batch, and its result. The loop knows nothing more."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ..pixart_core.checkpoint import describe_pixart
from ..pixart_core.config import PixArtConfig
from ..pixart_core.controlnet import ControlNetTransformer
from ..pixart_core.functional import preferred_dtype
from ..pixart_core.identify import FileInfo, is_distilled
from ..pixart_core.layers import compile_blocks
from ..pixart_core.model import PixArt
from ..pixart_core.preview import preview_colours
from .config import (
    ConfigError,
    ControlNetConfig,
    DistillConfig,
    FinetuneConfig,
    LcdConfig,
    LcmLoraConfig,
    TrainConfig,
)
from .data import FeatureDataset
from .data.dataset import require_hints
from .data.draws import Draws
from .data.samples import CAPTION_PADDING, padded
from .run_dir import RunDir
from .step.optimizers import PACKAGES

Training = FinetuneConfig | LcdConfig | LcmLoraConfig | ControlNetConfig
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}")
    for kind in (
        "flash_attention",
        "efficient_attention",
        "cudnn_attention",
        "flash_attention_for_cpu",
        "fused_attention_overrideable",
    )
    if hasattr(torch.ops.aten, f"_scaled_dot_product_{kind}")  # torch knows more of them with each version
}
"""What scaled_dot_product_attention becomes: on NVIDIA's and AMD's GPUs, on CPUs, on others."""


Kind = TypeVar("Kind", bound=TrainConfig)


def decided(config: Kind, device: torch.device, run: RunDir | None = None) -> Kind:
    """The settings with precision=auto as it is on this device; others as they are.

    run: what goes on in it keeps the precision that it began with, on whatever device, and so do runs of versions in
        which another one was the default.
    """
    if config.precision != "auto":
        return config
    if run is not None and run.has_begun():
        before = run.read_config()["config"].get("precision")
        if before in DTYPES:
            return replace(config, precision=before)
    fast = preferred_dtype(device)
    if device.type == "cpu":
        precision = "fp32"
    else:
        precision = config.half if fast == torch.bfloat16 else _NAMES[fast]
    return replace(config, precision=precision)


@dataclass(frozen=True)
class Outline:
    """The size of a training, without making its networks; what an estimate is made from."""

    trained: int
    """Parameters that get a gradient."""
    frozen: int
    """Parameters of frozen networks."""
    trained_blocks: int
    """Blocks with trained parameters."""
    passed_blocks: int = 0
    """Frozen blocks that the gradient passes through."""
    extra_forwards: int = 0
    """Forward passes of the whole model without a gradient, each step."""
    has_weight_gradients: bool = True
    """Whether the trained blocks' own weights get a gradient, and not LoRA layers beside them."""


class Task(ABC):
    """A trainable network, its average, the frozen ones beside it, and the loss of a batch.

    Args:
        config: of the command; it keeps no more of it than what it computes with.

    Raises:
        CheckpointError: if the base is none of a PixArt transformer.
        ConfigError: if it has no null caption and the training reads one, or is of a shape that does not do.
    """

    command: ClassVar[str]
    needs_hint: ClassVar[bool] = False
    is_guided: ClassVar[bool] = False
    """Whether its base draws with guidance, which a distilled model cannot."""
    sampler: ClassVar[str] = "lcm"
    """What samples are made with: "lcm" in 4 steps, or "dpm" in 14 with guidance."""

    model: PixArt | ControlNetTransformer
    ema: PixArt | ControlNetTransformer | None

    def __init__(self, config: Training):
        base = read_base(config)
        check_base(type(self), config, base)
        self.decay: float = getattr(config, "ema_decay", 0.0)
        """Of the average, see `ema_decay`; 0 = there is none."""
        self.frozen: list[nn.Module] = []
        self.dtype = DTYPES[config.precision]
        """Of matrix products."""
        self.caption_drop = config.caption_drop
        self.table: Tensor | None = None
        """ᾱ of the noise schedule; None = PixArt's."""
        self.block_hook: Callable[..., Tensor] | None = None
        """How a block runs in a forward pass that a gradient flows through, see `PixArt.forward`."""
        if config.gradient_checkpointing:
            self.block_hook = _recompute_but_attention if config.keep_attention else _recompute
        self.base_name = config.base
        """Where its base was, for messages; empty = it is made anew."""
        self.hint = ""
        """What its hints are (`PrepareConfig.kind_of_hints`), if that is known."""
        self.colours = {} if base.file is None else preview_colours(base.file)
        """What its base's file says for previews, which what is trained from it says, too."""

    def set_model(self, model: Any) -> None:
        """Train this network, whose trained parameters require a gradient, in float32; and keep its average."""
        self.model = model
        self.ema = copy.deepcopy(model).eval().requires_grad_(False) if self.decay else None

    @classmethod
    @abstractmethod
    def outline(cls, config: TrainConfig, shape: PixArtConfig) -> Outline:
        """The size of a training with these settings on a base of this shape."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], draws: Draws) -> Tensor:
        """Scalar loss of a batch.

        Args:
            model: `self.model`, or what accelerate made of it.
            batch: see `FeatureDataset.batches`, on the device.
            draws: gives every random number.
        """

    def ema_decay(self, step: int) -> float:
        """Decay of the average after `step` steps."""
        del step  # of most trainings it is always the same
        return self.decay

    def compile(self, **options: Any) -> None:
        """Compile the blocks of all networks in place; see `compile_blocks`."""
        compile_blocks(self.model, *self.frozen, *([] if self.ema is None else [self.ema]), **options)

    def result(self, average: bool = True) -> PixArt | ControlNetTransformer:
        """What the training made: the averaged network, or the trained one where there is none or none is wanted."""
        return self.ema if average and self.ema is not None else self.model

    def predictor(self) -> Callable[..., Tensor]:
        """`result` as a network to draw samples with: called as a PixArt, with `hint` where the task needs one."""
        return self.result()

    @classmethod
    def packages(cls, config: TrainConfig) -> list[str]:
        """Packages that a training with these settings imports besides what ComfyUI and our nodes have."""
        return ["accelerate", *([PACKAGES[config.optimizer]] if config.optimizer in PACKAGES else [])]

    @classmethod
    def reads_null_caption(cls, config: TrainConfig) -> bool:
        """Whether a training with these settings needs the base's learned unconditional caption."""
        dropped = isinstance(config, FinetuneConfig | DistillConfig | ControlNetConfig) and config.caption_drop > 0
        return cls.is_guided or dropped

    @classmethod
    def check_shape(cls, config: TrainConfig, shape: PixArtConfig) -> None:
        """Whether these settings can be trained on a base of this shape; raises ConfigError if not."""
        del config, shape  # of most trainings any will do

    def null_caption(self) -> Tensor | None:
        """The base's learned unconditional caption (L, D), if it has one."""
        return self.model.y_embedder.y_embedding if isinstance(self.model, PixArt) else None

    def check_data(self, data: FeatureDataset) -> None:
        """See `check_data`."""
        null = self.null_caption()
        length = 0 if null is None else len(null)
        check_data(data.location, data.description, self.base_name, self.model.config.caption_channels, length)
        if self.needs_hint:
            require_hints(data.location, data.description)
            self.hint = str(data.description.get("hint_kind") or data.description["hints"]).replace("folder", "")

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.model.parameters()).device

    def autocast(self) -> contextlib.AbstractContextManager:
        """The precision that the losses are made for, and samples too."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        # Without its cache, which would keep a half copy of every trained weight until the backward pass begins (1.2 GB
        # of the real model), though each is used once.
        return torch.autocast(self.device.type, self.dtype, cache_enabled=False)

    def with_captions_dropped(self, batch: Mapping[str, Tensor], draws: Draws) -> Mapping[str, Tensor]:
        """The batch, a share of whose captions (`caption_drop`) are the null caption."""
        if not self.caption_drop:
            return batch
        null = self.null_caption()
        assert null is not None, "`check_base` refuses such a base"
        return drop_captions(batch, null, draws.uniform() < self.caption_drop)

    def forward_options(self) -> dict[str, Any]:
        """Options for the forward pass of a network that a gradient flows through; see `PixArt.forward`."""
        options: dict[str, Any] = {} if self.block_hook is None else {"block_hook": self.block_hook}
        keeps_attention = self.block_hook is _recompute_but_attention
        if self.device.type == "cpu" and self.dtype != torch.float32 and not keeps_attention:
            options["attention"] = plain_attention
        return options


def _recompute(_index: int, run: Callable[[Tensor], Tensor], x: Tensor, **options: Any) -> Tensor:
    """A block of which only the input is kept, in float32 as it is: rounded between blocks it would drown what
    distillation is to learn at the noisy end."""
    return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False, **options)


def _recompute_but_attention(index: int, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The same, but what self-attention gives is kept, too: of a forward pass with many tokens it is what takes the
    time (6.4 of 16.5 ms at 1024 px on an H200)."""
    return _recompute(index, run, x, context_fn=functools.partial(create_selective_checkpoint_contexts, _policy))


def _policy(_context: Any, operation: Any, *inputs: Any, **_options: Any) -> CheckpointPolicy:
    """What recomputing does with an operation. Cross-attention, to a few tokens of a caption, is cheap."""
    is_attention = operation.overloadpacket in _ATTENTION and inputs[0].shape[2] == inputs[1].shape[2]
    return CheckpointPolicy.MUST_SAVE if is_attention else CheckpointPolicy.PREFER_RECOMPUTE


class Base(NamedTuple):
    """What a training starts from, as far as names and shapes tell."""

    shape: PixArtConfig
    null_caption: int
    """Tokens of its learned unconditional caption; 0 = it has none."""
    parameters: int
    """Numbers in it."""
    file: FileInfo | None = None
    """None = it is made anew."""


def read_base(config: TrainConfig) -> Base:
    """What a training starts from; no weights are loaded.

    Raises:
        CheckpointError: if it is none of a PixArt transformer.
    """
    if isinstance(config, FinetuneConfig) and config.model:
        shape = PixArtConfig.from_dict(config.model)
        return Base(shape, shape.model_max_length, count_parameters(PixArt(shape, device="meta")))
    shape, file = describe_pixart(config.base)
    return Base(shape, file.null_caption, file.parameters, file)


def check_base(task: type[Task], config: TrainConfig, base: Base) -> None:
    """Raise ConfigError if a training cannot start from this: see `Task`."""
    if task.reads_null_caption(config) and not base.null_caption:
        raise ConfigError(
            f"base {config.base} has no learned null caption, which guidance and dropped captions need: diffusers' "
            "layout leaves it out. Take the authors' .pth, or a file that this trainer exported"
        )
    if task.is_guided and base.file is not None:
        require_guidable(config.base, base.file)
    task.check_shape(config, base.shape)


def require_guidable(base: str, file: FileInfo) -> None:
    """Raise ConfigError for a file that says it is a distilled model, whose own guidance would count twice."""
    if is_distilled(file):
        raise ConfigError(
            f"base {base} is a distilled model, which draws in a few steps already and is not to be guided: choose the "
            "base model that it was made from"
        )


def check_data(location: object, description: Mapping[str, Any], base: str, channels: int, null_caption: int) -> None:
    """Whether a base reads captions as wide as the data's, and can leave out ones as long as its longest.

    Args:
        location: of the features, for messages.
        description: see `FeatureDataset.description`; what it does not say is not checked.
        base: where it is, for messages; empty = it is made anew.
        channels: of the text embeddings that the base reads.
        null_caption: tokens of its learned null caption; 0 = it has none.

    Raises:
        ConfigError: if not.
    """
    base = base or "the model"
    width, longest = description.get("caption_channels"), description.get("max_tokens", 0)
    if width is not None and width != channels:
        raise ConfigError(
            f"data {location} holds text embeddings of {width} channels, and {base} reads {channels}: run "
            "`prepare` with the text encoder that belongs to it, or choose another base"
        )
    if null_caption and padded(longest) > null_caption:
        most = null_caption // CAPTION_PADDING * CAPTION_PADDING
        raise ConfigError(
            f"data {location} holds captions of up to {longest} tokens, and the learned null caption of "
            f"{base} has {null_caption}: run `prepare` again with max_tokens={most}"
        )


def fingerprint(task: Task) -> str:
    """A digest of the weights that are not trained and so not in a checkpoint: of a few numbers of each, whatever the
    type."""
    digest = hashlib.blake2b(digest_size=16)
    for network in (task.model, *task.frozen):
        for name, each in network.named_parameters():
            if not each.requires_grad:  # first in the type that all of a frozen network was in once
                numbers = each.detach().flatten()[:64].to("cpu", task.dtype).to(torch.bfloat16)
                digest.update(f"{name} {tuple(each.shape)} {numbers.tolist()}".encode())
    return digest.hexdigest()


def drop_captions(batch: Mapping[str, Tensor], null: Tensor, drop: Tensor) -> dict[str, Tensor]:
    """Replace captions by the null caption (L, D) where drop (B,) says so, under their own mask, as the authors do."""
    caption = batch["caption"]
    return {**batch, "caption": torch.where(drop[:, None, None], null[: caption.shape[1]].to(caption), caption)}


def mask_weight(batch: Mapping[str, Tensor]) -> Tensor | float:
    """What each latent pixel counts in a loss, (B, 1, h, w): nothing where a picture's mask is 0, and so much more
    elsewhere that the mean over all pixels is the mean over the part that counts. So every picture has the same weight,
    however much of it is masked. 1 without masks.
    """
    mask = batch.get("mask")
    return 1.0 if mask is None else mask / mask.mean((2, 3), keepdim=True)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention as two matrix products, for training on a CPU.

    As `functional.attention`: q, k, v (B, N, C), mask (B, 1 or N, L) with at least one key for each query.
    On a CPU the backward pass of scaled_dot_product_attention takes five times as long in half precision as this one,
    a third of a nano step. In float32 both are alike.
    """
    batch, _, channels = q.shape
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (B·H, N, C/H)
    q = q * (channels // heads) ** -0.5
    if mask is None:
        scores = torch.bmm(q, k.mT)
    else:
        bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -torch.inf)
        scores = torch.baddbmm(bias.repeat_interleave(heads, 0), q, k.mT)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, (batch, heads)).transpose(1, 2).flatten(2)


def count_parameters(model: nn.Module) -> int:
    """Numbers in all parameters of a network, which may be on the meta device."""
    return sum(parameter.numel() for parameter in model.parameters())
