"""How the family's small networks are trained: AdamW on one cycle of the learning rate, kept so that it can go on."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ...pixart_core.functional import sampling_dtype
from ..data.readahead import read_ahead
from ..step.muon import Muon
from ..storage import replacing

Result = TypeVar("Result")


class Kept(Protocol):
    """Something with a state that a stopped training goes on from."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def fast_half(device: torch.device) -> torch.autocast:
    """Products in bfloat16 where the device is fast in half precision, and as they are elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=sampling_dtype(device) != torch.float32)


def step_rng(seed: int, step: int) -> random.Random:
    """Random numbers by the number of the step, torch's, too, so that nothing random has to be kept to go on."""
    rng = random.Random(f"{seed} {step}")
    torch.manual_seed(rng.randrange(2**31))
    return rng


def muon(net: nn.Module, learning_rate: float, hidden_rate: float, outer: Iterable[nn.Module]) -> Muon:
    """Muon for the convolutions between hidden channels, Adam for the others and for biases.

    Args:
        learning_rate: of Adam.
        hidden_rate: of Muon: about the size of a step of each singular value.
        outer: convolutions whose one side is not hidden channels, such as the first and the last.
    """
    excluded = set(outer)
    hidden = [each.weight for each in net.modules() if isinstance(each, nn.Conv2d) and each not in excluded]
    moved = set(map(id, hidden))
    others = [each for each in net.parameters() if id(each) not in moved]
    groups = ((hidden, hidden_rate, True), (others, learning_rate, False))
    return Muon([{"params": params, "lr": rate, "is_hidden": is_hidden} for params, rate, is_hidden in groups])


def drawn(
    draw: Callable[[random.Random], Result], seed: int | str, numbers: Iterable[int], workers: int
) -> Iterator[Result]:
    """What the steps with these numbers learn from, each a function of the seed and its number alone.

    Args:
        draw: makes it with these random numbers; goes to the processes that draw.
        workers: processes that draw; 0 = this one.
    """
    return read_ahead(functools.partial(_drawn, draw, seed), numbers, workers)


def _drawn(draw: Callable[[random.Random], Result], seed: int | str, number: int) -> Result:
    return draw(random.Random(f"{seed} {number}"))


class Learner:
    """A network, its optimizer and where it stands.

    Args:
        steps: of the whole cycle.
        clip: largest gradient norm; None = no clipping.
        file: what a stopped training goes on from; None = it is not kept.
        beside: what else is trained, kept in the same file.
        optimizer: whose groups have the highest rates of the cycle; None = AdamW with the three numbers above.
    """

    def __init__(
        self,
        net: nn.Module,
        steps: int,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        beta2: float = 0.99,
        clip: float | None = 1.0,
        file: Path | None = None,
        beside: Mapping[str, Kept] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ):
        self.net, self.steps, self.clip, self.file, self.step = net, steps, clip, file, 0
        self.optimizer = optimizer or torch.optim.AdamW(
            net.parameters(), lr=learning_rate, betas=(0.9, beta2), weight_decay=weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            [group["lr"] for group in self.optimizer.param_groups],
            total_steps=steps,
            pct_start=0.1,
            cycle_momentum=optimizer is None,
        )
        self._kept: dict[str, Kept] = {"net": net, "optimizer": self.optimizer, "schedule": self.schedule}
        self._kept |= beside or {}
        if file is not None and file.exists():
            state = torch.load(file, weights_only=True, map_location=next(net.parameters()).device)
            self.step = state["step"]
            for name, part in self._kept.items():
                part.load_state_dict(state[name])
            print(f"going on after step {self.step}", flush=True)

    def update(self, loss: Tensor) -> None:
        """Take a step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1

    def tells(self, every: int) -> bool:
        """Whether it is time to say how far it is."""
        return self.step % every == 0 or self.step == self.steps

    def save(self) -> None:
        """Keep what it goes on from."""
        assert self.file is not None, "it has no file"
        with replacing(self.file) as temporary:
            torch.save({"step": self.step, **{name: part.state_dict() for name, part in self._kept.items()}}, temporary)
