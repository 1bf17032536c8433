"""The blocks of a transformer in 8 bits on a CPU."""

from __future__ import annotations

import warnings
from typing import TypeVar

import torch
from torch import nn

from .model import PixArt

Model = TypeVar("Model", bound=PixArt)


def quantize_blocks(model: Model) -> Model:
    """Multiply a transformer's blocks in int8 from now on, in place: faster on a CPU, and a quarter of the memory.

    Weights in 8 bits a channel, activations in 8 bits a tensor by their range at each call (`torch.ao.quantization`);
    the token stream and the ends stay float32. Measured on a CPU with AVX2 (`python -m tools.bench int8`): 1.5 times as
    fast, and at 4 steps the bundled student's pictures are as right as before, at 1 step they lose 3 points. Put LoRAs
    on before: there are no weights to add them to afterwards.

    Returns:
        The model.

    Raises:
        ValueError: when it is not float32 on a CPU, or quantised already.
        ImportError: when this torch has no dynamic quantisation any more.
    """
    weight = model.blocks[0].mlp.fc1.weight
    if not isinstance(weight, nn.Parameter) or weight.device.type != "cpu" or weight.dtype != torch.float32:
        found = f"{weight.dtype} on {weight.device}" if isinstance(weight, nn.Parameter) else "quantised already"
        raise ValueError(f"blocks are quantised from float32 on a CPU; these are {found}")
    try:
        from torch.ao.quantization import quantize_dynamic
    except ImportError as error:
        raise ImportError(f"torch {torch.__version__} has no torch.ao.quantization: use a float32 model") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this will move to another package
        quantize_dynamic(model.blocks, {nn.Linear}, inplace=True)  # type: ignore[no-untyped-call]
    return model
