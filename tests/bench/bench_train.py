"""Latent Consistency Distillation beside the same objective as a plain loop over diffusers' transformer.

    python tests/bench/bench_train.py [--rounds 5] [--steps 2] [--skip-nano] [--skip-true-shape]

1. Nano: the bundled base and recipe nano_student, on the CPU, in float32 and, where the CPU is fast in it, in bfloat16.
   Ours is a real step of the trainer (`Engine.step`), without and with its switch compile. Theirs is written as the
   scripts of diffusers and of the authors are: teacher forwards one after the other, an average that goes over the
   parameters, AdamW as torch makes it by default; for information it is also compiled, which these scripts do not do.
   Each has a process of its own, as a training has, and all take turns on the same batches and noise; the first losses
   must agree. Medians, and the median of the turns' ratios; on a busy machine run it with OMP_NUM_THREADS=1, and ratios
   are of CPU seconds. The target is for the faster of the two precisions, with compile.
2. True shape: with a CUDA device both at 1024 px, batch 12, gradient checkpointing: seconds a step and peak memory, and
   ours with 8-bit AdamW as 3 micro-batches of 4. Without one the estimate that `--dry-run` prints, and both loops at
   the true width with 2 of 28 blocks and few tokens.

Exits with 1 when a target is missed: 1.3 times as fast; with CUDA also under 24 GB, and under 16 GB with 8-bit AdamW.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import json
import multiprocessing
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
runpy.run_path(str(ROOT / "training/train.py"))  # registers pixart_delta

import torch  # noqa: E402
from pixart_delta.pixart_core.checkpoint import load_pixart, save_pixart  # noqa: E402
from pixart_delta.pixart_core.config import PIXART_1024_MS, PixArtConfig  # noqa: E402
from pixart_delta.pixart_core.convert import authors_to_diffusers, config_to_diffusers  # noqa: E402
from pixart_delta.pixart_core.functional import preferred_dtype  # noqa: E402
from pixart_delta.pixart_core.lcm import DDIM_STEPS, ddim_timesteps  # noqa: E402
from pixart_delta.pixart_core.model import PixArt  # noqa: E402
from pixart_delta.pixart_core.schedule import add_noise, consistency, predict_x0  # noqa: E402
from pixart_delta.training.config import LcdConfig, load_config, make_config  # noqa: E402
from pixart_delta.training.data.draws import Draws  # noqa: E402
from pixart_delta.training.distill import distance  # noqa: E402
from pixart_delta.training.distribute import connect  # noqa: E402
from pixart_delta.training.engine import Engine  # noqa: E402
from pixart_delta.training.estimate import estimate  # noqa: E402
from pixart_delta.training.machine import GB  # noqa: E402
from pixart_delta.training.task import decided  # noqa: E402
from pixart_delta.training.tasks import TASKS  # noqa: E402

TARGET = 1.3
_AGREE = {"fp32": 0.02, "bf16": 0.1}
"""Part of the first loss by which the loops may differ; the loss is a small difference of two outputs."""
BASE = ROOT / "models/nano/base/pixart_nano_base.safetensors"


class Batches:
    """Endless random batches, always the same ones."""

    def __init__(self, config: LcdConfig, shape: PixArtConfig, side: int, tokens: int):
        self.config, self.shape, self.side, self.tokens = config, shape, side, tokens
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self):
        return self

    def __next__(self) -> dict:
        rows, generator = self.config.batch_size, self.generator
        lengths = torch.randint(self.tokens // 2, self.tokens + 1, (rows, 1), generator=generator)
        return {
            "latent": torch.randn(rows, 4, self.side, self.side, generator=generator),
            "caption": torch.randn(rows, self.tokens, self.shape.caption_channels, generator=generator),
            "caption_mask": (torch.arange(self.tokens) < lengths).to(torch.uint8),
            "image_size": torch.full((rows, 2), 8.0 * self.side),
            "aspect_ratio": torch.ones(rows, 1),
            "share": torch.tensor(1.0),
            "keys": [""] * rows,
        }


class Ours:
    """The trainer's own step."""

    def __init__(self, config: LcdConfig, batches: Batches):
        accelerator = connect()
        config = decided(config, accelerator.device)
        self.engine = Engine(config, TASKS["lcd"](config), accelerator)
        self.batches, self.number = batches, 0

    def step(self) -> float:
        result = self.engine.step(self.number, self.batches)
        self.number += 1
        return result.loss.item()


class Plain:
    """The same objective over diffusers' PixArtTransformer2DModel, as its training scripts are written."""

    def __init__(self, config: LcdConfig, batches: Batches, device: torch.device):
        config = decided(config, device)
        self.config, self.batches, self.device, self.number = config, batches, device, 0
        base = load_pixart(config.base, torch.float32)
        self.null = base.null_caption(1).to(device)
        self.student = _diffusers_model(base).to(device).train()
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
        self.ema = copy.deepcopy(self.student).eval().requires_grad_(False)
        if config.compile:  # only now: a copy is not compiled
            for block in (
                *self.student.transformer_blocks,
                *self.teacher.transformer_blocks,
                *self.ema.transformer_blocks,
            ):
                block.compile()
        if config.gradient_checkpointing:
            self.student.enable_gradient_checkpointing()
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(),
            lr=config.learning_rate,
            betas=(0.9, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        )
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
        self.autocast = lambda: torch.autocast(device.type, half, enabled=half is not None)

    def step(self) -> float:
        config, batch = self.config, next(self.batches)
        draws = Draws(config.seed, self.number, 0, config.batch_size, slice(None), self.device)
        batch = {name: value.to(self.device) for name, value in batch.items() if name != "keys"}
        rate = config.learning_rate * min(1, (self.number + 1) / config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        noise, index = draws.normal(batch["latent"].shape[1:]), draws.integers(DDIM_STEPS)
        grid = torch.tensor(ddim_timesteps(), device=self.device)
        start = grid[index]
        end = (start - 20).clamp(min=0)
        noisy = add_noise(batch["latent"], noise, start)
        with self.autocast():
            prediction = consistency(noisy, self._epsilon(self.student, noisy, start, batch), start)
            with torch.no_grad():
                epsilon = self._epsilon(self.teacher, noisy, start, batch)
                null = self.null[:, : batch["caption"].shape[1]].expand_as(batch["caption"])
                unconditional = self._epsilon(self.teacher, noisy, start, {**batch, "caption": null})
                x0, x0_null = predict_x0(noisy, epsilon, start), predict_x0(noisy, unconditional, start)
                w = config.guidance
                x_prev = add_noise(x0 + w * (x0 - x0_null), epsilon + w * (epsilon - unconditional), end)
                target = consistency(x_prev, self._epsilon(self.ema, x_prev, end, batch), end)
            loss = distance(prediction, target, config.loss, config.huber_c)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for average, parameter in zip(self.ema.parameters(), self.student.parameters(), strict=True):
                average.mul_(config.ema_decay).add_(parameter, alpha=1 - config.ema_decay)
        self.number += 1
        return loss.item()

    def _epsilon(self, model, latent, timestep, batch):
        conditions = {"resolution": batch["image_size"], "aspect_ratio": batch["aspect_ratio"]}
        out = model(
            latent,
            encoder_hidden_states=batch["caption"],
            encoder_attention_mask=batch["caption_mask"],
            timestep=timestep,
            added_cond_kwargs=conditions,
            return_dict=False,
        )[0]
        return out[:, :4].float()


def _diffusers_model(base: PixArt):
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel.from_config(config_to_diffusers(base.config))
    model.load_state_dict(authors_to_diffusers({n: t for n, t in base.state_dict().items() if "y_embedding" not in n}))
    return model


def race(
    loops: dict[str, Callable[[int], Any]], rounds: int, steps: int, clock_name: str, precision: str = "fp32"
) -> dict[str, float]:
    """Median ratio of each to "diffusers"; they take turns. Each is called with a number of steps that it is to take
    and gives the last loss and the seconds that they took."""
    first = {name: loop(1)[0] for name, loop in loops.items()}
    if max(first.values()) - min(first.values()) > _AGREE[precision] * abs(max(first.values())):
        raise SystemExit(f"the objectives differ: {first}")
    for loop in loops.values():
        loop(3)
    taken: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            taken[name].append(loop(steps)[1] / steps)
    ratios = {}
    for name, values in taken.items():
        turns = [theirs / own for own, theirs in zip(values, taken["diffusers"], strict=True)]
        ratios[name] = statistics.median(turns)
        print(f"  {name:20}{1 / statistics.median(values):8.3f} steps/s  {ratios[name]:.2f} x  ({clock_name})")
    return ratios


class Apart:
    """A loop in a process of its own: what another one leaves behind in the memory allocator does not help it."""

    def __init__(self, kind: type[Ours | Plain], config: LcdConfig):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(kind.__name__, config.to_dict(), theirs), daemon=True)
        self.process.start()

    def __call__(self, steps: int) -> tuple[float, float]:
        self.pipe.send(steps)
        return self.pipe.recv()


def _serve(kind: str, values: dict[str, Any], pipe) -> None:
    config = make_config("lcd", values)
    batches = Batches(config, load_pixart(config.base).config, 16, 32)
    loop = Ours(config, batches) if kind == "Ours" else Plain(config, batches, torch.device("cpu"))
    with contextlib.suppress(EOFError):  # nobody asks any more
        while True:
            pipe.send(_timed(loop, pipe.recv()))


def _timed(loop: Ours | Plain, steps: int) -> tuple[float, float]:
    clock, _ = _cpu_clock()
    begin = clock()
    for _ in range(steps):
        loss = loop.step()
    return loss, clock() - begin


def _cpu_clock() -> tuple[Callable[[], float], str]:
    """CPU seconds with one thread, for busy machines; else time, because waiting threads spin."""
    single = torch.get_num_threads() == 1
    return (time.process_time, "CPU time") if single else (time.perf_counter, "time")


def nano(rounds: int, steps: int) -> bool:
    """The bundled family on the CPU."""
    recipe, values = str(ROOT / "training/recipes/nano_student.json"), ["run=none", "data=none", f"base={BASE}"]
    best = 0.0
    for precision in ("fp32", "bf16") if preferred_dtype("cpu") == torch.bfloat16 else ("fp32",):
        config = load_config("lcd", recipe, [*values, f"precision={precision}"])
        compiled = replace(config, compile=True)
        print(f"nano LCD, batch {config.batch_size}, {precision}, {torch.get_num_threads()} threads", flush=True)
        ratios = race(
            {
                "ours, compiled": Apart(Ours, compiled),
                "ours": Apart(Ours, config),
                "diffusers": Apart(Plain, config),
                "diffusers, compiled": Apart(Plain, compiled),
            },
            rounds,
            steps,
            _cpu_clock()[1],
            precision,
        )
        best = max(best, ratios["ours, compiled"])
    print(f"  best {best:.2f} x, target {TARGET} x", flush=True)
    return best >= TARGET


def true_shape(rounds: int, steps: int) -> bool:
    """The 611 M model: measured with CUDA, else estimated, and compared at a size that a CPU can do."""
    sizes = {"24 GB": {"batch_size": 12}, "16 GB": {"batch_size": 4, "accumulation": 3, "optimizer": "adamw8bit"}}
    common = {"run": "none", "data": "none", "gradient_checkpointing": True}
    for name, values in sizes.items():
        expected = estimate(make_config("lcd", {**common, "base": "none", **values}), PIXART_1024_MS, 1024, 1024)
        print(f"\n1024 px in {name}: {json.dumps(values)}\n{expected}", flush=True)
    if not torch.cuda.is_available():
        return _narrow(rounds, steps, common)
    with tempfile.TemporaryDirectory() as folder:
        common["base"] = _random_base(PIXART_1024_MS, folder)
        configs = {name: make_config("lcd", {**common, **values}) for name, values in sizes.items()}
        batches = {name: Batches(config, PIXART_1024_MS, 128, 120) for name, config in configs.items()}
        loops = {
            "ours": lambda: Ours(configs["24 GB"], batches["24 GB"]),
            "ours, 8-bit, 3 x 4": lambda: Ours(configs["16 GB"], batches["16 GB"]),
            "diffusers": lambda: Plain(configs["24 GB"], batches["24 GB"], torch.device("cuda")),
        }
        figures = {name: _alone(make, rounds * steps) for name, make in loops.items()}
    print(f"\nmeasured on {torch.cuda.get_device_name()}, batch 12")
    for name, (seconds, memory) in figures.items():
        print(f"  {name:20}{seconds:6.2f} s/step  {memory / GB:6.1f} GB  {figures['diffusers'][0] / seconds:.2f} x")
    return (
        figures["diffusers"][0] / figures["ours"][0] >= TARGET
        and figures["ours"][1] < 24 * GB
        and figures["ours, 8-bit, 3 x 4"][1] < 16 * GB
    )


def _narrow(rounds: int, steps: int, common: dict) -> bool:
    """Both loops on the CPU at the true width, with few blocks and tokens: for information."""
    shape, device = replace(PIXART_1024_MS, depth=2), torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        values = {**common, "base": _random_base(shape, folder), "batch_size": 2, "precision": "fp32"}
        config = make_config("lcd", values)
        print("\ntrue width, 2 blocks, 256 px, batch 2, float32, on the CPU")
        loops = {
            "ours": Ours(config, Batches(config, shape, 32, 32)),
            "diffusers": Plain(config, Batches(config, shape, 32, 32), device),
        }
        race({name: functools.partial(_timed, loop) for name, loop in loops.items()}, rounds, steps, _cpu_clock()[1])
    return True


def _random_base(shape: PixArtConfig, folder: str) -> str:
    torch.manual_seed(0)
    model = PixArt(shape).initialize_weights()
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.01)  # zero at first: a student that learns nothing
    return str(save_pixart(model, Path(folder) / "base.safetensors", dtype=torch.float16))


def _alone(make: Callable[[], Ours | Plain], steps: int) -> tuple[float, int]:
    """Median seconds a step, and peak bytes, with nothing else on the GPU: two loops of this size do not fit on one."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    loop = make()
    taken = []
    for _ in range(steps + 2):
        begin = time.perf_counter()
        loop.step()  # reads its loss, so it has waited for the device
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[2:]), torch.cuda.max_memory_allocated()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--skip-nano", action="store_true")
    parser.add_argument("--skip-true-shape", action="store_true")
    options = parser.parse_args()
    good = [
        part(options.rounds, options.steps)
        for part, skipped in ((nano, options.skip_nano), (true_shape, options.skip_true_shape))
        if not skipped
    ]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
