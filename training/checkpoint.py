"""The whole state of a run in one safetensors file, whatever the number of processes that write and read it.

Tensors are named as in `Engine.tensors`. The metadata entry `training` says the rest: step, engine's numbers, what the
state belongs to, and a checksum of every tensor. A file has its name when it is complete and on the disk, not before.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..pixart_core.errors import CheckpointError, summary
from ..pixart_core.saving import save_weights
from ..pixart_core.textfile import parse_json
from .config import LcdConfig, TrainConfig, make_training
from .data.contents import current_path
from .distribute import like, local, whole
from .engine import Engine
from .run_dir import RunDir
from .step.optimizers import average_weights
from .task import Task, fingerprint
from .tasks import make_task

_Z = "optimizer.z."
"""Of schedule-free AdamW's second sequence."""


@dataclass(frozen=True)
class Checkpoint:
    """A file that was read and found undamaged."""

    path: Path
    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]
    """Name -> shape and type."""
    facts: dict[str, Any]
    """`step`, `batches` (micro-batches taken), `whole_batches` (see `FeatureDataset.batches`), `numbers`, `frozen`,
    `global_batch`, `pending` and `checksums`."""


def save_checkpoint(run: RunDir, engine: Engine, step: int, keep: int, **facts: Any) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest `keep`. All processes must call it.

    Args:
        facts: what the loop wants back after resuming, ready for JSON: see `Checkpoint.facts`.

    Raises:
        CheckpointError: if the disk is full; earlier checkpoints are as they were.
    """
    path = run.checkpoint(step)
    state = _gather(engine)

    def write() -> None:
        about = {
            **facts,
            "step": step,
            "numbers": engine.numbers(),
            "frozen": engine.frozen_fingerprint,
            "global_batch": engine.global_batch,
            "checksums": _checksums(state),
        }
        save_weights(state, path, {"training": json.dumps(about)})
        for old in run.checkpoints()[:-keep]:
            old.unlink()

    engine.processes.on_main(write)
    return path


def resume(run: RunDir, engine: Engine, say: Callable[[str], None]) -> Checkpoint | None:
    """Fill the engine from the newest readable checkpoint; None if there is none yet. All processes must call it.

    Args:
        say: told about files that are damaged.

    Raises:
        CheckpointError: if all are damaged, or it belongs to another model; the engine is then as it was.
    """

    def find() -> Checkpoint | None:
        checkpoint = newest_readable(run, say)
        if checkpoint is not None:
            _check_fit(checkpoint, engine)
        return checkpoint

    checkpoint = engine.processes.on_main(find)
    if checkpoint is not None:
        _fill(engine, checkpoint)
    return checkpoint


def newest_readable(run: RunDir, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is undamaged. Newer ones are put aside, under another name, with a message.

    Raises:
        CheckpointError: if there are checkpoints and all are damaged.
    """
    problems: list[tuple[Path, Exception]] = []
    for path in reversed(run.checkpoints()):
        try:
            checkpoint = _read(path)
        except (OSError, SafetensorError, ValueError, KeyError) as problem:
            problems.append((path, problem))
            continue
        for bad, error in problems:
            aside = bad.with_suffix(".damaged")
            bad.replace(aside)
            say(f"{bad} is damaged ({error}): it is now called {aside.name}, and {path.name} is used")
        return checkpoint
    if problems:
        path, error = problems[0]
        raise CheckpointError(
            f"no checkpoint of {run.path} can be read; the newest, {path.name}: {error}. Delete "
            f"{path.parent} to begin anew, or copy a checkpoint there"
        )
    return None


def restore(path: str, base: str = "") -> tuple[Task, TrainConfig, RunDir, int]:
    """The task of a run, its settings, the run, and the step that its weights are of.

    Args:
        path: folder of the run, for its newest checkpoint, or one of its checkpoints.
        base: where the run's base is, if it was moved elsewhere than the run.

    Raises:
        ConfigError: if the base is not where it was.
        RunDirError: if there is no run.
        CheckpointError: if there is no checkpoint yet, or it is damaged or of other weights.
    """
    file = Path(path) if Path(path).is_file() else None
    run = RunDir(Path(path) if file is None else file.resolve().parents[1])
    about = run.read_config()
    if file is None:
        newest = newest_readable(run, print)
        if newest is None:
            raise CheckpointError(f"{run.path} has no checkpoint yet: wait for one, or ask for it (`save`)")
        file = newest.path
    settings = about["config"] | {"base": current_path("base", about["config"], run.path, base)}
    config = make_training(about["command"], settings)
    task = make_task(without_beginning(config))
    return task, config, run, _load_weights(task, file)


def without_beginning(config: TrainConfig) -> TrainConfig:
    """The settings without the file that a student began as, which is no longer needed, and may be gone."""
    return replace(config, student="") if isinstance(config, LcdConfig) else config


def _gather(engine: Engine) -> dict[str, Tensor]:
    """The engine's tensors, whole, on the CPU of the main process; nothing on the others."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in engine.tensors().items():
        full = whole(tensor)
        if engine.processes.is_main:
            full = full.detach().cpu().contiguous()
            if full.data_ptr() in seen:  # a table that bitsandbytes shares; safetensors takes none that share memory
                full = full.clone()
            seen.add(full.data_ptr())
            state[name] = full
    return state


def _read(path: Path) -> Checkpoint:
    with safe_open(path, "pt") as file:
        facts = read_facts(file, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    wrong = [name for name, value in _checksums(tensors).items() if facts["checksums"].get(name) != value]
    if wrong or len(tensors) != len(facts["checksums"]):
        raise ValueError(f"its checksums do not fit: {summary(wrong)}")
    return Checkpoint(path, {name: (tuple(each.shape), each.dtype) for name, each in tensors.items()}, facts)


def read_facts(file: Any, path: Path) -> dict[str, Any]:
    """What a checkpoint, opened by safetensors, says beside its tensors.

    Raises:
        ValueError: if it is none, or says what cannot be.
    """
    facts = parse_json((file.metadata() or {}).get("training", "null"))
    if not isinstance(facts, dict):
        raise ValueError("it is no checkpoint of a training")
    counts = {"step": 0, "batches": 0, "global_batch": 1}
    for name, lowest in counts.items():
        value = facts.get(name, lowest)  # some are not in a file of an earlier version
        if type(value) is not int or value < lowest:
            raise ValueError(f"its {name} is {value!r}")
    named = re.fullmatch(r"step_(\d+)", path.stem)
    if "step" not in facts or named and int(named[1]) != facts["step"]:
        raise ValueError(f"it is called {path.stem} and says that its step is {facts.get('step')}")
    if not isinstance(facts.get("whole_batches", True), bool):
        raise ValueError(f"its whole_batches is {reprlib.repr(facts['whole_batches'])}")
    pending = facts.get("pending", [])
    if not isinstance(pending, list) or not all(isinstance(x, (int, float)) and math.isfinite(x) for x in pending):
        raise ValueError(f"its pending losses are {reprlib.repr(pending)}")
    for name, kind in (("checksums", dict), ("numbers", dict), ("frozen", str)):
        if not isinstance(facts.get(name, kind()), kind):
            raise ValueError(f"its {name} are {reprlib.repr(facts[name])}")
    return facts


def _checksums(state: Mapping[str, Tensor]) -> dict[str, int]:
    def checksum(tensor: Tensor) -> int:
        return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)

    with ThreadPoolExecutor() as pool:  # zlib lets go of the interpreter
        return dict(zip(state, pool.map(checksum, state.values()), strict=True))


def _check_fit(checkpoint: Checkpoint, engine: Engine) -> None:
    expected = {name: tuple(each.shape) for name, each in engine.tensors().items() if not _of_optimizer(name)}
    found = {name: shape for name, (shape, _) in checkpoint.tensors.items() if not _of_optimizer(name)}
    strange = [name for name in checkpoint.tensors if _of_optimizer(name) and _split(name)[1] not in engine.parameters]
    differing = [name for name in {**expected, **found} if expected.get(name) != found.get(name)] + strange
    if differing:
        problem = f"its weights are of another shape ({summary(differing)})"
    elif checkpoint.facts["numbers"].get("kind", engine.optimizer_kind) != engine.optimizer_kind:
        problem = f"its optimizer was {checkpoint.facts['numbers']['kind']}, not {engine.optimizer_kind}"
    elif checkpoint.facts["frozen"] != engine.frozen_fingerprint:
        problem = "the weights it was trained on, those of base, are others now"
    else:
        return
    raise CheckpointError(
        f"cannot resume from {checkpoint.path}: {problem}. Give the same base and settings as before, or choose a new "
        "run folder"
    )


@torch.no_grad()
def _fill(engine: Engine, checkpoint: Checkpoint) -> None:
    targets = {name: each for name, each in engine.tensors().items() if not _of_optimizer(name)}
    file = safe_open(checkpoint.path, "pt") if engine.processes.is_main else None
    for name, (shape, dtype) in checkpoint.tensors.items():
        tensor = engine.processes.from_main(None if file is None else file.get_tensor(name), shape, dtype)
        if name in targets:
            local(targets[name]).copy_(local(like(tensor, targets[name])))
        else:
            key, parameter = _split(name)[0], engine.parameters[_split(name)[1]]
            if tensor.shape == parameter.shape:
                tensor = like(tensor, parameter)
            if tensor.dtype in (torch.bfloat16, torch.float16):  # an earlier version kept a LoRA's as its layer is
                tensor = tensor.float()
            engine.optimizer.state[parameter][key] = tensor.clone()  # not the mapped file
    engine.set_numbers(checkpoint.facts["numbers"])


def _of_optimizer(name: str) -> bool:
    return name.startswith("optimizer.")


def _split(name: str) -> tuple[str, str]:
    """optimizer.KEY.NAME -> KEY, NAME."""
    _, key, parameter = name.split(".", 2)
    return key, parameter


def _load_weights(task: Task, file: Path) -> int:
    try:
        with safe_open(file, "pt") as opened:
            facts = read_facts(opened, file)
            if facts["frozen"] != fingerprint(task):
                raise ValueError(f"the weights it was trained on are not those of base {task.base_name}")
            task.hint = str(facts.get("hint", ""))
            for part, network in (("model.", task.model), ("ema.", task.ema)):
                if network is not None:
                    names = [name for name in opened.keys() if name.startswith(part)]
                    state = {name.removeprefix(part): opened.get_tensor(name) for name in names}
                    if part == "model." and facts["numbers"].get("kind") == "schedulefree":
                        names = [name for name in opened.keys() if name.startswith(_Z)]
                        average_weights(state, {name.removeprefix(_Z): opened.get_tensor(name) for name in names}, 0.9)
                    _load_network(network, state)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file} cannot be read as a checkpoint of this run: {error}") from error
    return facts["step"]


def _load_network(network, state) -> None:
    found = network.load_state_dict(state, strict=False)
    frozen = {name for name, each in network.named_parameters() if not each.requires_grad}
    wrong = [name for name in found.missing_keys if name not in frozen] + found.unexpected_keys
    if wrong:
        raise ValueError(f"its weights are others: {summary(wrong)}")
