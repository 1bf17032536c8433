"""A micro-batch as one CUDA graph: on small models a step waits for Python to launch its thousands of kernels (30 ms a
step of the bundled models on an H200, which has computed them in a fraction of that).

Everything from the batch to the gradient is captured at the second use of a size and replayed from then on: the forward
passes of all networks, the loss, the backward pass. Clipping, optimiser and average, a few fused kernels, stay outside,
and so does what a graph cannot hold: random numbers are drawn before, and the gradient scale is read as a tensor.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...pixart_core.graphs import Capture, Replay, capture_on_cuda
from ..data.draws import Draws

logger = logging.getLogger(__name__)

LIMIT = 12
"""Sizes whose graphs are kept; they share their memory, as they are never replayed at once."""

MicroBatch = Callable[..., Tensor]
"""(batch, draws, gradient scale, *constants) -> loss, a scalar; adds its gradients to the parameters'."""


class RecordedDraws:
    """Hands out what `Draws` hands out, and remembers what was asked for."""

    def __init__(self, draws: Draws):
        self._draws = draws
        self.asked: list[tuple[str, tuple[Any, ...]]] = []

    def normal(self, shape: Sequence[int]) -> Tensor:
        return self._ask("normal", tuple(shape))

    def integers(self, high: int) -> Tensor:
        return self._ask("integers", high)

    def uniform(self) -> Tensor:
        return self._ask("uniform")

    def _ask(self, name: str, *arguments: Any) -> Tensor:
        self.asked.append((name, arguments))
        return getattr(self._draws, name)(*arguments)


class GivenDraws:
    """Hands out numbers that were drawn before, in the same order."""

    def __init__(self, drawn: Sequence[Tensor]):
        self._drawn = iter(drawn)

    def _next(self, *_asked: Any) -> Tensor:
        return next(self._drawn)

    normal = integers = uniform = _next


@dataclass
class _Graph:
    replay: Replay
    inputs: list[Tensor]
    loss: Tensor


class Replayed:
    """Micro-batches of a training, of which those of a size that was seen before are replayed.

    Weights and gradients must stay where they are: parameters are changed in place, and gradients set to zero and not
    to none. The same kernels run on the same numbers, so that nothing else changes.

    Args:
        run: one micro-batch without a graph.
        parameters: that it adds gradients to.
        capture: `capture_on_cuda`; another one for tests.
        limit: graphs to keep; the one that was not used for longest goes.
    """

    def __init__(
        self,
        run: MicroBatch,
        parameters: Iterable[nn.Parameter],
        capture: Capture | None = None,
        limit: int = LIMIT,
    ):
        self._run, self._parameters = run, list(parameters)
        self._capture, self._limit = capture or capture_on_cuda, limit
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._asked: dict[Hashable, list[tuple[str, tuple[Any, ...]]]] = {}
        self._memory: Any = None
        self._refused = False
        self.counts: Counter[str] = Counter()
        """How many micro-batches were run, captured and replayed."""

    def __call__(self, batch: Mapping[str, Tensor], draws: Draws, scale: Tensor, *constants: Hashable) -> Tensor:
        """The loss of a micro-batch, whose gradients are added; read it before the next one.

        Args:
            constants: values that a capture bakes in.
        """
        key = (constants, *((name, each.shape, each.dtype) for name, each in batch.items()))
        asked = self._asked.get(key)
        if asked is None or self._refused:
            recorded = RecordedDraws(draws)
            loss = self._run(batch, recorded, scale, *constants)
            self._asked[key] = recorded.asked
            self.counts["run"] += 1
            return loss
        inputs = [*batch.values(), *(getattr(draws, name)(*arguments) for name, arguments in asked), scale]
        graph = self._graphs.get(key) or self._captured(key, list(batch), inputs, constants)
        if graph is None:
            return self._run(batch, GivenDraws(inputs[len(batch) : -1]), scale, *constants)
        self._graphs.move_to_end(key)
        for own, given in zip(graph.inputs, inputs, strict=True):
            own.copy_(given)
        graph.replay()
        self.counts["replayed"] += 1
        return graph.loss

    def _captured(
        self, key: Hashable, names: list[str], inputs: list[Tensor], constants: Sequence[Hashable]
    ) -> _Graph | None:
        own, count = [each.clone() for each in inputs], len(names)

        def call() -> Tensor:
            return self._run(dict(zip(names, own[:count], strict=True)), GivenDraws(own[count:-1]), own[-1], *constants)

        gradients = [each.grad for each in self._parameters if each.grad is not None]
        before = [each.clone() for each in gradients]  # the runs before a capture add theirs
        try:
            memory = self._memory if self._graphs else None  # with the last graph its memory went
            replay, loss, self._memory = self._capture(call, memory)
        except RuntimeError as error:  # what a library does there that a graph cannot hold
            logger.warning("no CUDA graph of a step: %s", str(error).strip().splitlines()[0])
            self._refused = True
            return None
        finally:
            torch._foreach_copy_(gradients, before)
        self.counts["captured"] += 1
        self._graphs[key] = _Graph(replay, own, loss)
        if len(self._graphs) > self._limit:
            self._graphs.popitem(last=False)
        return self._graphs[key]
