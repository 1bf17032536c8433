"""CUDA graphs: what a network launches for one size is captured once, and replayed from then on without Python.

At batch 1 a picture is bound by the host: launching a forward of the released models takes it 20 ms, and the GPU 5 (512
px) to 16.5 ms (1024 px) to run it.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

LIMIT = 6
"""Graphs that are kept: a size of step, of step with control, of text and of decoding each are one."""
_WARM_UPS = 2
"""Runs before a capture, in which libraries choose their kernels and get their work space."""


class Replay(Protocol):
    """Runs what was captured, on the tensors that it was captured with."""

    def __call__(self) -> None: ...


Output = TypeVar("Output", Tensor, list[Tensor | None])
"""What a function gives: a tensor, or several of which some may be nothing."""

Capture = Callable[[Callable[[], Any], Any], tuple[Replay, Any, Any]]
"""Captures a call, with memory of its own or, as graphs are never replayed at once, with that of earlier ones: what
replays it, its output, which each replay fills anew, and the memory."""


@dataclass
class _Graph:
    replay: Replay
    inputs: list[Tensor | None]
    output: Any
    function: Callable[..., Any]
    """Keeps alive what it closed over: the graph reads that memory."""
    filled: list[tuple[Any, int] | None] = field(default_factory=list)
    """Which tensor each input is a copy of: a weak reference, and its version."""


class Graphs:
    """Functions of tensors, captured at the second use of a size and replayed from the third on.

    A graph reads weights where they were when it was captured. So it is known by their addresses, too: after a LoRA, a
    move or another dtype there is none, and those of before are dropped. Nothing is captured with gradients, hooks on
    modules, or off the GPU. A replay gives what the plain call gives, bit for bit: the same kernels run.

    Args:
        capture: `capture_on_cuda`; another one for tests.
        limit: graphs to keep; the one that was not used for longest goes.
        works_on: types of devices that can capture.
    """

    def __init__(self, capture: Capture | None = None, limit: int = LIMIT, works_on: Sequence[str] = ("cuda",)):
        self._capture = capture or capture_on_cuda
        self._limit, self._works_on = limit, frozenset(works_on)
        self._graphs: OrderedDict[tuple[Hashable, ...], _Graph] = OrderedDict()
        self._seen: Counter[tuple[Hashable, ...]] = Counter()
        self._states: dict[str, Hashable] = {}
        self._refused: set[str] = set()
        self._memory: Any = None

    def __len__(self) -> int:
        return len(self._graphs)

    def __deepcopy__(self, _memo: object) -> Graphs:
        """A network's copy has weights of its own, and begins with no graphs."""
        return Graphs(self._capture, self._limit, tuple(self._works_on))

    def works_on(self, device: torch.device) -> bool:
        """Whether anything can be captured there."""
        return device.type in self._works_on

    def clear(self) -> None:
        """Forget all graphs, and give their memory back."""
        self._graphs.clear()
        self._seen.clear()
        self._states.clear()

    def state(self, networks: Sequence[nn.Module]) -> Hashable | None:
        """Where the weights of networks are, and as what; None where they have hooks, which a graph would leave out.
        Changes of weights in place are seen by a graph, others are not. Takes a millisecond: ask once for a picture."""
        if any(_has_hooks(module) for network in networks for module in network.modules()):
            return None
        return tuple(
            (tensor.data_ptr(), tensor.dtype, tensor.device)
            for network in networks
            for tensor in (*network.parameters(), *network.buffers())
        )

    def __call__(
        self,
        name: str,
        function: Callable[..., Output],
        inputs: Sequence[Tensor | None],
        state: Hashable | None,
        *constants: Hashable,
    ) -> Output:
        """function(*inputs), which reads nothing else that changes but weights.

        Args:
            name: of what is computed.
            state: of the networks that it reads, from `state`.
            constants: values that a capture bakes in.
        """
        if name in self._refused or state is None or not self._may_capture(inputs):
            return function(*inputs)
        if self._states.get(name) != state:
            self._drop(name)
            self._states[name] = state
        key = (name, constants, *(None if each is None else (each.shape, each.dtype, each.device) for each in inputs))
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return cast(Output, _replayed(self._graphs[key], inputs))
        self._seen[key] += 1
        if self._seen[key] < 2:
            return function(*inputs)
        graph = self._captured(name, function, inputs)
        if graph is None:
            return function(*inputs)
        self._graphs[key] = graph
        while len(self._graphs) > self._limit:
            self._graphs.popitem(last=False)
        return cast(Output, _replayed(graph, inputs))

    def _may_capture(self, inputs: Sequence[Tensor | None]) -> bool:
        kinds = {each.device.type for each in inputs if each is not None}
        return not torch.is_grad_enabled() and kinds <= self._works_on and not any(map(_is_autocast, kinds))

    def _captured(self, name: str, function: Callable[..., Any], inputs: Sequence[Tensor | None]) -> _Graph | None:
        with torch.inference_mode(False), torch.no_grad():
            own = [None if each is None else torch.empty_like(each).copy_(each) for each in inputs]
        try:
            memory = self._memory if self._graphs else None  # with the last graph its memory went
            replay, output, self._memory = self._capture(lambda: function(*own), memory)
        except RuntimeError as error:  # what a library does there that a graph cannot hold
            self._refused.add(name)
            logger.warning("no CUDA graph of %s: %s", name, str(error).strip().splitlines()[0])
            return None
        return _Graph(replay, own, output, function, [None] * len(own))

    def _drop(self, name: str) -> None:
        for key in [key for key in self._seen if key[0] == name]:
            del self._seen[key]
            self._graphs.pop(key, None)


def capture_on_cuda(call: Callable[[], Any], memory: Any) -> tuple[Replay, Any, Any]:
    """A call as a CUDA graph; see `Capture`."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as a browser's preview, may use the GPU meanwhile.
    with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
        output = call()
    return graph.replay, output, graph.pool()


def _replayed(graph: _Graph, inputs: Sequence[Tensor | None]) -> Any:
    for index, (own, given) in enumerate(zip(graph.inputs, inputs, strict=True)):
        if own is None or given is None:
            continue
        if given.is_inference():  # has no version that would tell whether it was changed
            graph.filled[index] = None
            own.copy_(given)
            continue
        last = graph.filled[index]
        if last is None or last[0]() is not given or last[1] != given._version:
            own.copy_(given)
            graph.filled[index] = (weakref.ref(given), given._version)
    graph.replay()
    if isinstance(graph.output, Tensor):
        return graph.output.clone()
    return [None if each is None else each.clone() for each in graph.output]


def _is_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
