"""One optimiser step: the task's loss over its micro-batches, the gradient, AdamW, the average. On one process or many.

What a step does depends on its number and on the weights alone: data, noise and learning rate are functions of the
step. So no random state is part of a run.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .config import TrainConfig
from .data import FeatureDataset
from .data.draws import Draws, to_device
from .data.samples import to_float32
from .distribute import Processes, accumulating, local, skeleton, whole
from .machine import require_packages
from .run_dir import REQUESTS
from .step.optimizers import STATE_BYTES, check_optimizer, evaluated, group_numbers, make_optimizer, set_group_numbers
from .step.replay import Replayed
from .task import Task, fingerprint
from .tasks import TASKS, make_task

_AT_ONCE = 2**25
"""Numbers of the average that are moved at once where that takes as much memory besides."""


def make_engine(config: TrainConfig, data: FeatureDataset, processes: Processes) -> Engine:
    """The engine of a training, for data that fits it.

    Args:
        config: with a precision that is decided, see `task.decided`.

    Raises:
        ConfigError: if a setting, or the data, does not fit the base model.
        CheckpointError: if the base is none.
        PackageError: if a package that it needs is missing or too old.
    """
    require_packages(TASKS[config.command].packages(config))
    check_optimizer(config.optimizer, processes.device)
    task = make_task(config)
    task.check_data(data)
    return Engine(config, task, processes)


@dataclass(frozen=True)
class StepResult:
    """What a step gave, on the device: reading `loss` or `gradient_norm` waits for it."""

    step: int
    """Steps taken, this one included."""
    loss: Tensor
    """Scalar: this process's part of the mean over the step's pictures; the mean of all processes' parts is that."""
    gradient_norm: Tensor
    """Scalar, before clipping, of all processes together: of the mean over the step's pictures."""
    scale: Tensor
    """Scalar: what the loss is multiplied with for the next step, see `torch.amp.GradScaler`; 1 where it is off."""
    learning_rate: float
    keys: list[str]
    """Names of this process's samples."""
    data_seconds: float
    """Waited for data."""


class Seen(NamedTuple):
    """What all processes see of a step."""

    loss: float
    norm: float
    """Of the gradient."""
    scale: float
    """See `StepResult`."""
    wishes: set[str]
    """What any of them was asked for, see `run_dir.REQUESTS`."""


class Outcome:
    """What a step gave, the same on all processes. Making one waits for nothing; `read` waits for the step.

    Args:
        wishes: what this process was asked for.
    """

    def __init__(self, result: StepResult, wishes: list[str], processes: Processes):
        self.result, self._own_wishes, self._processes = result, wishes, processes.count
        numbers = torch.stack([result.loss, result.gradient_norm, result.scale]).float()
        if self._processes > 1:
            asked = torch.tensor([float(name in wishes) for name in REQUESTS]).to(numbers.device, non_blocking=True)
            numbers = torch.cat([numbers / self._processes, asked])
            torch.distributed.all_reduce(numbers)
        # Only CUDA has the event below; from other devices a copy that nobody waits for could be read half done.
        self._numbers = numbers.to("cpu", non_blocking=numbers.is_cuda)
        self._arrived = torch.cuda.Event() if numbers.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> Seen:
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, norm, scale, *asked = self._numbers.tolist()
        if self._processes == 1:
            return Seen(loss, norm, scale, set(self._own_wishes))
        return Seen(loss, norm, scale, {name for name, wanted in zip(REQUESTS, asked, strict=True) if wanted})


class Engine:
    """A task's networks on their device, with an optimiser.

    Args:
        config: of which it keeps what a step is computed with.
        task: its networks are moved to the device, and compiled or sharded if the settings say so.
        processes: see `distribute.connect`.
    """

    def __init__(self, config: TrainConfig, task: Task, processes: Processes):
        self.task, self.processes, self.device = task, processes, processes.device
        self.batch_size, self.accumulation, self.seed = config.batch_size, config.accumulation, config.seed
        self.rate, self.clip_norm, self.optimizer_kind = learning_rate(config), config.clip_norm, config.optimizer
        self.frozen_fingerprint = fingerprint(task)
        shards = config.sharding == "fsdp" and processes.count > 1
        averages = [] if task.ema is None else [task.ema]
        self.skeletons = {}
        if shards:
            self.skeletons = {name: skeleton(getattr(task, name)) for name in ("model", "ema")[: 1 + len(averages)]}
        for network in (task.model, *averages, *task.frozen):
            _own(network.to(self.device))
        if config.compile:
            task.compile()
        # Compiled blocks are sharded whole: gathering within them would break their graphs.
        gathered = None if config.compile or task.dtype == torch.float32 else task.dtype
        self.model = processes.spread(task.model, averages, shards, gathered)
        self.parameters = {name: each for name, each in task.model.named_parameters() if each.requires_grad}
        numbers = config.weight_decay, config.adam_beta2, config.adam_epsilon, task.dtype
        self.optimizer = make_optimizer(config.optimizer, self.parameters, config.learning_rate, *numbers)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=task.dtype == torch.float16)
        self.replayed: Replayed | None = None
        if config.cuda_graph and processes.count == 1 and self.device.type == "cuda":
            self.replayed = Replayed(self._run_micro_batch, self.parameters.values())

    @property
    def global_batch(self) -> int:
        """Samples of a micro-batch, over all processes."""
        return self.batch_size * self.processes.count

    def batches(
        self, data: FeatureDataset, start: int = 0, workers: int = 0, whole: bool = False
    ) -> Iterator[dict[str, Any]]:
        """This process's batches from micro-batch `start` on; see `FeatureDataset.batches`."""
        here, hint = self.processes, self.task.needs_hint
        return data.batches(self.batch_size, self.seed, start, here.index, here.count, workers, hint, whole)

    def step(self, number: int, batches: Iterator[dict[str, Any]]) -> StepResult:
        """Take step `number` (from 0) with the next `accumulation` batches.

        A batch with fewer pictures than usual counts for so much less: its share of loss and gradient is theirs, and
        so is that of the step, whose mean gradient is clipped first.
        """
        rate = self.rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, keys, waited, shares = torch.zeros((), device=self.device), [], 0.0, 0.0
        for micro in range(self.accumulation):
            begin = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - begin
            own = batch.pop("keys")
            keys += own
            shares += batch.pop("share").item()
            with accumulating(self.model, last=micro + 1 == self.accumulation):
                loss += self._backward(batch, number, micro, len(own))
        share = shares / self.accumulation
        norm = self._update(number, share)
        return StepResult(number + 1, loss / share, norm, self._scale(), rate, keys, waited)

    def tensors(self) -> dict[str, Tensor]:
        """All that a run's next step depends on, by name, as it is (sharded tensors are sharded): `model.NAME`,
        `ema.NAME`, and `optimizer.KEY.NAME` of each trained parameter."""
        frozen = {name for name, each in self.task.model.named_parameters() if not each.requires_grad}
        out: dict[str, Tensor] = {}
        for part, network in (("model", self.task.model), ("ema", self.task.ema)):
            if network is not None:
                state = network.state_dict()
                out |= {f"{part}.{name}": tensor for name, tensor in state.items() if name not in frozen}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                if isinstance(value, Tensor):
                    out[f"optimizer.{key}.{name}"] = value
        return out

    def numbers(self) -> dict[str, Any]:
        """The rest of it, ready for JSON: what the optimiser counts outside tensors, and the gradient scaler."""
        counts = {
            name: {key: value for key, value in self.optimizer.state[each].items() if not isinstance(value, Tensor)}
            for name, each in self.parameters.items()
        }
        return {
            "optimizer": {name: each for name, each in counts.items() if each},
            "groups": group_numbers(self.optimizer),
            "kind": self.optimizer_kind,
            "scaler": self.scaler.state_dict(),
        }

    def set_numbers(self, numbers: dict[str, Any]) -> None:
        """Put back what `numbers` gave."""
        for name, counts in numbers["optimizer"].items():
            self.optimizer.state[self.parameters[name]].update(counts)
        if "groups" in numbers:  # not in a file of an earlier version, whose optimisers count nothing there
            set_group_numbers(self.optimizer, numbers["groups"])
        if numbers["scaler"]:
            self.scaler.load_state_dict(numbers["scaler"])

    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint, about."""
        trained = sum(each.numel() for each in self.parameters.values())
        return int(trained * (4 + (0 if self.task.ema is None else 4) + STATE_BYTES[self.optimizer_kind]))

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, the main process's `task` can draw samples and export; all processes must enter."""
        sharded = {name: getattr(self.task, name) for name in self.skeletons}
        with self.evaluated():
            try:
                for name, empty in self.skeletons.items():
                    setattr(self.task, name, self.processes.made_whole(sharded[name], empty))
                yield
            finally:
                for name, network in sharded.items():
                    setattr(self.task, name, network)

    def evaluated(self) -> contextlib.AbstractContextManager:
        """Inside, the trained weights are those to use, see `optimizers.evaluated`."""
        return evaluated(self.optimizer)

    def _backward(self, batch: dict[str, Tensor], number: int, micro: int, count: int) -> Tensor:
        """Add a micro-batch's gradient; returns its part of the loss.

        Args:
            count: pictures that are this process's. With none it has a copy of the first row, which counts nothing:
                the other processes wait for its pass.
        """
        batch = {name: to_float32(to_device(value, self.device)) for name, value in batch.items()}
        rank, world = self.processes.index, self.processes.count
        rows = slice(rank, rank + count * world, world) if count else slice(1)
        draws = Draws(self.seed, number, micro, self.global_batch, rows, self.device)
        run = self.replayed or self._run_micro_batch
        return run(batch, draws, self._scale(), count / self.batch_size / self.accumulation)

    def _run_micro_batch(self, batch: Mapping[str, Tensor], draws: Draws, scale: Tensor, weight: float) -> Tensor:
        """Add the gradient of its loss times `weight`, and times `scale`; returns the loss times `weight`."""
        with self.task.autocast():  # ends before the backward pass, and with it the half copies that it keeps
            loss = self.task.loss(self.model, batch, draws) * weight
        (loss * scale).backward()
        return loss.detach()

    def _update(self, number: int, share: float) -> Tensor:
        """Clip, step, average; returns the norm of the mean gradient, of which the gradient is this share."""
        self.scaler.unscale_(self.optimizer)
        limit = self.clip_norm or math.inf
        norm = whole(nn.utils.clip_grad_norm_(self.parameters.values(), limit * share)) / share
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=self.replayed is None)  # graphs add to gradients where they are
        self._average(number + 1, norm)
        return norm

    @torch.no_grad()
    def _average(self, step: int, norm: Tensor) -> None:
        if self.task.ema is None:
            return
        ema, model = ([local(each) for each in net.parameters()] for net in (self.task.ema, self.task.model))
        share = 1 - self.task.ema_decay(step)
        if not self.scaler.is_enabled():
            torch._foreach_lerp_(ema, model, share)
            return
        # A gradient that overflowed float16 left the step out, and so the average. Whether it did is known on the
        # device alone: asking would wait for the step. A tensor as lerp's weight would be one for each weight of the
        # model, and so, as these are of other shapes, a kernel for each.
        if_taken = torch.where(norm.isfinite(), share, 0.0).to(torch.float32)
        for part in _parts([each.numel() for each in ema]):
            way = torch._foreach_sub(model[part], ema[part])
            torch._foreach_mul_(way, if_taken)
            torch._foreach_add_(ema[part], way)

    def _scale(self) -> Tensor:
        """The scaler's factor for the next step, on the device; `get_scale` would wait for it."""
        return self.scaler.scale(torch.ones((), device=self.device))


def learning_rate(config: TrainConfig) -> Callable[[int], float]:
    """The learning rate of step n (from 0): linear warm-up, then constant or cosine."""
    peak, warmup, steps, low = config.learning_rate, config.warmup_steps, config.steps, config.final_learning_rate
    is_cosine = config.schedule == "cosine"

    def rate(number: int) -> float:
        if is_cosine and number >= warmup:
            progress = (number - warmup) / max(1, steps - warmup)
            return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))
        return peak * min(1.0, (number + 1) / max(1, warmup))

    return rate


def _parts(sizes: Sequence[int], most: int = _AT_ONCE) -> Iterator[slice]:
    """Slices of tensors of these sizes, in their order, that have at most so many numbers, or are one tensor."""
    start, total = 0, 0
    for index, size in enumerate(sizes):
        if total + size > most and index > start:
            yield slice(start, index)
            start, total = index, 0
        total += size
    yield slice(start, len(sizes))


@torch.no_grad()
def _own(network: nn.Module) -> None:
    """Take weights on the CPU out of the file that they are mapped from: whoever cut it short, or replaced it in place,
    would end the training by a signal, without a word."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
