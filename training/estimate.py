"""What a training will take, before it starts: memory by kind, time a step, disk. From shapes alone; nothing is loaded.

Activations are counted per token and channel from what autograd keeps of a block (tests compare with its own hooks):
under autocast the tokens between products are float32, products and attention have the half precision. Left out: what
the driver takes (0.5 GB with CUDA), work space of libraries, fragmentation, and the one or two blocks that sharding has
whole at a time. `dry_run` takes one real step besides.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from ..pixart_core.config import PixArtConfig
from ..pixart_core.textfile import read_json
from .config import ConfigError, TrainConfig
from .data import DataError as DataError  # for who asks from outside
from .data import FeatureDataset
from .data.dataset import require_hints
from .machine import in_units, out_of_memory, require_packages, require_room
from .run_dir import RunDir
from .step.optimizers import STATE_BYTES, check_optimizer
from .task import DTYPES, Base, Outline, check_base, check_data, decided, read_base
from .tasks import TASKS

_EFFICIENCY = 0.6
"""Share of a bare matrix product's speed that a step of this model reaches; the rest is norms, softmax, optimiser."""


_MEASURED = 0.25
"""Seconds that the speed of a device is measured for."""
_LARGEST = 1024
"""Side of the matrices that it ends with."""


@dataclass(frozen=True)
class Estimate:
    """What one of the processes takes. `str(estimate)` is a table."""

    weights: float
    """Bytes of trained weights, with the half copies that autograd keeps (not of blocks that are recomputed)."""
    frozen: float
    """Bytes of frozen networks."""
    average: float
    """Bytes of averaged weights."""
    gradients: float
    moments: float
    """Bytes of what the optimiser keeps: AdamW's two moments."""
    activations: float
    """Bytes at the widest moment."""
    flops: float
    """Floating-point operations of a step."""
    checkpoint: float
    """Bytes of a checkpoint on disk."""
    kept: int
    """Checkpoints on disk at once; one more while the next is written."""

    @property
    def memory(self) -> float:
        """Bytes on the device."""
        return self.weights + self.frozen + self.average + self.gradients + self.moments + self.activations

    @property
    def disk(self) -> float:
        """Bytes in the run folder."""
        return self.checkpoint * (self.kept + 1)

    def seconds(self, rate: float) -> float:
        """Seconds of a step on a device that multiplies matrices at `rate` operations a second."""
        return self.flops / (rate * _EFFICIENCY)

    def __str__(self) -> str:
        parts = ("weights", "frozen", "average", "gradients", "moments", "activations")
        lines = [f"  {name:12}{in_units(getattr(self, name)):>9}" for name in parts]
        return "\n".join(
            [
                "memory of the device, about",
                *lines,
                f"  {'together':12}{in_units(self.memory):>9}",
                f"disk: {in_units(self.disk)} ({self.kept} + 1 checkpoints of {in_units(self.checkpoint)})",
            ]
        )


def estimate(config: TrainConfig, shape: PixArtConfig, height: int, width: int, processes: int = 1) -> Estimate:
    """What a process of a training takes.

    Args:
        config: precision=auto is counted as half precision, see `task.decided`.
        shape: of the base model.
        height, width: of the largest pictures, px.
        processes: of the training; with sharding=fsdp each keeps its share of what is trained, and of the average.
    """
    half = 4 if config.precision == "fp32" else 2
    outline = TASKS[config.command].outline(config, shape)
    trained = outline.trained
    averaged = getattr(config, "ema_decay", 0.0) > 0
    share = 1 / processes if config.sharding == "fsdp" else 1
    kept = STATE_BYTES[config.optimizer]
    tokens = math.ceil(height / 8 / shape.patch_size) * math.ceil(width / 8 / shape.patch_size)
    return Estimate(
        weights=trained * (4 * share + (0 if half == 4 or config.gradient_checkpointing else half)),
        frozen=outline.frozen * half,
        average=4 * trained * averaged * share,
        gradients=4 * trained * share,
        moments=kept * trained * share,
        activations=_activations(outline, config, shape, tokens, half),
        flops=_flops(outline, config, shape, tokens) * config.batch_size * config.accumulation,
        checkpoint=trained * (4 + 4 * averaged + kept),
        kept=config.kept_checkpoints,
    )


def pictures_text(
    sizes: Mapping[tuple[int, int], int],
    batch: int,
    whole: bool = False,
    rows: Mapping[tuple[int, int], int] | None = None,
) -> str:
    """What an epoch trains on, in words: "20 of 20 pictures, 5 sizes, 2 to 6 in a batch".

    Args:
        sizes: height, width -> pictures of it.
        batch: most pictures of a batch, over all processes.
        whole: see `FeatureDataset.batches`.
        rows: the same with every picture counted as often as it is repeated; default: `sizes`.
    """
    used = sum(count // batch * batch if whole else count for count in sizes.values())
    text = f"{used} of {sum(sizes.values())} pictures, {len(sizes)} size{'' if len(sizes) == 1 else 's'}"
    dealt = [
        divmod(count, -(-count // batch)) for count in (rows or sizes).values()
    ]  # as `FeatureDataset` deals them out
    low, high = min(each for each, _ in dealt), max(each + (more > 0) for each, more in dealt)
    if whole or low == batch:
        return text
    return f"{text}, {low}{'' if low == high else f' to {high}'} in a batch"


def check_before(
    config: TrainConfig, base: Base, location: object, description: Mapping[str, Any], device: torch.device
) -> None:
    """Whether a training can begin, as far as names and shapes tell: no weights are loaded.

    Args:
        base: from `task.read_base`.
        location: of the features that it trains on.
        description: theirs (`FeatureDataset.description`), or what is known of it before they are there.
        device: that it will run on.

    Raises:
        ConfigError, CheckpointError, DataError, ImportError: what `train` would raise.
    """
    task = TASKS[config.command]
    require_packages(task.packages(config))
    check_optimizer(config.optimizer, device)
    check_base(task, config, base)
    check_data(location, description, config.base, base.shape.caption_channels, base.null_caption)
    if task.needs_hint:
        require_hints(location, description)


def device_memory(device: torch.device) -> float:
    """Bytes that a device has in all; of a CPU, and of one that does not say, this machine's."""
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def require_memory(expected: Estimate, batch_size: int, device: object, size: float) -> None:
    """Raises ConfigError, as a training that ran out of memory, if it cannot fit a device of `size` bytes."""
    if expected.memory > size:
        raise ConfigError(
            f"{out_of_memory(batch_size)}, or train a LoRA. It takes about {in_units(expected.memory)}, and "
            f"{device} has {in_units(size)}"
        )


def require_room_for_shards(folder: Path) -> None:
    """Raises DiskError, as `prepare` does, if the disk is too small for the shards that its report promises."""
    try:
        report = read_json(folder / "report.json")
        there = sum(file.stat().st_size for file in folder.glob("*.tar"))
    except FileNotFoundError:  # the pictures are still being looked at, or the job is at work there
        return
    require_room(folder, report.get("bytes", 0) - there, f"the shards of {folder}")


def matmul_rate(device: torch.device, dtype: torch.dtype, check: Callable[[], None] = lambda: None) -> float:
    """Floating-point operations a second of a matrix product, measured for a quarter of a second.

    It begins with small products and goes on to larger ones, and to more at once, while they are so fast that the next
    ones fit into the time: where a type is emulated (half precision on many CPUs) a large one alone takes seconds.

    Args:
        check: called before every look at the clock; what it raises ends the measurement.
    """
    side, count, best = 64, 1, 0.0
    _multiply(side, count, device, dtype)  # the first one loads libraries
    end = time.perf_counter() + _MEASURED
    while True:
        check()
        taken = _multiply(side, count, device, dtype)
        best = max(best, 2 * side**3 * count / max(taken, 1e-9))  # others may compute beside us now and then
        left, growth = end - time.perf_counter(), 2 if side == _LARGEST else 8
        if left < taken:
            return best
        if 2 * growth * taken < left:
            side, count = (side, 2 * count) if side == _LARGEST else (2 * side, 1)


def time_text(
    expected: Estimate, precision: str, steps: int, device: torch.device, check: Callable[[], None] = lambda: None
) -> str:
    """A line about the time of a step and of all of them, by the speed of the device: see `matmul_rate`."""
    seconds = expected.seconds(matmul_rate(device, DTYPES[precision], check))
    whole = datetime.timedelta(seconds=round(seconds * steps))
    return f"time: at least {seconds:.3g} s a step, {whole} for {steps} steps"


def dry_run(config: TrainConfig) -> None:
    """Check all settings and files, print an estimate, take one step, and print what that took.

    Raises:
        ConfigError, DataError, CheckpointError, RunDirError, DiskError: what `train` would raise.
    """
    # Whoever wants an estimate alone, as ComfyUI does, needs neither accelerate nor what takes steps.
    from ..pixart_core.vae import load_vae
    from .data.contents import identify
    from .distribute import connect
    from .engine import make_engine

    run = RunDir(config.run, identify=identify)
    processes = connect(config.deterministic)
    device = processes.device
    config = decided(config, device, run)
    run.check_config(config.command, config.to_dict())
    if config.models:
        load_vae(config.models)
    data = FeatureDataset(config.data)
    height, width = max(data.buckets, key=lambda size: size[0] * size[1])
    base = read_base(config)
    check_before(config, base, data.location, data.description, device)
    expected = estimate(config, base.shape, height, width, processes.count)
    duration = time_text(expected, config.precision, config.steps, device)
    if processes.is_main:  # the others' host need not have the run's disk
        run.require_room(expected.checkpoint, config)
    say = print if processes.is_main else _silent
    pictures = pictures_text(data.buckets, config.batch_size * processes.count, rows=data.rows)
    say(f"{pictures}; the largest {width}x{height}; on {device}\n{expected}")
    say(duration, flush=True)
    engine = make_engine(config, data, processes)
    begin = time.perf_counter()
    result = engine.step(0, engine.batches(data))
    loss, norm = result.loss.item(), result.gradient_norm.item()
    took = time.perf_counter() - begin
    overflow_is_normal = engine.scaler.is_enabled()  # at first: its scale begins too high, and goes down
    if not math.isfinite(loss if overflow_is_normal else loss + norm):
        raise ConfigError(f"the first step's loss is {loss} and its gradient norm {norm}: try precision=fp32")
    what, memory = _memory(device)
    say(
        f"one step: loss {loss:.5f}, gradient {norm:.3f}, {took:.3g} s with all that a first step does once, "
        f"{in_units(memory)} {what}. Nothing was written"
    )
    processes.end()


def _multiply(side: int, count: int, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of so many products of square matrices."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    _wait(device)
    begin = time.perf_counter()
    for _ in range(count):
        a @ b
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    """Wait for what an accelerator was given to do."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def _activations(outline: Outline, config: TrainConfig, shape: PixArtConfig, tokens: int, half: int) -> float:
    """What the backward pass waits for, and what its widest block needs besides."""
    unit = config.batch_size * tokens * shape.hidden_size  # one number a token and channel
    ratio = shape.mlp_ratio
    trained = 2 * (4 + 4) + 12 * half + half * 2 * ratio  # norms' inputs and outputs; inputs and outputs of products
    frozen = 2 * 4 + 6 * half + half * ratio  # no weight gradient, so no product keeps its input
    blocks = [trained] * outline.trained_blocks
    if outline.passed_blocks:  # of these the first keeps nothing: no gradient goes on from it
        blocks = [trained + half] * outline.trained_blocks + [frozen] * (outline.passed_blocks - 1)
    widest = max(blocks) + half * 2 * ratio  # the gradients of the MLP's hidden layer
    again = (4 + half * config.keep_attention) * len(blocks)  # tokens, in float32, of blocks that are recomputed
    kept = again if config.gradient_checkpointing else sum(blocks) - max(blocks)
    teacher = 2 * (4 + half * (1 + 2 * ratio)) if outline.extra_forwards else 0
    return unit * (kept + max(widest, teacher))


def _flops(outline: Outline, config: TrainConfig, shape: PixArtConfig, tokens: int) -> float:
    """Operations for one picture: products with weights, and attention among the tokens."""
    c = shape.hidden_size
    block = 2 * tokens * c * c * (8 - 2 + 2 * shape.mlp_ratio) + 4 * tokens * tokens * c  # kv of the caption is short
    gradient = 3 + config.gradient_checkpointing  # forward, backward at twice its cost, and perhaps forward again
    frozen = gradient - 1 if not config.gradient_checkpointing else 3  # no weight gradients
    trained = gradient if outline.has_weight_gradients else gradient - 1
    products = outline.trained_blocks * trained + outline.passed_blocks * frozen
    kept = 4 * tokens * tokens * c * config.keep_attention * (outline.trained_blocks + outline.passed_blocks)
    return block * (products + shape.depth * outline.extra_forwards) - kept


def _memory(device: torch.device) -> tuple[str, int]:
    if device.type == "cuda":
        return "of the device at its widest", torch.cuda.max_memory_allocated(device)
    return "in this process", psutil.Process().memory_info().rss


def _silent(*_words, **_options) -> None:
    pass
