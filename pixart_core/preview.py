"""What ComfyUI's previews are made with where latents are not Stable Diffusion's: colours, and the decoder as a TAESD.

TAESD (github.com/madebyollin/taesd) is the one shape of a decoder that ComfyUI has for previews.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .autoencoder import AutoencoderTiny
from .autoencoder_config import TinyConfig
from .errors import CheckpointError
from .identify import FileInfo

COLOURS = "preview"
"""Of a transformer's file: `factors` (4, 3) and `bias` (3,) from its latents to RGB in −1 … 1, by least squares."""
_SHAPE = TinyConfig()


def preview_colours(info: FileInfo) -> dict[str, Any]:
    """What a file says of itself as `COLOURS`; empty if it says nothing.

    Raises:
        CheckpointError: if that is something else.
    """
    if COLOURS not in info.metadata:
        return {}
    colours = info.metadata[COLOURS]
    try:
        shapes = [tuple(torch.tensor(colours[name], dtype=torch.float32).shape) for name in ("factors", "bias")]
    except (KeyError, TypeError, ValueError):
        shapes = []
    if shapes != [(4, 3), (3,)]:
        raise CheckpointError(
            f"{info.path}: the colours of its previews are {str(colours)[:100]}, not 4 by 3 factors and a bias of 3: "
            "make the file again"
        )
    return {COLOURS: colours}


def taesd_decoder(vae: Any) -> dict[str, Tensor]:
    """The weights of an AutoencoderTiny's decoder, float16, as TAESD's own file names them.

    Nothing that a picture is made of changes: channels beyond the decoder's own are 0 throughout, and a residual block
    too many is the ReLU of x + 0, where x is what another block left and not negative.

    Raises:
        ValueError: for a decoder that TAESD cannot hold: wider, deeper, or of another kind.
    """
    config = getattr(vae, "config", None)
    if not isinstance(config, TinyConfig) or not _holds(config):
        raise ValueError(f"TAESD, which is {_SHAPE}, cannot hold the decoder of {config or type(vae).__name__}")
    ours, theirs = (_places(each.num_decoder_blocks) for each in (config, _SHAPE))
    stored = vae.decoder.layers.state_dict()
    names = {ours[place]: theirs[place] for place in ours}
    moved = {f"{names[int(index)]}.{rest}": value for (index, rest), value in _split(stored)}
    state = {}
    for (index, rest), empty in _split(AutoencoderTiny(_SHAPE, device="meta").decoder.layers.state_dict()):
        value = torch.zeros(empty.shape, dtype=torch.float16)
        known = moved.get(f"{index}.{rest}")
        if known is not None:
            value[tuple(map(slice, known.shape))] = known.half()
        state[f"{int(index) + 1}.{rest}"] = value  # its first layer draws latents in, and has no weights
    return state


def _split(state: dict[str, Tensor]) -> list[tuple[tuple[str, str], Tensor]]:
    """Names of a sequence's weights as (layer, name in it)."""
    return [((name.split(".", 1)[0], name.split(".", 1)[1]), value) for name, value in state.items()]


def _holds(config: TinyConfig) -> bool:
    width, blocks = config.decoder_block_out_channels[0], config.num_decoder_blocks
    same = replace(
        config,
        encoder_block_out_channels=_SHAPE.encoder_block_out_channels,
        decoder_block_out_channels=_SHAPE.decoder_block_out_channels,
        num_encoder_blocks=_SHAPE.num_encoder_blocks,
        num_decoder_blocks=_SHAPE.num_decoder_blocks,
    )
    if same != _SHAPE or width > _SHAPE.decoder_block_out_channels[0] or len(blocks) != len(_SHAPE.num_decoder_blocks):
        return False
    return all(1 <= count <= most for count, most in zip(blocks, _SHAPE.num_decoder_blocks, strict=True))


def _places(blocks: Sequence[int]) -> dict[tuple[int, str], int]:
    """Place of every layer with weights in the decoder, by its resolution and what it is there."""
    places, last = {(0, "first"): 0}, 2
    for level, count in enumerate(blocks):
        if level > 0:
            places[level, "grown"] = last + 1
            last += 2
        places |= {(level, str(block)): last + block for block in range(count)}
        last += count
    places[0, "colours"] = last
    return places
