"""What a training run is told: one dataclass a command, read from JSON and `--set key=value`. Standard library only.

The text under `help` is the one description of a field: `--help` shows it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints


class ConfigError(ValueError):
    """A setting that is unknown, missing or out of range."""


def setting(default: Any, help: str, **limits: Any) -> Any:
    """A field with its description and limits (`low`, `high`, `choices`)."""
    return field(default=default, metadata={"help": help, **limits})


@dataclass(kw_only=True)
class TrainConfig:
    """Settings that every training command has."""

    run: str = setting("", "folder of this run; the same command with the same folder resumes")
    data: str = setting("", "folder of prepared features (dataset.json and bucket_HxW.safetensors)")
    base: str = setting("", "checkpoint to start from, in any layout that load_pixart reads")
    steps: int = setting(10_000, "optimiser steps in all", low=1)
    batch_size: int = setting(16, "pictures a step", low=1)
    learning_rate: float = setting(2e-5, "peak learning rate", low=0.0)
    schedule: str = setting("constant", "learning rate after the warm-up", choices=("constant", "cosine"))
    final_learning_rate: float = setting(0.0, "end of the cosine schedule, as a share of the peak", low=0.0, high=1.0)
    warmup_steps: int = setting(100, "steps of linear warm-up", low=0)
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay", low=0.0)
    adam_beta2: float = setting(0.999, "AdamW's second beta", low=0.0, high=1.0)
    adam_epsilon: float = setting(1e-10, "AdamW's epsilon", low=0.0)
    clip_norm: float = setting(0.01, "largest gradient norm", low=0.0)
    ema_decay: float = setting(0.95, "decay of the averaged weights", low=0.0, high=1.0)
    precision: str = setting(
        "bf16", "of the matrix products; weights and optimiser stay float32", choices=("fp32", "bf16")
    )
    compile: bool = setting(False, "torch.compile the networks")
    seed: int = setting(43, "of the order, the noise and the timesteps", low=0)
    log_every: int = setting(10, "steps between lines of metrics", low=1)
    checkpoint_every: int = setting(500, "steps between checkpoints", low=1)
    keep_checkpoints: int = setting(2, "checkpoints to keep", low=1)

    def __post_init__(self) -> None:
        for each in fields(self):
            _check(each.name, getattr(self, each.name), each.metadata)
        for name in ("run", "data"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is not set: {type(self).__dataclass_fields__[name].metadata['help']}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


@dataclass(kw_only=True)
class FinetuneConfig(TrainConfig):
    """`finetune`: noise-prediction training of a base model, from a checkpoint or from nothing."""

    model: dict = field(
        default_factory=dict, metadata={"help": "fields of PixArtConfig for a new model, instead of `base`"}
    )
    learning_rate: float = setting(2e-5, "peak learning rate", low=0.0)
    adam_epsilon: float = setting(1e-8, "AdamW's epsilon", low=0.0)
    clip_norm: float = setting(1.0, "largest gradient norm", low=0.0)
    ema_decay: float = setting(
        0.9995, "decay of the averaged weights, reached as (1 + step) / (10 + step)", low=0.0, high=1.0
    )
    caption_drop: float = setting(0.1, "share of captions replaced by the learned null caption", low=0.0, high=1.0)
    snr_weight_cap: float = setting(
        1.0,
        "largest loss weight 1 + 1 / SNR; 1 is the plain noise error, more favours "
        "the noisy timesteps where composition is decided",
        low=1.0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.model) == bool(self.base):
            raise ConfigError("give either base (a checkpoint) or model (the shape of a new one)")


@dataclass(kw_only=True)
class LcdConfig(TrainConfig):
    """`lcd`: Latent Consistency Distillation (paper Algorithm 1; values of App. B.1 and the authors' code)."""

    guidance: float = setting(4.5, "guidance scale ω that is distilled into the student", low=0.0)
    loss: str = setting("huber", "distance of prediction and target", choices=("huber", "l2"))
    huber_c: float = setting(0.001, "c of the pseudo-Huber distance", low=0.0)
    base: str = setting("", "the teacher, which the student starts from")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.base:
            raise ConfigError("base is not set: the teacher, which the student starts from")


COMMANDS: dict[str, type[TrainConfig]] = {"finetune": FinetuneConfig, "lcd": LcdConfig}


def load_config(command: str, file: str | None, overrides: list[str]) -> TrainConfig:
    """The configuration of a command from a JSON file and `key=value` settings, which win.

    Raises:
        ConfigError: naming the file or setting that is wrong.
    """
    kind = COMMANDS[command]
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = json.loads(Path(file).read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ConfigError(f"cannot read the configuration {file}: {error}") from error
    hints = get_type_hints(kind)
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"--set takes key=value, got {override!r}")
        values[name] = _parse(name, text, hints.get(name))
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{command} has no setting {', '.join(unknown)}; it has {', '.join(sorted(hints))}")
    return kind(**values)


def describe(command: str) -> str:
    """Every setting of a command with its default and meaning, for `--help`."""
    lines = []
    for each in fields(COMMANDS[command]):
        default = {} if each.default is dataclasses.MISSING else each.default
        lines.append(f"  {each.name}={json.dumps(default)}\n      {each.metadata['help']}")
    return "\n".join(lines)


def _parse(name: str, text: str, kind: Any) -> Any:
    if kind is str:
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}={text}: not a {getattr(kind, '__name__', 'value')}") from error


def _check(name: str, value: Any, limits: Any) -> None:
    if "choices" in limits and value not in limits["choices"]:
        raise ConfigError(f"{name} is {value!r}: choose one of {', '.join(limits['choices'])}")
    if ("low" in limits or "high" in limits) and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ConfigError(f"{name} is {value!r}: a number is wanted")
    if "low" in limits and value < limits["low"] or "high" in limits and value > limits["high"]:
        raise ConfigError(
            f"{name} is {value}: it must be between {limits.get('low', '-∞')} and {limits.get('high', '∞')}"
        )
