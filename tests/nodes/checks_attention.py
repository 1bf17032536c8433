"""Checks of inside_stock.py: what other nodes hang into attention and blocks of our MODEL."""

from __future__ import annotations

import logging

import torch
from inside_process import close
from PIL import Image
from setup_stock import STEPS, Stock, call


def forward(s: Stock, rows: int = 2, **options):
    """Our network on a fixed input; options: transformer_options."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, 12, 16, generator=generator)
    caption = torch.randn(rows, 7, s.config.caption_channels, generator=generator)
    return s.ours.model.diffusion_model(x, torch.full((rows,), 500.0), caption, transformer_options=options)


def by_hand(s: Stock, self_attention=None, cross_attention=None, rows: int = 2):
    """The same with the two attentions of every block replaced by functions of (layer, tokens, cond)."""
    blocks = s.ours.model.diffusion_model.blocks
    before = [(block.attn.forward, block.cross_attn.forward) for block in blocks]
    for block, (attn, cross) in zip(blocks, before, strict=True):
        if self_attention:
            block.attn.forward = lambda x, attention, f=attn: self_attention(f, x, attention)
        if cross_attention:
            block.cross_attn.forward = lambda x, c, m, attention, _kv=None, f=cross: cross_attention(
                f, x, c, m, attention
            )
    try:
        return forward(s, rows)
    finally:
        for block in blocks:
            for layer in (block.attn, block.cross_attn):
                vars(layer).pop("forward", None)


def check_attention_patches_are_called_once_a_block_with_their_shapes(s: Stock) -> None:
    seen: list = []

    def inputs(name):
        def patch(q, k, v, extra):
            seen.append((name, extra["block"], extra["block_index"], q.shape, k.shape, v.shape))
            assert extra["activations_shape"][-2:] == extra["original_shape"][-2:] == [6, 8]
            assert extra["n_heads"] * extra["dim_head"] == q.shape[-1] and extra["sigmas"] == "here"
            return q, k, v

        return patch

    def output(name):
        return lambda n, extra: seen.append((name, extra["block"], extra["block_index"], n.shape)) or n

    patches = {f"{name}_patch": [inputs(name)] for name in ("attn1", "attn2")}
    patches |= {f"{name}_output_patch": [output(f"{name} out")] for name in ("attn1", "attn2")}
    close(forward(s, patches=patches, sigmas="here"), forward(s), 1e-6)
    tokens, text = (2, 48, s.config.hidden_size), (2, 7, s.config.caption_channels)
    expected = []
    for index in range(s.config.depth):
        block = (("double_block", index), index)
        expected += [("attn1", *block, tokens, tokens, tokens), ("attn1 out", *block, tokens)]
        expected += [("attn2", *block, tokens, text, text), ("attn2 out", *block, tokens)]
    assert seen == expected, seen[:4]


def check_attention_patches_change_the_picture_as_by_hand(s: Stock) -> None:
    double = {"attn1_output_patch": [lambda n, extra: 2 * n]}
    expected = by_hand(s, self_attention=lambda f, x, attention: 2 * f(x, attention))
    close(forward(s, patches=double), expected)
    assert (expected - forward(s)).norm() / expected.norm() > 1e-2
    # Queries of other tokens than keys and values, as ToMe gives them.
    shifted = {"attn1_patch": [lambda q, k, v, extra: (q.roll(1, 1), k, v)]}
    close(forward(s, patches=shifted), by_hand(s, lambda f, x, attention: shifted_queries(f.__self__, x, attention)))
    # Text beside the prompt's own, as AttentionCouple gives it; and half of it (keys and values differ), as NegPip.
    swapped = {"attn2_patch": [lambda q, k, v, extra: (q, k.flip(0), v.flip(0))]}
    close(forward(s, patches=swapped), by_hand(s, None, lambda f, x, c, m, attention: f(x, c.flip(0), m, attention)))
    fewer = {"attn2_patch": [lambda q, k, v, extra: (q, k[:, 0:6:2], v[:, 1:6:2])]}
    close(
        forward(s, patches=fewer),
        by_hand(s, None, lambda f, x, c, m, attention: keys_and_values(f.__self__, x, c, attention)),
    )
    named = {"attn1_patch": [lambda q, k, v, extra: {"q": q.roll(1, 1)}]}  # as patches for Flux return it
    close(forward(s, patches=named), forward(s, patches=shifted), 1e-6)


def shifted_queries(layer, x, attention):
    q = layer.qkv(x.roll(1, 1)).chunk(3, -1)[0]
    _, k, v = layer.qkv(x).chunk(3, -1)
    return layer.proj(attention(q, k, v, layer.num_heads))


def keys_and_values(layer, x, caption, attention):
    k, v = layer.kv_linear(caption[:, 0:6:2]).chunk(2, -1)[0], layer.kv_linear(caption[:, 1:6:2]).chunk(2, -1)[1]
    return layer.proj(attention(layer.q_linear(x), k, v, layer.num_heads))


def check_replacements_of_attention_and_blocks(s: Stock) -> None:
    last = s.config.depth - 1
    values_only = {"attn1": {("double_block", last): lambda q, k, v, extra, mask=None: v}}
    seen = []

    def expected(f, x, attention):
        seen.append(f)
        v = f.__self__.qkv(x).chunk(3, -1)[2]
        return f.__self__.proj(v) if len(seen) == s.config.depth else f(x, attention)

    close(forward(s, patches_replace=values_only), by_hand(s, expected))
    names: dict = {}

    def block(values, extra):
        names.update({name: getattr(value, "shape", None) for name, value in values.items()})
        out = extra["original_block"]({**values, "txt": values["txt"] * 0})
        return {"img": out["img"] + 1, "txt": values["txt"]}

    one = forward(s, patches_replace={"dit": {("double_block", 1): block}})
    assert names["img"] == (2, 48, s.config.hidden_size) and names["txt"] == (2, 7, s.config.hidden_size)
    assert names["vec"] == (2, 6, s.config.hidden_size) and (one - forward(s)).norm() > 1e-2
    after = {"double_block": [lambda values: {"img": values["img"] + (values["block_index"] == 1)}]}
    add = {"dit": {("double_block", 1): lambda v, extra: {"img": extra["original_block"](v)["img"] + 1}}}
    close(forward(s, patches=after), forward(s, patches_replace=add), 1e-6)


def check_nag_makes_the_negative_prompt_work_without_guidance(s: Stock) -> None:
    """At 4 steps and cfg 1 the LCM model draws other mountains than those that the negative prompt names."""
    read = s.part("training.nano.checker").read_scene
    lcm = s.part("nodes.bridge.guider").add_lcm_sampling(s.student)
    nag = call("NAGuidance", model=lcm, nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5)[0]
    text = "a small red house on a meadow below {}mountains at dawn, the sun on the left"
    positive, gone, kept = s.encode(text.format("")), 0, 0
    for seed in range(6):

        def scene(model, negative, seed=seed):
            latent = s.sample(model, "lcm", "simple", positive, negative, seed=seed, cfg=1.0)
            return read(Image.fromarray(s.picture(latent)[0].round().byte().numpy()))

        plain = scene(lcm, s.negative)
        negative = s.encode(text.format(f"{plain.mountains} "))
        assert negative[0][0].shape[1] != positive[0][0].shape[1]
        assert scene(lcm, negative) == plain  # without NAG it is not read
        changed = scene(nag, negative)
        gone += changed.mountains != plain.mountains
        kept += changed.ground == plain.ground
    assert gone >= 4 and kept >= 5, (gone, kept)


def check_tome_changes_the_picture(s: Stock) -> None:
    plain = s.picture(s.sample(s.ours))
    merged = s.picture(s.sample(call("TomePatchModel", model=s.ours, ratio=0.3)[0]))
    assert merged.isfinite().all() and (merged - plain).abs().mean() > 1


def check_prompts_of_unequal_length_in_one_batch_are_as_apart(s: Stock) -> None:
    batches = []

    def look(n, extra):
        batches.append(list(extra["cond_or_uncond"]))
        return n

    model = s.ours.clone()
    model.set_model_attn2_output_patch(look)
    close(s.sample(model), s.sample(s.ours), 1e-4)
    assert set(map(len, batches)) == {2} and len(batches) == STEPS * s.config.depth


def check_what_has_no_effect_is_named_once(s: Stock) -> None:
    lines: list = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    freeu = {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}
    tiles = {"tile_size": 32, "swap_size": 2, "max_depth": 0, "scale_depth": False}
    nodes = {
        "FreeU": freeu,
        "FreeU_V2": freeu,
        "HyperTile": tiles,
        "PerturbedAttentionGuidance": {"scale": 3.0},
        "PatchModelAddDownscale": {
            "block_number": 3,
            "downscale_factor": 2.0,
            "start_percent": 0.0,
            "end_percent": 0.35,
            "downscale_after_skip": True,
            "downscale_method": "bicubic",
            "upscale_method": "bicubic",
        },
    }
    for name, inputs in nodes.items():
        lines.clear()
        s.sample(call(name, model=s.ours, **inputs)[0])
        said = [line for line in lines if "no effect on a PixArt model" in line]
        assert len(said) == 1 and name in said[0], (name, lines)
    for name, inputs in {"TomePatchModel": {"ratio": 0.3}, "RescaleCFG": {"multiplier": 0.7}}.items():
        lines.clear()
        s.sample(call(name, model=s.ours, **inputs)[0])
        assert not [line for line in lines if "no effect" in line], lines
