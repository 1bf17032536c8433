"""HED soft edges as PixArt's ControlNet was trained on: float in, float out, full resolution, nothing rounded.

The network and its weights (ControlNetHED.pth) are those of `controlnet_aux`, whose detector however works on 8-bit
pictures at 512 px and returns 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .aliases import Device, DType, Operations, PathLike
from .errors import CheckpointError, summary
from .factory import Factory
from .identify import inspect_file
from .weightfile import open_weights

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five stages of the released network."""
_DEPTHS = (2, 2, 3, 3, 3)
MIN_SIDE = 16
"""Pixels: the network halves a picture four times."""
_CHANNELS = {1: "grey", 3: "RGB", 4: "RGBA"}


class _Stage(nn.Module):
    """Convolutions with ReLU, and a projection to one edge map."""

    def __init__(self, width_in: int, width: int, depth: int, make: Factory):
        super().__init__()
        self.convs = nn.Sequential(
            *(make.conv(width if index else width_in, width, 3, padding=1) for index in range(depth))
        )
        self.projection = make.conv(width, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        return x, self.projection(x)


class HED(nn.Module):
    """Holistically-nested edge detection. Parameters carry the names of `controlnet_aux`'s ControlNetHED_Apache2.

    Args:
        widths: channels of the five stages; the released network's, or fewer.
        dtype, device: of the parameters.
        operations: namespace that Conv2d is taken from (torch.nn, or ComfyUI's).
    """

    def __init__(
        self, widths: tuple[int, ...] = WIDTHS, dtype: DType = None, device: Device = None, operations: Operations = nn
    ):
        super().__init__()
        make = Factory(dtype, device, operations)
        self.norm = nn.Parameter(make.zeros(1, 3, 1, 1))
        for index, (width_in, width, depth) in enumerate(zip((3, *widths), widths, _DEPTHS, strict=False)):
            setattr(self, f"block{index + 1}", _Stage(width_in, width, depth, make))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """pixels (B, 3, H, W) in 0 … 255 -> five edge maps before the sigmoid, (B, 1, H / 2^i, W / 2^i)."""
        return [side for _, side in self.stages(pixels)]

    def stages(self, pixels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What each stage sees, (B, widths[i], H / 2^i, W / 2^i), and its edge map; computed as it is asked for."""
        x = pixels - self.norm.to(pixels)
        for index in range(len(_DEPTHS)):
            x, side = getattr(self, f"block{index + 1}")(F.max_pool2d(x, 2) if index else x)
            yield x, side


def load_hed(
    path: PathLike,
    dtype: torch.dtype | None = torch.float32,
    device: Device = None,
    operations: Operations = nn,
) -> HED:
    """The network from ControlNetHED.pth, or a narrower one of the same layout, strict, in eval mode.

    Args:
        dtype: of the weights; None = the file's.

    Raises:
        CheckpointError: if the file is missing, damaged, carries code, or is something else.
    """
    file = open_weights(path)
    if (info := inspect_file(path)).kind != "hed":
        raise CheckpointError(
            f"{path} is not a HED edge detector but {info.describe()}. The released one is "
            "ControlNetHED.pth in lllyasviel/Annotators on Hugging Face"
        )
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    first = [shapes.get(f"block{index + 1}.convs.0.weight") or (1,) for index in range(len(_DEPTHS))]
    widths = tuple(max(shape[0], 1) for shape in first)
    model = HED(widths, device="meta", operations=operations)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if wrong:
        raise CheckpointError(
            f"{path} is not laid out as ControlNetHED.pth is: these are missing, unknown or of "
            f"another shape: {summary(wrong)}"
        )
    file.require_numbers()
    state = file.assemble({name: (name,) for name in expected}, dtype, device)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def detect(model: HED, images: Tensor, safe: bool = False, scribble: bool = False, resolution: int = 0) -> Tensor:
    """Soft edges of pictures, as the authors computed them for training when all options are off.

    One picture at a time passes through the network, so that a batch takes the memory of one.

    Args:
        images: (B, H, W, C) in 0 … 1 on the network's device: RGB; grey (C = 1) is repeated, RGBA is put on white.
        safe: round to 0, ½ and 1, as `controlnet_aux` does on request.
        scribble: thin to lines and thicken these to 1, everything else 0, likewise.
        resolution: shorter side in px to detect at (the sides become multiples of 64); 0 = the picture's own.

    Returns:
        (B, H, W, 1) float32 in 0 … 1.

    Raises:
        ValueError: on another shape or type, sides under 16 px, a range beyond 0 … 1, NaN, or a network that makes NaN.
    """
    pictures = _rgb(images)
    edges = torch.cat([_soft_edges(model, picture[None], resolution) for picture in pictures])
    if not edges.isfinite().all():
        raise ValueError(f"HED returned NaN: its weights are damaged, or {model.norm.dtype} overflows (use float32)")
    if safe:
        edges = ((edges * 3).floor() / 2).clamp(max=1)
    if scribble:
        edges = torch.cat([_scribble(edge[None]) for edge in edges])
    return edges.permute(0, 2, 3, 1)


def _rgb(images: Tensor) -> Tensor:
    """(B, H, W, C) pictures of 1, 3 or 4 channels -> (B, 3, H, W) float32."""
    if images.ndim != 4 or images.shape[-1] not in _CHANNELS or not images.is_floating_point():
        raise ValueError(
            f"pictures are (B, H, W, C) in floating point, with C 1, 3 or 4; got shape "
            f"{tuple(images.shape)}, {images.dtype}"
        )
    if min(images.shape[1:3]) < MIN_SIDE:
        raise ValueError(
            f"HED takes pictures of at least {MIN_SIDE} px a side, got {images.shape[2]} x "
            f"{images.shape[1]}: enlarge them first"
        )
    images = images.float()
    if not images.isfinite().all():
        raise ValueError("the picture holds NaN or infinite values: look at the node that made it")
    if images.min() < -1e-3 or images.max() > 1 + 1e-3:
        raise ValueError(f"pictures are in 0 … 1, these reach from {images.min():g} to {images.max():g}")
    if images.shape[-1] == 4:
        alpha = images[..., 3:]
        images = images[..., :3] * alpha + 1 - alpha
    return images.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).clamp(0, 1)


def _soft_edges(model: HED, picture: Tensor, resolution: int) -> Tensor:
    """(1, 3, H, W) in 0 … 1 -> (1, 1, H, W): the mean of the side outputs at full size, through a sigmoid."""
    size = picture.shape[-2:]
    if resolution:
        scale = resolution / min(size)
        inner = [max(round(side * scale / 64), 1) * 64 for side in size]
        picture = F.interpolate(picture, inner, mode="bicubic", antialias=True).clamp(0, 1)
    # Channels last: 1.4 times as fast on a CPU.
    sides = model((picture * 255).to(model.norm.dtype, memory_format=torch.channels_last))
    edges = fused(sides, picture.shape[-2:]).sigmoid()
    return F.interpolate(edges, size, mode="bilinear", antialias=True) if resolution else edges


def fused(sides: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The mean of side outputs at a size (H, W), before the sigmoid: (B, 1, H, W) float32."""
    return torch.stack([F.interpolate(side.float(), tuple(size), mode="bilinear") for side in sides]).mean(0)


def _blur(x: Tensor, sigma: float, radius: int) -> Tensor:
    """Gaussian blur of (1, 1, H, W) with mirrored borders."""
    kernel = torch.exp(-(torch.arange(-radius, radius + 1, device=x.device) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    rows = F.conv2d(_mirror(x, radius, 2), kernel.view(1, 1, -1, 1))
    return F.conv2d(_mirror(rows, radius, 3), kernel.view(1, 1, 1, -1))


def _mirror(x: Tensor, radius: int, dim: int) -> Tensor:
    """Pad a dimension by reflection, any radius."""
    last = max(x.shape[dim] - 1, 1)
    index = torch.arange(-radius, x.shape[dim] + radius, device=x.device) % (2 * last)
    return x.index_select(dim, torch.minimum(index, 2 * last - index))


def _scribble(edges: Tensor) -> Tensor:
    """(1, 1, H, W) -> lines of 0 and 1: ridges of the blurred map that rise above ½, blurred and cut low."""
    x = _blur((edges * 255).floor(), 3.0, 12)
    ridge = torch.zeros_like(x, dtype=torch.bool)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):  # a ridge is a maximum along one of four lines
        padded = F.pad(x, (1, 1, 1, 1), value=-torch.inf)
        height, width = x.shape[-2:]
        ahead = padded[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        behind = padded[..., 1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        ridge |= (x >= ahead) & (x >= behind)
    lines = (ridge & (x > 127)).float() * 255
    return (_blur(lines, 3.0, 9).round() > 4).float()
