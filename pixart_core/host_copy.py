"""A network's weights in host memory while its device is needed for others, from where they return in one copy each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def pinned(tensor: Tensor) -> Tensor:
    """A copy in pinned host memory, which a device reads at the speed of its bus."""
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)


class HostCopy:
    """Copies of all tensors that a network holds, made once: leaving the device then costs nothing.

    Args:
        network: on its device. Nothing may change its weights from now on; what bitsandbytes keeps beside them
            (scales, code books) belongs to them.
        to_host: makes a copy.
    """

    def __init__(self, network: nn.Module, to_host: Callable[[Tensor], Tensor] = pinned):
        self._copies: list[Tensor] = []
        self._places: list[tuple[Any, str, int]] = []
        numbers: dict[tuple[Any, ...], int] = {}
        for owner, name, tensor in _tensors(network):
            key = tensor.data_ptr(), tensor.shape, tensor.dtype  # one tensor may hang in several places
            if key not in numbers:
                numbers[key] = len(self._copies)
                self._copies.append(to_host(tensor))
            self._places.append((owner, name, numbers[key]))
        self._away = False

    def leave(self) -> None:
        """Let go of the tensors on the device."""
        self._put(self._copies)
        self._away = True

    def come_back(self, device: torch.device) -> None:
        """Put the weights onto the device, if they have left it."""
        if self._away:
            self._put([copy.to(device, non_blocking=True, copy=True) for copy in self._copies])
            self._away = False

    def _put(self, tensors: list[Tensor]) -> None:
        for owner, name, number in self._places:
            setattr(owner, name, tensors[number])


def _tensors(network: nn.Module) -> Iterator[tuple[Any, str, Tensor]]:
    """Who holds a tensor, under which name, and the tensor."""
    seen: set[int] = set()
    waiting: list[Any] = [network]
    while waiting:
        owner = waiting.pop()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        if isinstance(owner, nn.Module):
            waiting += [*owner.children(), *owner.parameters(recurse=False), *owner.buffers(recurse=False)]
        elif isinstance(owner, Tensor):
            yield owner, "data", owner.data
        for name, value in vars(owner).items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                yield owner, name, value
            elif type(value).__module__.startswith("bitsandbytes."):
                waiting.append(value)
