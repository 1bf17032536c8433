"""What the nano family consists of: the settings of `nano family`, and its parts, first to last."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..settings import ConfigError, Settings, path, setting

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
PICTURES, CAPTIONS, SHOWN = 24_000, 400, 48
MODELS: dict[int, dict[str, int]] = {128: {}, 256: {"input_size": 32, "depth": 8}}
"""What a resolution changes of the base that the recipe describes: at 256 px 5.2 M parameters."""
CHANNELS = {128: 32, 256: 40}
"""Of the autoencoder; TAESD has 64."""
VAE = {128: (3000, 16), 256: (8000, 8)}
"""Steps and batch of the autoencoder."""
_DECODER = {128: 0, 256: 3600}
"""Steps in which its decoder goes on alone: 0.4 dB."""
HALF = {128: False, 256: True}
"""Whether the base learns at half the side first, where a step costs a third; PixArt-α goes from 256 to 1024 px so."""
_MUON = {"optimizer": "muon", "learning_rate": 2e-3}
CHANGES: dict[int, dict[str, dict[str, Any]]] = {
    128: {},
    256: {
        "base": _MUON | {"learning_rate": 3e-3},
        # At the whole side the same timestep leaves more of the composition to be seen.
        "grown": _MUON | {"snr_weight_cap": 20, "steps": 1200, "ema_decay": 0.998, "seed": 2},
        "detail": _MUON | {"snr_weight_cap": 5, "steps": 8000},
        "student": {"steps": 4500},
        "lora": {"steps": 400},
        "control": {"optimizer": "muon", "copy_blocks": 3, "steps": 3500},
    },
}
"""What trainings do otherwise than their recipes say, with which the family of 128 px was made."""
_FAST = {"cuda_graph": True, "compile": True}
_READERS = 12
"""Processes that read for large batches at most, each a thousand pictures a second."""
LARGE: dict[int, dict[str, dict[str, Any]]] = {
    128: {},
    256: {
        "detail": _FAST
        | {"batch_size": 256, "steps": 6000, "learning_rate": 3e-3, "final_learning_rate": 0.01}
        | {"ema_decay": 0.999, "precision": "bf16"},
        "student": _FAST
        | {"batch_size": 128, "steps": 2700, "learning_rate": 6e-4, "warmup_steps": 50, "final_learning_rate": 0.01},
    },
}
"""What they do otherwise on top of that where a GPU has room for more: five to six times as many pictures are seen, of
twice as many. The student learns in float32, because bfloat16 rounds as much as there is left to learn."""
_LARGE_STEP = {"detail": 0.04, "student": 0.09}
"""Seconds of such a step on one H200; of the student's in float32 a guess, with TF32 it took 0.048."""
WORLD = {128: 1, 256: 2}
"""Shown at a resolution unless another world is asked for."""
TOKENS = {1: 40, 2: 64}
"""Of the longest captions of each world."""
_LEAST_PICTURES, _LEAST_STEPS = 64, 6


@dataclass(kw_only=True)
class FamilySettings(Settings):
    """`nano family`: scenes, text encoder, autoencoder, edges, base, student, LoRA and control as a pipeline folder."""

    command: ClassVar[str] = "nano family"
    required: ClassVar[tuple[str, ...]] = ("output",)

    output: str = path("pipeline folder to write")
    work: str = path("folder for scenes, features, runs and logs; empty = beside output, with .work at its end")
    resolution: int = setting(256, "side in px of the square pictures: 128 or 256", low=128, high=256)
    scale: float = setting(1.0, "part of all pictures and steps that is made: below 1 a rehearsal", low=0.001, high=1.0)
    world: int = setting(0, "what is drawn, 1 or 2; 0 = the first at 128 px, the second at 256 px", low=0, high=2)
    workers: int = setting(
        0,
        f"processes that draw scenes, and read for large batches ({_READERS} at most); 0 = one for each core",
        low=0,
        high=1024,
    )
    precision: str = setting(
        "auto",
        "of all that is trained on features; auto = fp32, and bf16 for the base's large batches. bf16 takes 0.4 of the "
        "time on a CPU with AVX-512 BF16 or AMX. A student of as many steps is 2 to 3 points worse in one step then, "
        "and the same in two",
        choices=("auto", "fp32", "bf16"),
    )
    large: str = setting(
        "auto",
        "at 256 px train base and student with 256 and 128 pictures a step: minutes on a GPU, and two days on two CPU "
        "cores; auto = where there is an NVIDIA GPU of 16 GB or more, Ampere or later, and Triton to compile for it",
        choices=("auto", "yes", "no"),
    )
    side_by_side: str = setting(
        "auto",
        "make parts that do not need one another at the same time; auto = where there is a GPU",
        choices=("auto", "yes", "no"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resolution not in MODELS:
            raise ConfigError(f"resolution is {self.resolution}: choose one of {', '.join(map(str, MODELS))}")

        self.world = self.world or WORLD[self.resolution]

    def folder(self) -> Path:
        """Where this resolution, world and scale are worked on."""
        work = Path(self.work or f"{self.output}.work")
        world = "" if self.world == WORLD[self.resolution] else f"_world_{self.world}"
        return work / (f"{self.resolution}{world}" + ("" if self.scale == 1 else f"_{self.scale:g}"))

    def scaled(self, count: int, least: int = 1) -> int:
        return max(least, round(count * self.scale))


@dataclass(frozen=True)
class Part:
    """Commands of train.py that belong together.

    Attributes:
        wave: parts of one wave do not need one another.
        seconds: on two cores, and on one H100 beside 16 cores, about.
    """

    name: str
    wave: int
    commands: Sequence[Sequence[str]]
    seconds: tuple[float, float]


# Seconds of a step or picture on two CPU cores at 128 px, where the bundled family of 128 px was made: newer ones draw,
# and with fast bfloat16 teach an autoencoder, in half of it or less. And on a GPU, where a step is as long as it takes
# to launch it, whatever the resolution: guesses until a card has made a family.
_COST = {
    "picture": (0.012, 0.001),
    "features": (0.03, 0.004),
    "autoencoder": (0.35, 0.03),
    "sharp": (0.5, 0.03),
    "text": (0.05, 0.05),
    "hed": (0.12, 0.01),
    "finetune": (0.25, 0.02),
    "lcd": (0.5, 0.04),
    "lcm-lora": (0.5, 0.04),
    "controlnet": (0.2, 0.035),
    "sample": (0.15, 0.02),
}
_DEPTH = 6
"""Blocks of the transformers at 128 px; with more a step of theirs takes longer."""
_TRAINED = ("finetune", "lcd", "lcm-lora", "controlnet")
_TRANSFORMERS = (*_TRAINED, "sample")
_BF16_COST = 0.4
"""Of a step in float32, on a CPU that multiplies bfloat16."""
_DRAWN = ("picture", "hed")
"""Done by CPUs on a machine with a GPU, too."""
_SAME_SIZE = ("text", "autoencoder", "sharp")
"""Takes the same time at every resolution; a sharp autoencoder has more channels and half the batch."""
_START = 15
"""Seconds until a command computes."""


class Plan:
    """The parts of a family, in the order in which they are made.

    Args:
        has_room: whether there is a GPU that large batches are for.
    """

    def __init__(self, settings: FamilySettings, has_room: bool = False):
        self.settings, self.work = settings, settings.folder()
        is_large = settings.large == "yes" or settings.large == "auto" and has_room
        self.cores = settings.workers or os.cpu_count() or 1
        readers = {"workers": min(_READERS, self.cores)}
        self.large = {name: each | readers for name, each in LARGE[settings.resolution].items()} if is_large else {}
        self.output = Path(settings.output)
        self.parts = [*self._material(), *self._networks(), *self._whole()]

    def _part(
        self,
        name: str,
        wave: int,
        kind: str,
        count: int,
        *commands: Sequence[Any],
        side: int = 0,
        more: float = 1,
        faster: float = 1,
    ) -> Part:
        """`side`: of its pictures, if that is another than the family's; `more`: times as many in a step as usual;
        `faster`: what a step takes on a CPU against one in float32."""
        area = ((side or self.settings.resolution) / 128) ** 2
        cpu, gpu = _COST[kind]
        deeper = MODELS[self.settings.resolution].get("depth", _DEPTH) / _DEPTH if kind in _TRANSFORMERS else 1
        on_cores = cpu * more * count * deeper * faster * (1 if kind in _SAME_SIZE else area)
        launched = gpu * deeper * (area if kind in _DRAWN else 1)
        seconds = on_cores, count * (launched if more == 1 else _LARGE_STEP[name])
        texts = [[str(each) for each in command] for command in commands]
        start = _START * len(commands)
        return Part(name, wave, texts, (start + seconds[0], start + seconds[1]))

    def _material(self) -> Iterator[Part]:
        """What the transformers are trained on, and the networks around them."""
        settings, family = self.settings, self.work / "family"
        size = ("--resolution", settings.resolution)
        drawn = (*size, "--workers", self.cores if self.cores > 1 else 0)
        pictures = settings.scaled(PICTURES * (2 if self.large else 1), _LEAST_PICTURES)
        steps, batch = VAE[settings.resolution]
        vae, text, edges = (settings.scaled(count, _LEAST_STEPS) for count in (steps, 1500 * settings.world, 2500))
        world = ("--world", settings.world)
        folder = self.work / "pictures"
        yield self._part(
            *("scenes", 0, "picture", pictures), ["nano", "scenes", folder, "--pictures", pictures, *drawn, *world]
        )
        channels = ("--channels", CHANNELS[settings.resolution], "--batch", batch)
        of_files = ("--pictures", folder) if settings.world == 2 else ()
        learn = ["nano", "autoencoder", family / "vae", *channels, *drawn, *world, *of_files, "--steps"]
        alone = settings.scaled(_DECODER[settings.resolution], least=0)
        yield self._part(
            *("autoencoder", 1, "autoencoder" if settings.resolution == 128 else "sharp", vae + alone),
            [*learn, vae],
            *([[*learn, alone, "--decoder-only"]] if alone else []),
        )
        yield self._part("text", 1, "text", text, ["nano", "text_encoder", family, "--steps", text, *world])
        yield self._part("hed", 1, "hed", edges, ["nano", "hed", family / "hed", "--steps", edges, *drawn, *world])
        tokens = TOKENS[settings.world]
        values = {"input": folder, "models": family, "max_tokens": tokens}
        whole = {"output": self.work / "features", "resolution": settings.resolution, "hints": "hed"}
        whole |= {"hed": family / "hed" / "hed.safetensors"}
        yield self._part("features", 2, "features", pictures, ["prepare", *_set(values | whole)])
        if HALF[settings.resolution]:
            side = settings.resolution // 2
            half = {"output": self.work / "features_half", "resolution": side}
            yield self._part("half", 2, "features", pictures, ["prepare", *_set(values | half)], side=side)

    def _networks(self) -> Iterator[Part]:
        """The base in two runs or three, and three networks that are made of it."""
        resolution = self.settings.resolution
        model = {"model": json.dumps(self._recipe("nano_teacher")["model"] | MODELS[resolution])}
        first = "base"
        yield self._training(first, 3, "finetune", "nano_teacher", model, on_half=HALF[resolution])
        if HALF[resolution]:
            first, grown = "grown", {"base": self._export(first)}
            yield self._training(first, 4, "finetune", "nano_teacher_detail", grown)
        yield self._training("detail", 5, "finetune", "nano_teacher_detail", {"base": self._export(first)})
        base = {"base": self._export("detail")}
        yield self._training("student", 6, "lcd", "nano_student", base)
        yield self._training("lora", 6, "lcm-lora", "nano_lcm_lora", base)
        yield self._training("control", 6, "controlnet", "nano_controlnet", base)

    def _whole(self) -> Iterator[Part]:
        """The pipeline folder, and what it is worth."""
        settings, output = self.settings, self.output
        shown, captions = settings.scaled(SHOWN, 4), settings.scaled(CAPTIONS, 8)
        exported = {
            "lora": output / "lcm_lora" / "pytorch_lora_weights.safetensors",
            "control": output / "controlnet" / "diffusion_pytorch_model.safetensors",
        }
        yield self._part(
            *("assemble", 7, "picture", shown),
            ["nano", "assemble", self.work / "family", self._export("detail"), self._export("student"), output]
            + ["--world", settings.world],
            *(["export", *_set({"run": self.work / run, "output": file})] for run, file in exported.items()),
            ["nano", "scenes", output / "scenes", "--pictures", shown, "--seed", 2]
            + ["--resolution", settings.resolution, "--workers", 1, "--world", settings.world],
        )
        measure = ["nano", "evaluate", output, "--count", captions]
        teacher = ["--transformer", output / "base" / "pixart_nano_base.safetensors", "--sampler", "dpm", "--steps", 14]
        yield self._part(
            *("measure", 8, "sample", 5 * captions),
            [*measure, "--steps", 4, 2, 1, "--sheet", self.work / "sheet.png", "--shown", shown],
            [*measure, "--steps", 4, 2, 1, "--captions", "hard"],
            [*measure, *teacher, "--captions", "hard", "--sheet", self.work / "teacher.png"],
            [*measure, "--captions", "hard", "--drawn"],
            ["nano", "evaluate_control", output, "--count", captions, "--sheet", self.work / "control.png"]
            + ["--examples", *range(min(12, captions))],
        )

    def _training(
        self, name: str, wave: int, command: str, recipe: str, values: dict[str, Any], on_half: bool = False
    ) -> Part:
        """A run by its recipe, with other `values`; a rehearsal's is shorter in everything that counts steps."""
        recipe_values = self._recipe(recipe)
        values = values | CHANGES[self.settings.resolution].get(name, {}) | self.large.get(name, {})
        known = recipe_values | values
        more = known["batch_size"] / recipe_values["batch_size"]
        values = values | {"data": self.work / ("features_half" if on_half else "features"), "run": self.work / name}
        precision = known["precision"] if self.settings.precision == "auto" else self.settings.precision
        if precision != known["precision"]:
            values["precision"] = precision
        steps = self.settings.scaled(known["steps"], _LEAST_STEPS)
        if self.settings.scale != 1:
            counts = ("warmup_steps", "checkpoint_every", "log_every")
            values |= {"steps": steps} | {count: self.settings.scaled(known[count]) for count in counts}
        side = self.settings.resolution // 2 if on_half else 0
        return self._part(
            *(name, wave, command, steps),
            [command, "--config", RECIPES / f"{recipe}.json", *_set(values)],
            side=side,
            more=more,
            faster=_BF16_COST if precision == "bf16" else 1,
        )

    def _export(self, name: str) -> Path:
        return self.work / name / "exports" / "pixart.safetensors"

    @staticmethod
    def _recipe(name: str) -> dict[str, Any]:
        return json.loads((RECIPES / f"{name}.json").read_text("utf-8"))


def _set(values: dict[str, Any]) -> list[str]:
    return [text for name, value in values.items() for text in ("--set", f"{name}={value}")]
