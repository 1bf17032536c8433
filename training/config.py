"""What a command is told: one dataclass each, see `Settings`. Standard library only.

The text under `help` is the one description of a setting: `--help` and the nodes show it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .prepare.options import DETECTED as DETECTED
from .prepare.options import WITHOUT_WEIGHTS as WITHOUT_WEIGHTS
from .prepare.options import PrepareConfig
from .settings import BILLION, MILLION, ConfigError, Settings, path, setting
from .settings import Kind as Kind

LORA_KINDS = ("lora", "dora", "lokr")
LORA_KINDS_HELP = (
    "lora; dora learns the size of each row besides, for more time and memory; lokr is a Kronecker product, which "
    "reaches further with fewer numbers. ComfyUI's own loader and ours load all of them"
)


@dataclass(kw_only=True)
class TrainConfig(Settings):
    """Settings that every training command has."""

    required: ClassVar[tuple[str, ...]] = ("run", "data", "base")
    half: ClassVar[str] = "bf16"
    """What precision=auto is on an accelerator that multiplies it natively."""

    run: str = path("folder of this run; the same command with the same folder resumes", free=True)
    data: str = path("folder or URL of prepared features (made by `prepare`)", content=True)
    base: str = path("checkpoint to start from, in any layout that load_pixart reads", content=True)
    models: str = path("pipeline folder (text_encoder/, tokenizer/, vae/) for samples; empty = no samples", free=True)
    steps: int = setting(10_000, "optimiser steps in all", low=1, high=BILLION, free=True)
    batch_size: int = setting(16, "pictures of one process in one micro-batch", low=1, high=MILLION)
    accumulation: int = setting(1, "micro-batches whose gradients make one step", low=1, high=MILLION)
    learning_rate: float = setting(
        2e-5, "peak learning rate, used as it is: no rule scales it by the batch", low=0.0, high=100.0
    )
    schedule: str = setting("constant", "learning rate after the warm-up", choices=("constant", "cosine"))
    final_learning_rate: float = setting(0.0, "end of the cosine schedule, as a share of the peak", low=0.0, high=1.0)
    warmup_steps: int = setting(100, "steps of linear warm-up", low=0, high=BILLION)
    optimizer: str = setting(
        "adamw",
        "adamw8bit keeps both moments in 8 bit (bitsandbytes); prodigy finds the learning rate itself, and wants "
        "learning_rate=1 (prodigyopt); adafactor keeps next to nothing, its learning_rate is a share of each weight's "
        "size: 1e-3 to 1e-2; schedulefree is AdamW that needs no schedule, with a larger learning_rate (schedulefree); "
        "muon learns a whole model from scratch in half of the steps, with up to three times AdamW's learning_rate",
        choices=("adamw", "adamw8bit", "prodigy", "adafactor", "schedulefree", "muon"),
    )
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay", low=0.0, high=100.0)
    adam_beta2: float = setting(0.999, "AdamW's second beta", low=0.0, high=1.0)
    adam_epsilon: float = setting(1e-10, "AdamW's epsilon", low=0.0, high=1.0)
    clip_norm: float = setting(0.01, "largest gradient norm; 0 = no clipping", low=0.0, high=1e9)
    precision: str = setting(
        "auto",
        "of the matrix products; trained weights, optimiser and the stream of tokens stay float32. auto = fp32 on a "
        "CPU; on a GPU fp16 for lcd and lcm-lora, with a gradient scale against overflow, because bf16 rounds 30 % of "
        "what they learn at the noisy end away (fp16 4 %), and for the others bf16, or fp16 where the GPU has no bf16",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    sharding: str = setting(
        "none",
        "with several processes: fsdp shards weights and optimiser over them",
        choices=("none", "fsdp"),
        free=True,
    )
    gradient_checkpointing: bool = setting(
        False,
        "recompute blocks in the backward pass: less memory, a quarter more time. It does not change numbers: tokens "
        "between blocks are kept in float32, as they are",
        free=True,
    )
    keep_attention: bool = setting(
        False,
        "with gradient_checkpointing: keep what self-attention gives, too, and recompute all but that: less time with "
        "many tokens, half as much memory again for each block in half precision. It does not change numbers",
        free=True,
    )
    compile: bool = setting(False, "torch.compile the networks", free=True)
    cuda_graph: bool = setting(
        False,
        "on an NVIDIA GPU with one process: capture a micro-batch of each size and replay it, for small models, whose "
        "steps wait for Python; goes with compile; takes the memory of a micro-batch besides. It does not change "
        "numbers",
        free=True,
    )
    deterministic: bool = setting(
        False,
        "on a GPU use only algorithms that give the same bits each time, so that a resumed run is, bit for bit, one "
        "that was never stopped, as it always is on a CPU. Slower; an operation that has no such algorithm is an error",
        free=True,
    )
    seed: int = setting(43, "of the order, the noise and the timesteps", low=0, high=2**63 - 1, fixed=True)
    workers: int = setting(
        -1,
        "processes that load data; -1 = 2, but none for local data on a CPU, all of whose cores compute anyway",
        low=-1,
        high=1024,
        free=True,
    )
    log_every: int = setting(10, "steps between lines of metrics", low=1, high=BILLION, free=True)
    checkpoint_every: int = setting(500, "steps between checkpoints", low=1, high=BILLION, free=True)
    keep_checkpoints: int = setting(2, "checkpoints to keep", low=1, high=MILLION, free=True)
    sample_every: int = setting(
        0,
        "steps between grids of samples, of which one is drawn before the first step; 0 = only when asked for. lcd and "
        "lcm-lora draw them in 4 steps; finetune and controlnet in 14 steps with guidance (DPM-Solver++), because "
        "their base is no few-step model",
        low=0,
        high=BILLION,
        free=True,
    )
    sample_count: int = setting(4, "pictures of a grid of samples", low=1, high=1024, free=True)
    sample_prompts: list = setting(
        list,
        "JSON list of own prompts for the samples: each is a row of sample_count pictures, with the same noise every "
        "time; empty = captions of the data",
        free=True,
    )
    prompt_file: str = path("text file of own prompts for the samples, one a line, such as a caption file", free=True)
    validation: float = setting(
        0.0,
        "share of the pictures that is held out; the loss on it is shown beside that of the training, by four bands "
        "of timesteps",
        low=0.0,
        high=0.9,
        fixed=True,
    )
    validation_data: str = path("folder or URL of other prepared features, held out instead of a share", free=True)
    validation_every: int = setting(100, "steps between two looks at what is held out", low=1, high=BILLION, free=True)
    tensorboard: bool = setting(True, "also write TensorBoard events, if tensorboard is installed", free=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(isinstance(each, str) and each.strip() for each in self.sample_prompts):
            raise ConfigError(f"sample_prompts is {self.sample_prompts!r:.200}: a JSON list of prompts is wanted")
        if self.optimizer == "prodigy" and not 0.1 <= self.learning_rate <= 10:
            raise ConfigError(
                f"learning_rate is {self.learning_rate}: optimizer=prodigy finds the rate itself and multiplies it by "
                "this number: set learning_rate=1"
            )
        if self.optimizer == "schedulefree" and self.schedule != "constant":
            raise ConfigError(f"schedule is {self.schedule}: optimizer=schedulefree needs none, leave it constant")
        if self.sharding == "fsdp" and self.optimizer != "adamw":
            raise ConfigError(f"optimizer is {self.optimizer}, which cannot be sharded: with sharding=fsdp use adamw")
        if self.keep_attention and not self.gradient_checkpointing:
            raise ConfigError("keep_attention says what gradient_checkpointing recomputes: set that to true, too")
        if self.validation and self.validation_data:
            raise ConfigError("validation and validation_data are both set: hold out a share, or take other features")

    @property
    def kept_checkpoints(self) -> int:
        """Checkpoints on disk at once, besides one that is being written or that a stop made: a short run has fewer
        than may be kept."""
        return min(self.keep_checkpoints, max(1, math.ceil(self.steps / self.checkpoint_every)))


@dataclass(kw_only=True)
class DistillConfig(TrainConfig):
    """What `lcd` and `lcm-lora` share (paper Algorithm 1; values of App. B.1 and the authors' code)."""

    half: ClassVar[str] = "fp16"

    base: str = path("the teacher, as which the student begins unless a setting says otherwise", content=True)
    guidance: float = setting(
        4.5,
        "guidance scale ω that is distilled into the student; samplers count it as 1 + ω (cfg)",
        low=0.0,
        high=1000.0,
    )
    loss: str = setting("huber", "distance of prediction and target", choices=("huber", "l2"))
    huber_c: float = setting(0.001, "c of the pseudo-Huber distance", low=0.0, high=1e6)
    beta_schedule: str = setting(
        "linear",
        "noise schedule; linear is PixArt's, scaled_linear the original LCM's, for the paper's ablation (Fig. 3)",
        choices=("linear", "scaled_linear"),
        fixed=True,
    )
    caption_drop: float = setting(
        0.0, "share of captions replaced by the learned null caption, for all networks alike", low=0.0, high=1.0
    )


@dataclass(kw_only=True)
class LcdConfig(DistillConfig):
    """`lcd`: Latent Consistency Distillation of the whole model (paper Algorithm 1)."""

    command: ClassVar[str] = "lcd"

    student: str = path(
        "checkpoint that the student begins as, in any layout that load_pixart reads: an LCM that knows few steps "
        "already learns a base that was trained further, or other pictures, in far less time; empty = the base",
        content=True,
    )
    ema_decay: float = setting(
        0.95, "decay of the averaged weights, which are the target; 0 = the student itself", low=0.0, high=1.0
    )
    w_embedding: bool = setting(
        False,
        "embed ω as LCM does: drawn from w_min … w_max for each picture; the export is made for ω = guidance",
        fixed=True,
    )
    w_min: float = setting(3.0, "smallest ω of w_embedding", low=0.0, high=1000.0)
    w_max: float = setting(15.0, "largest ω of w_embedding", low=0.0, high=1000.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.w_embedding and not self.w_min <= self.guidance <= self.w_max:
            raise ConfigError(
                f"guidance is {self.guidance}: with w_embedding it must be between w_min {self.w_min} and "
                f"w_max {self.w_max}"
            )


@dataclass(kw_only=True)
class LcmLoraConfig(DistillConfig):
    """`lcm-lora`: the same distillation into LoRA layers on the frozen base; the target is the current student.

    There is no averaged network, as in the authors' script.
    """

    command: ClassVar[str] = "lcm-lora"

    lora_kind: str = setting("lora", LORA_KINDS_HELP, choices=LORA_KINDS, fixed=True)
    lora_rank: int = setting(32, "rank of the LoRA layers", low=1, high=65536, fixed=True)
    lora_alpha: float = setting(
        8.0, "their alpha: changes are scaled by alpha / rank; stored in the file", low=0.0, high=1e6, fixed=True
    )


@dataclass(kw_only=True)
class FinetuneConfig(TrainConfig):
    """`finetune`: noise-prediction training of a base model or of a LoRA, from a checkpoint or from nothing."""

    command: ClassVar[str] = "finetune"
    required: ClassVar[tuple[str, ...]] = ("run", "data")

    model: dict = setting(dict, "fields of PixArtConfig for a new model, instead of `base`", fixed=True)
    adam_epsilon: float = setting(1e-8, "AdamW's epsilon", low=0.0, high=1.0)
    clip_norm: float = setting(1.0, "largest gradient norm; 0 = no clipping", low=0.0, high=1e9)
    ema_decay: float = setting(
        0.9995,
        "decay of the averaged weights, reached as (1 + step) / (10 + step); 0 = none, as always for a LoRA",
        low=0.0,
        high=1.0,
    )
    caption_drop: float = setting(0.1, "share of captions replaced by the learned null caption", low=0.0, high=1.0)
    snr_weight_cap: float = setting(
        1.0,
        "largest loss weight 1 + 1 / SNR; 1 is the plain noise error, more favours "
        "the noisy timesteps where composition is decided",
        low=1.0,
        high=1e9,
    )
    min_snr_gamma: float = setting(
        0.0,
        "γ of min-SNR weighting: the loss counts min(1, γ / SNR), so that the easy, nearly clean timesteps count less; "
        "5 is usual, 0 = off",
        low=0.0,
        high=1e9,
    )
    lora_kind: str = setting("lora", LORA_KINDS_HELP, choices=LORA_KINDS, fixed=True)
    lora_rank: int = setting(
        0, "train LoRA layers of this rank on the frozen base; 0 = train the whole model", low=0, high=65536, fixed=True
    )
    lora_alpha: float = setting(
        8.0, "their alpha: changes are scaled by alpha / rank; stored in the file", low=0.0, high=1e6, fixed=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_snr_gamma and self.snr_weight_cap != 1.0:
            raise ConfigError("min_snr_gamma and snr_weight_cap are both set: one favours what the other does not")
        if self.lora_kind != "lora" and not self.lora_rank:
            raise ConfigError(f"lora_kind is {self.lora_kind}, and lora_rank 0: set lora_rank, or leave lora_kind out")
        if bool(self.model) == bool(self.base):
            raise ConfigError("give either base (a checkpoint) or model (the shape of a new one)")
        if self.lora_rank and not self.base:
            raise ConfigError("lora_rank needs base: LoRA layers are trained on a checkpoint")
        if self.lora_rank and self.ema_decay not in (0.0, type(self).ema_decay):
            raise ConfigError(
                f"ema_decay is {self.ema_decay}: a LoRA (lora_rank) has no averaged weights, leave it out"
            )
        self.ema_decay = 0.0 if self.lora_rank else self.ema_decay


@dataclass(kw_only=True)
class ControlNetConfig(TrainConfig):
    """`controlnet`: a ControlNet on a frozen base (paper Sec. 3; values of App. B.2 and the authors' code)."""

    command: ClassVar[str] = "controlnet"

    batch_size: int = setting(4, "pictures of one process in one micro-batch", low=1, high=MILLION)
    accumulation: int = setting(4, "micro-batches whose gradients make one step", low=1, high=MILLION)
    warmup_steps: int = setting(0, "steps of linear warm-up", low=0, high=BILLION)
    weight_decay: float = setting(3e-2, "AdamW's decoupled weight decay", low=0.0, high=100.0)
    ema_decay: float = setting(0.0, "decay of the averaged weights; 0 = none", low=0.0, high=1.0)
    copy_blocks: int = setting(
        13, "N: base blocks that are copied and trained, 1 … depth - 1", low=1, high=10000, fixed=True
    )
    wiring: str = setting(
        "transformer",
        "where the copies' outputs go: transformer = onto the same blocks, unet = onto the last blocks (paper Fig. 4)",
        choices=("transformer", "unet"),
        fixed=True,
    )
    caption_drop: float = setting(
        0.1, "share of captions replaced by the learned null caption, for base and control alike", low=0.0, high=1.0
    )


@dataclass(kw_only=True)
class SampleConfig(Settings):
    """`sample`: pictures from a run's newest weights."""

    command: ClassVar[str] = "sample"

    run: str = path("folder of the run, or one of its checkpoints")
    models: str = path("pipeline folder with text_encoder/, tokenizer/ and vae/; empty = the run's own setting")
    base: str = path("where the run's base is now; empty = where it was, seen from the run's folder if both were moved")
    data: str = path("where the run's prepared features are now; empty likewise")
    output: str = path("picture to write; empty = in samples/ of the run")
    prompts: list = setting(list, "JSON list of prompts; empty = captions of the run's data")
    count: int = setting(4, "pictures, when no prompts are given", low=1, high=1024)
    seed: int = setting(0, "of the noise", low=0, high=2**63 - 1)


@dataclass(kw_only=True)
class ExportConfig(Settings):
    """`export`: a run's newest weights as a small file for use elsewhere."""

    command: ClassVar[str] = "export"

    run: str = path("folder of the run, or one of its checkpoints")
    base: str = path("where the run's base is now; empty = where it was, seen from the run's folder if both were moved")
    output: str = path("file or folder to write; empty = in exports/ of the run")
    layout: str = setting(
        "comfyui",
        "comfyui = one file for ComfyUI (a model or control in the authors' names, a LoRA in diffusers'); diffusers; "
        "peft = a LoRA as the authors' script saves it, a folder with adapter_config.json; joint = the authors' file "
        "of base and control",
        choices=("comfyui", "diffusers", "peft", "joint"),
    )
    dtype: str = setting("fp16", "of the weights in the file", choices=("fp16", "bf16", "fp32"))
    average: bool = setting(True, "the averaged weights, where the run has them, not the last ones")


COMMANDS: dict[str, type[Settings]] = {
    kind.command: kind
    for kind in (PrepareConfig, LcdConfig, LcmLoraConfig, ControlNetConfig, FinetuneConfig, SampleConfig, ExportConfig)
}
TRAININGS: dict[str, type[TrainConfig]] = {
    kind.command: kind for kind in COMMANDS.values() if issubclass(kind, TrainConfig)
}


def load_config(
    command: str, file: str | None, overrides: Iterable[str], recipe: Mapping[str, Any] | None = None
) -> Settings:
    """The settings of a command from a recipe, a JSON file and `key=value` texts: see `Settings.load`."""
    return COMMANDS[command].load(file, overrides, recipe)


def make_config(command: str, values: dict[str, Any]) -> Settings:
    """The settings of a command from plain values: see `Settings.make`."""
    return COMMANDS[command].make(values)


def make_training(command: str, values: dict[str, Any]) -> TrainConfig:
    """As `make_config`, of a command that trains.

    Raises:
        ConfigError: if it does not, too.
    """
    if command not in TRAININGS:
        raise ConfigError(f"{command} trains nothing: choose one of {', '.join(TRAININGS)}")
    return TRAININGS[command].make(values)
