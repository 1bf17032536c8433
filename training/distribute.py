"""One process or many: connecting them, spreading a network over them, and making what is spread whole again."""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ..pixart_core.layers import Block
from .launcher import adopt, take_the_one_device
from .machine import die_with_parent
from .settings import ConfigError

Result = TypeVar("Result")
_OURS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU)
"""What processes may be: alone, or on CPUs, NVIDIA's and AMD's GPUs, or Intel's (never run: nobody had one)."""

_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)
"""Argument of DDP: all processes have the same buffers already. torch 2.14 renamed it, and warns of the old name."""


class Processes:
    """The processes that share a training's work: which this one is, and what they do together.

    What they do together all of them must call, in the same order.

    Args:
        accelerator: that connected them.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self.device = accelerator.device
        self.count, self.index = accelerator.num_processes, accelerator.process_index
        self.is_main = accelerator.is_main_process

    def agreement(self) -> Callable[[bool, bool], tuple[bool, bool]]:
        """`Patience`'s `agree`, to be called equally often by all. It goes over the CPU, so that a GPU need not wait
        for what it computes."""
        group: Any = torch.distributed.new_group(backend="gloo")  # declared as None or a number, too

        def agree(ready: bool, stop: bool) -> tuple[bool, bool]:
            missing = torch.tensor([not ready, stop], dtype=torch.int32)
            torch.distributed.all_reduce(missing, torch.distributed.ReduceOp.MAX, group)
            return not missing[0], bool(missing[1])

        return agree

    def on_main(self, function: Callable[[], Result]) -> Result:
        """Run `function` on the main process and give its result to all.

        If it fails, the error is raised there, and the other processes exit without a word.
        """
        outcome: list[Any] = [None, False]
        failure = None
        if self.is_main:
            try:
                outcome[0] = function()
            except Exception as error:
                failure, outcome[1] = error, True
        broadcast_object_list(outcome)
        if failure is not None:
            raise failure
        if outcome[1]:
            raise SystemExit(1)
        return outcome[0]

    def from_main(self, tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The main process's tensor on the device of every process. The others give None."""
        if tensor is None:
            tensor = torch.empty(shape, dtype=dtype)
        tensor = tensor.to(self.device)
        if self.count > 1:
            torch.distributed.broadcast(tensor, 0)
        return tensor

    def gather(self, value: Result) -> list[Result]:
        """Every process's value, by its number."""
        return gather_object([value])

    def spread(
        self, model: nn.Module, others: Sequence[nn.Module], shard: bool, gathered: torch.dtype | None = None
    ) -> nn.Module:
        """The trained network ready for its forward passes on this process: itself, in DDP, or sharded in place.

        Args:
            others: networks like the average, which have no backward pass, to be sharded with it.
            shard: whether several processes share the weights.
            gathered: see `_shard`.
        """
        if self.count == 1:
            return model
        if shard:
            _shard(model, self.device, gathered)
            for network in others:
                _shard(network, self.device, gathered, reshard=True)
            return model
        devices = None if self.device.type == "cpu" else [self.device]
        options: dict[str, Any] = {_SYNC_BUFFERS: False}
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, **options)

    def made_whole(self, network: nn.Module, empty: nn.Module) -> nn.Module:
        """A sharded network whole on the main process, to draw samples with and to export; on the others as it is.

        Args:
            empty: its `skeleton`.
        """
        state = {}
        for name, tensor in network.state_dict().items():
            full = whole(tensor)
            if self.is_main:
                state[name] = full
        if not self.is_main:
            return network
        made = copy.deepcopy(empty)
        made.load_state_dict(state, assign=True)
        return made

    def end(self) -> None:
        """Part, when there is nothing more to do."""
        self._accelerator.end_training()


def connect(deterministic: bool = False) -> Processes:
    """Join the processes that a launcher started: torchrun, `accelerate launch`, srun or an MPI.

    Args:
        deterministic: whether a GPU is to give the same bits each time, for the rest of this process.

    Raises:
        ConfigError: if accelerate was told to shard the model itself, or processes were started that cannot work
            together: none trains alone with a part of the batch.
    """
    if deterministic:
        _compute_deterministically()
    world = adopt()
    kind = _device_kind()
    if world > 1:
        _give_devices(kind)
    # Precision, accumulation and gradient scaling are the engine's, alike on every device; so "no" here. accelerate
    # connects processes without a GPU only where it is told that they compute on the CPU.
    accelerator = Accelerator(mixed_precision="no", cpu=world > 1 and kind in ("cpu", "mps"))
    if accelerator.distributed_type not in _OURS:
        raise ConfigError(
            f"accelerate is set up for {accelerator.distributed_type.value}, which is not supported: processes share "
            "the work on CPUs, NVIDIA, AMD or Intel GPUs. Run `accelerate launch --multi_gpu` or torchrun, and set "
            "sharding=fsdp to shard the model"
        )
    if accelerator.num_processes != world:
        raise ConfigError(
            f"{world} processes were started, but accelerate connects {accelerator.num_processes} on {kind}: this "
            "torch cannot connect such devices. Start one process, or set ACCELERATE_USE_CPU=1"
        )
    if accelerator.num_processes > 1:
        die_with_parent()  # a launcher that is killed takes its processes along
    return Processes(accelerator)


def _compute_deterministically() -> None:
    """Before anything computes on a GPU: cuBLAS reads only once how large its work space is, and gives the same bits
    where that is fixed."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # which would choose by the time that each one took


def _device_kind() -> str:
    """What accelerate will compute on: cpu, cuda, xpu, mps …"""
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "cpu"
    if hasattr(torch, "accelerator"):  # torch 2.6
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return "cpu" if found is None else found.type
    return "cuda" if torch.cuda.is_available() else "cpu"


def _give_devices(kind: str) -> None:
    """See that this process has a GPU of its own. A cluster may show each process only one, whatever its number.

    Raises:
        ConfigError: if there are fewer GPUs than processes on this host.
    """
    if kind in ("cpu", "mps"):
        return
    local, seen = int(os.environ["LOCAL_RANK"]), getattr(torch, kind).device_count()
    if local < seen:
        return
    if seen == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:  # not torchrun, which shows all to all
        take_the_one_device()
        return
    raise ConfigError(
        f"process {local} of this host has no GPU of its own, since {seen} are visible: start as many processes as GPUs"
    )


def _shard(
    network: nn.Module, device: torch.device, gathered: torch.dtype | None = None, reshard: bool | None = None
) -> None:
    """FSDP2: each block is gathered while it is used, the little outside blocks as long as the network is.

    Args:
        gathered: what a block's products are gathered in, half of what goes between the processes. They would be
            rounded to it anyway, and their gradients are summed in float32. Its adaLN table, which belongs to the
            stream of tokens, is then one of the parts outside. None = as they are.
        reshard: whether the latter goes when the forward pass ends; None keeps it for the backward pass.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in [module for module in network.modules() if isinstance(module, Block)]:
        if gathered is None:
            fully_shard(block, mesh=mesh)
            continue
        policy = MixedPrecisionPolicy(gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
        fully_shard([block.attn, block.cross_attn, block.mlp], mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, reshard_after_forward=reshard)


def accumulating(model: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Surrounds a micro-batch: DDP adds up the gradients of all processes with the last one only.

    Sharded gradients are added up every time, because whole ones would not fit.
    """
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else contextlib.nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process. All processes must ask, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, example: Tensor) -> Tensor:
    """A whole tensor, which every process has, in the example's place: on its device and, if it is sharded, sharded."""
    if isinstance(example, DTensor):
        return distribute_tensor(tensor, example.device_mesh, example.placements, src_data_rank=None)
    return tensor.to(example.device)


def skeleton(network: nn.Module) -> nn.Module:
    """A copy without weights (on "meta"), to be filled when the network, by then sharded, is wanted whole."""
    empty: dict[int, Tensor] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        meta = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        empty[id(tensor)] = nn.Parameter(meta, requires_grad=tensor.requires_grad) if is_parameter else meta
    return copy.deepcopy(network, empty)
