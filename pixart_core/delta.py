"""What a LoRA changes, weight by weight, in the authors' names: applied to a model, checked against it, saved."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .aliases import PathLike
from .convert import diffusers_names
from .errors import CheckpointError
from .identify import METADATA_KEY
from .modelspec import modelspec
from .saving import save_weights


@dataclass(frozen=True)
class Change:
    """A change of one weight, or of some rows of a fused one."""

    key: str
    """The authors' name of the weight."""
    part: int
    """Which of `parts` equal groups of rows is changed: q, k, v of a fused matrix."""
    parts: int
    """1 = the whole weight."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it changes, rows first; of all but a `Diff` with kernels flattened."""
        raise NotImplementedError

    def change(self, rows: Tensor) -> Tensor:
        """What it adds to the rows (R, …) float32 that it changes, at strength 1."""
        raise NotImplementedError

    @property
    def rows(self) -> slice | None:
        """The changed rows; None = all."""
        height = self.shape[0]
        return None if self.parts == 1 else slice(self.part * height, (self.part + 1) * height)


@dataclass(frozen=True)
class Delta(Change):
    """Of low rank: a LoRA's or a DoRA's."""

    up: Tensor
    """(rows, rank)."""
    down: Tensor
    """(rank, columns)."""
    alpha: float
    magnitude: Tensor | None = None
    """(rows,), of a DoRA: the changed rows are multiplied by this over the size of the rows before."""

    @property
    def scale(self) -> float:
        return self.alpha / self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def matrix(self) -> Tensor:
        """up · down · alpha / rank, (rows, columns) float32."""
        return self.scale * (self.up.float() @ self.down.float())

    def change(self, rows: Tensor) -> Tensor:
        added = self.matrix().to(rows.device).reshape(rows.shape)
        if self.magnitude is None:
            return added
        size = rows.flatten(1).norm(dim=1) + torch.finfo(torch.float32).eps
        ratio = (self.magnitude.to(rows.device).float() / size).view(-1, *[1] * (rows.ndim - 1))
        return (rows + added) * ratio - rows


@dataclass(frozen=True)
class Kron(Change):
    """A Kronecker product: a LoKr's."""

    first: Tensor
    """(a, b), with the scale in it."""
    second: Tensor
    """(c, d), or (c, d, kernel, kernel) of a convolution; the weight is (a · c, b · d, …)."""

    @property
    def shape(self) -> tuple[int, int]:
        a, b = self.first.shape
        c, d = self.second.flatten(1).shape
        return a * c, b * d

    def matrix(self) -> Tensor:
        """(rows, columns) float32."""
        first = self.first.float().view(*self.first.shape, *[1] * (self.second.ndim - 2))
        return torch.kron(first, self.second.float()).flatten(1)

    def change(self, rows: Tensor) -> Tensor:
        return self.matrix().to(rows.device).reshape(rows.shape)


@dataclass(frozen=True)
class Diff(Change):
    """Stored as it is; of a weight or a bias."""

    value: Tensor
    """A change of the weight's shape, or of its part's."""
    replaces: bool = False
    """Whether the value takes the weight's place instead of being added, at any strength."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def change(self, rows: Tensor) -> Tensor:
        return self.value.to(rows.device).float()


@dataclass(frozen=True)
class Lora:
    """A LoRA in the authors' names."""

    name: str
    """Where it came from, for messages."""
    deltas: tuple[Delta, ...]
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    diffs: tuple[Diff, ...] = ()
    """Beside the low-rank changes: of biases mostly, as ComfyUI's LoraSave extracts them."""
    left_out: tuple[str, ...] = ()
    """Names in the file that are not of the transformer: a text encoder's, an embedding's."""
    krons: tuple[Kron, ...] = ()
    """In place of the low-rank changes, or for other weights."""

    @property
    def changes(self) -> list[Change]:
        """All of them."""
        return [*self.deltas, *self.krons, *self.diffs]

    @property
    def is_plain(self) -> bool:
        """Whether it is a LoRA and nothing else: no DoRA, no LoKr."""
        return not self.krons and all(delta.magnitude is None for delta in self.deltas)

    @property
    def rank(self) -> int:
        """The largest rank in it."""
        return max((delta.down.shape[0] for delta in self.deltas), default=0)

    def to_state_dict(self) -> dict[str, Tensor]:
        """Diffusers' names below `transformer.`, with alpha: what ComfyUI's own LoRA loaders read."""
        out: dict[str, Tensor] = {}
        for delta in self.deltas:
            names = diffusers_names(delta.key)
            if delta.parts > 1:
                changes = [(names[delta.part], delta.up)]
            else:  # a LoRA of a whole fused matrix: each part takes its rows of `up`, all share `down`
                changes = list(zip(names, delta.up.chunk(len(names)), strict=True))
            whole = delta.magnitude
            sizes = [None] * len(changes) if whole is None else whole.chunk(len(changes))
            for (name, up), size in zip(changes, sizes, strict=True):
                stem = "transformer." + name.removesuffix(".weight")
                out[f"{stem}.lora_A.weight"] = delta.down.clone()
                out[f"{stem}.lora_B.weight"] = up.clone()
                out[f"{stem}.alpha"] = torch.tensor(float(delta.alpha))
                if size is not None:
                    out[f"{stem}.dora_scale"] = size.clone()[:, None]
        for kron in self.krons:
            names = diffusers_names(kron.key)
            if kron.parts == 1 and len(names) > 1:  # its product cannot be cut into parts
                for name, value in zip(names, kron.matrix().chunk(len(names)), strict=True):
                    out[f"transformer.{name.removesuffix('.weight')}.diff"] = value.clone()
                continue
            stem = "transformer." + names[kron.part].removesuffix(".weight")
            out |= {f"{stem}.lokr_w1": kron.first.clone(), f"{stem}.lokr_w2": kron.second.clone()}
        for diff in self.diffs:
            names = diffusers_names(diff.key)
            chosen = [names[diff.part]] if diff.parts > 1 else names
            for name, value in zip(chosen, diff.value.chunk(len(chosen)), strict=True):
                end = "set_weight" if diff.replaces else "diff_b" if name.endswith(".bias") else "diff"
                stem = "transformer." + name.removesuffix(".weight").removesuffix(".bias")
                out[f"{stem}.{end}"] = value.clone()
        return out


def require_fit(lora: Lora, weights: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError if a weight (authors' name) that the LoRA changes is missing or of another shape."""
    for each in lora.changes:
        expected = tuple(size * (1 if axis else each.parts) for axis, size in enumerate(each.shape))
        found = None
        if each.key in weights:
            weight = weights[each.key]
            found = tuple((weight if isinstance(each, Diff) else weight.flatten(1)).shape)
        if found != expected:
            raise CheckpointError(
                f"{lora.name} does not fit this PixArt model: {each.key} is "
                f"{list(found) if found else 'missing'}, the LoRA is made for {list(expected)}"
            )


@torch.no_grad()
def apply_lora(model: nn.Module, lora: Lora, strength: float = 1.0) -> None:
    """Add `strength` times a LoRA to a model's weights, in place, in float32. The negative strength takes it off again,
    but for a DoRA, whose change depends on the weights.

    Raises:
        CheckpointError: before anything is changed, if a weight is missing or of another shape.
    """
    weights = dict(model.named_parameters())
    require_fit(lora, weights)
    if strength == 0:
        return
    for each in lora.changes:
        weight = weights[each.key]
        rows = weight if each.rows is None else weight[each.rows]
        change = each.change(rows.float())
        is_new = isinstance(each, Diff) and each.replaces
        rows.copy_((change if is_new else rows.float() + strength * change).to(weight.dtype))


def save_lora(lora: Lora, path: PathLike, metadata: Mapping[str, Any] | None = None) -> Path:
    """Save a LoRA as one safetensors file that carries its alpha, atomically."""
    values = {**lora.metadata, **(metadata or {}), "kind": "lora", "rank": lora.rank}
    return save_weights(lora.to_state_dict(), path, {METADATA_KEY: json.dumps(values), **modelspec("lora", values)})
