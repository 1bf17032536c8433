"""What other nodes hang into a diffusion model through `transformer_options`, in the blocks of our transformer.

A block is a self-attention and a cross-attention, as one of Stable Diffusion's, in a plain row, as a DiT's. So
attention patches are called as ComfyUI's `BasicTransformerBlock` calls them, block patches as its Flux and Wan do.
What belongs to a part that this model does not have is named (`without_effect`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from ...pixart_core.layers import Conditions, CrossAttention, SelfAttention
from ...pixart_core.model import PixArt

_IN_ATTENTION = ("attn1_patch", "attn1_output_patch", "attn2_patch", "attn2_output_patch")
_AT_BLOCKS = ("post_input", "double_block")
_REFUSED = ("HyperTile",)
"""Nodes whose patches need a UNet: HyperTile cuts the queries of its levels into tiles, and not their keys."""


class BlockPatches:
    """The patches of one forward pass: the block hook of `PixArt.forward`, and the `AttentionHook` of its blocks.

    Args:
        unet: the transformer.
        options: ComfyUI's transformer_options of this pass; the block's number is written into it.
        latent: (B, in_channels, h, w), as the model was given it.
        context: (B, L, caption_channels), the text as the model was given it. attn2 patches see it so, before its
            projection, because what they put in (the text of a region) comes so, too.
    """

    def __init__(self, unet: PixArt, options: dict, latent: Tensor, context: Tensor):
        self.unet, self.options, self.latent = unet, options, latent
        self.context = context
        patches = options.get("patches", {})
        self.patches = {name: [p for p in found if maker(p) not in _REFUSED] for name, found in patches.items()}
        self.replacements = options.get("patches_replace", {})
        self.in_attention = any(map(self.patches.get, _IN_ATTENTION)) or any(
            map(self.replacements.get, ("attn1", "attn2"))
        )
        self.changed: dict[str, Any] = {}
        self.extra: dict = {}

    def __call__(self, index: int, run: partial, x: Tensor) -> Tensor:
        """Block `index` on tokens x (B, N, C), with the patches before, in and after it."""
        self.options.update(block_index=index, block_type="double", total_blocks=self.unet.config.depth)
        cond = replace(run.keywords["cond"], **self.changed)
        if index == 0:
            for patch in self.patches.get("post_input", ()):
                x, cond = self._take(patch({**self._streams(x, cond), "img_ids": None, "txt_ids": None}), x, cond)
        if self.in_attention:
            self.extra = self._extra_options(index)
            cond = replace(cond, hook=self)
        instead = self.replacements.get("dit", {}).get(("double_block", index))
        if instead is None:
            x = run(x, cond=cond)
        else:
            original = partial(self._original_block, run, cond)
            x, cond = self._take(instead(self._streams(x, cond), {"original_block": original}), x, cond)
        for patch in self.patches.get("double_block", ()):
            values = {**self._streams(x, cond), "x": self.latent, "block_index": index, "img_offset": 0}
            x, cond = self._take(patch(values), x, cond)
        return x

    def self_attention(self, layer: SelfAttention, x: Tensor, cond: Conditions) -> Tensor:
        q, k, v = self._changed_inputs("attn1_patch", x, x, x)
        return self._attend("attn1", layer, layer.project(q, k, v), None, cond)

    def cross_attention(self, layer: CrossAttention, x: Tensor, cond: Conditions) -> Tensor:
        q, k, v = self._changed_inputs("attn2_patch", x, self.context, self.context)
        if cond.mask is not None and (cond.mask.shape[0], cond.mask.shape[-1]) != k.shape[:2]:
            raise ValueError(
                f"a node's attn2 patch makes {tuple(k.shape[:2])} caption tokens of {tuple(self.context.shape[:2])}, "
                "and a caption mask hides some: use a conditioning without padding, as PixArt-δ Text Encode gives"
            )
        keys = self._caption(k, cond)
        values = keys if v is k else self._caption(v, cond)
        return self._attend("attn2", layer, layer.project(q, keys, values), cond.mask, cond)

    def _caption(self, text: Tensor, cond: Conditions) -> Tensor:
        """Text as an attn2 patch leaves it, at the width of the model."""
        return cond.caption if text is self.context else self.unet.y_embedder(text.to(self.context))

    def _changed_inputs(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        for patch in self.patches.get(name, ()):
            out = patch(q, k, v, self.extra)
            # Patches for Flux return what they change by name.
            q, k, v = (out.get("q", q), out.get("k", k), out.get("v", v)) if isinstance(out, dict) else out
        return q, k, v

    def _attend(self, name: str, layer, projected: tuple, mask: Tensor | None, cond: Conditions) -> Tensor:
        """The attention itself, or what a node put in its place, and what nodes make of its output."""
        found = self.replacements.get(name, {})
        instead = next((found[place] for place in places(self.options["block_index"]) if place in found), None)
        if instead is None:
            out = cond.attention(*projected, layer.num_heads, mask=mask)
        else:
            out = instead(*projected, self.extra)
        out = layer.proj(out)
        for patch in self.patches.get(f"{name}_output_patch", ()):
            out = patch(out, self.extra)
        return out

    def _extra_options(self, index: int) -> dict:
        """What attention patches are told. One dict for all in a block: they leave notes for each other in it."""
        config = self.unet.config
        rows, columns = (-(-side // config.patch_size) for side in self.latent.shape[-2:])
        # In Stable Diffusion the first tokens are the latent's pixels; here they are its patches.
        shape = [len(self.latent), config.hidden_size, rows, columns]
        return {name: value for name, value in self.options.items() if name not in ("patches", "patches_replace")} | {
            "original_shape": shape,
            "activations_shape": shape,
            "block": places(index)[0],
            "transformer_index": index,
            "n_heads": config.num_heads,
            "dim_head": config.hidden_size // config.num_heads,
            "attn_precision": None,
        }

    def _streams(self, x: Tensor, cond: Conditions) -> dict:
        """Image, text and modulation under the names that ComfyUI's DiTs give them."""
        streams = {"img": x, "txt": cond.caption, "vec": cond.modulation, "pe": None}
        return streams | {"transformer_options": self.options}

    def _take(self, out: dict, x: Tensor, cond: Conditions) -> tuple[Tensor, Conditions]:
        """Tokens and conditions as a patch returns them; text that it changed stays so for the blocks that follow."""
        if out.get("txt", cond.caption) is not cond.caption:
            self.changed["caption"] = out["txt"]
        return out.get("img", x), replace(cond, **self.changed)

    @staticmethod
    def _original_block(run: partial, cond: Conditions, values: dict) -> dict:
        """The block itself, for a node that stands in its place."""
        text, modulation = values.get("txt", cond.caption), values.get("vec", cond.modulation)
        x = run(values["img"], cond=replace(cond, caption=text, modulation=modulation))
        return {"img": x, "txt": text}


def places(index: int) -> list[tuple]:
    """The names under which a node may put something in place of what block `index` has."""
    return [("double_block", index), ("double_block", index, 0)]


def compares_sides(options: dict) -> bool:
    """Whether patches read positive and negative prompt side by side, as NAG does: both have to be in one batch.

    With attn2 patches the batch is left as it is: they put other text beside that of the batch, and know no mask.
    """
    patches, replacements = options.get("patches", {}), options.get("patches_replace", {})
    outputs = patches.get("attn1_output_patch") or patches.get("attn2_output_patch")
    return bool(outputs) and not patches.get("attn2_patch") and not replacements.get("attn2")


def without_effect(options: dict, depth: int) -> Iterator[str]:
    """What nodes registered for parts that a plain row of `depth` blocks does not have."""
    for name, patches in options.get("patches", {}).items():
        for patch in patches:
            if name not in _IN_ATTENTION + _AT_BLOCKS or maker(patch) in _REFUSED:
                yield f"{maker(patch)} ({name})"
    known = {place for index in range(depth) for place in places(index)}
    for name, found in options.get("patches_replace", {}).items():
        for place, patch in found.items():
            if name not in ("attn1", "attn2", "dit") or place not in known:
                yield f"{maker(patch)} ({name} of {' '.join(map(str, place))})"


def maker(patch: Callable) -> str:
    """The class that made a patch, which is mostly the node: "FreeU", "TomePatchModel"."""
    while isinstance(patch, partial):
        patch = patch.func
    return (getattr(patch, "__qualname__", None) or type(patch).__qualname__).split(".")[0]
