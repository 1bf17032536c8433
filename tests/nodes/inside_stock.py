"""Stock nodes on our MODEL and on ComfyUI's own PixArt class with the same nano weights; see inside.py.

`python inside_stock.py COMFYUI NANO CHECK…`. Patches of other nodes are checked here, too.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from pathlib import Path

import inside
import torch
from PIL import Image

close = inside.close

STEPS, CFG, SIDE = 4, 4.5, 128
EXCEPT = {
    "dpm_adaptive": "chooses its steps by its own errors, which differ in the last bits: seen 9/255",
    "SkipLayerGuidanceDiT": "ComfyUI's class calls no block replacements: no effect on it",
    "EasyCache": "ComfyUI's class calls no wrappers: it fails there",
}
"""What is not compared, and why."""
MODEL_NODES = {
    "EasyCache": {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False},
    "SkipLayerGuidanceDiT": {
        "double_layers": "2",
        "single_layers": "",
        "scale": 3.0,
        "start_percent": 0.01,
        "end_percent": 0.9,
        "rescaling_scale": 0.0,
    },
    "RescaleCFG": {"multiplier": 0.7},
    "RenormCFG": {"cfg_trunc": 100.0, "renorm_cfg": 1.0},
    "CFGZeroStar": {},
    "CFGNorm": {"strength": 1.0},
    "TCFG": {},
    "APG": {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.0},
    "Mahiro": {},
    "Epsilon Scaling": {"scaling_factor": 1.005},
    "FreSca": {"scale_low": 1.0, "scale_high": 1.25, "freq_cutoff": 3},
    "LazyCache": {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False},
    "ModelSamplingDiscrete": {"sampling": "lcm", "zsnr": False},
    "ModelSamplingContinuousEDM": {"sampling": "eps", "sigma_max": 120.0, "sigma_min": 0.002},
    "ModelSamplingContinuousV": {"sampling": "v_prediction", "sigma_max": 500.0, "sigma_min": 0.03},
    "UNetSelfAttentionMultiply": {"q": 1.1, "k": 1.0, "v": 1.0, "out": 1.0},
    "DifferentialDiffusion": {},
}
SIGMA_NODES = {
    "KarrasScheduler": {"sigma_max": 150.0, "sigma_min": 0.03, "rho": 7.0},
    "ExponentialScheduler": {"sigma_max": 150.0, "sigma_min": 0.03},
    "PolyexponentialScheduler": {"sigma_max": 150.0, "sigma_min": 0.03, "rho": 1.0},
    "LaplaceScheduler": {"sigma_max": 150.0, "sigma_min": 0.03, "mu": 0.0, "beta": 0.5},
    "VPScheduler": {"beta_d": 19.9, "beta_min": 0.1, "eps_s": 0.001},
    "AlignYourStepsScheduler": {"model_type": "SD1", "denoise": 1.0},
    "GITSScheduler": {"coeff": 1.2, "denoise": 1.0},
}


def call(node: str, **inputs) -> tuple:
    """What a stock node gives, as ComfyUI calls it."""
    import nodes

    cls = nodes.NODE_CLASS_MAPPINGS[node]
    if hasattr(cls, "define_schema"):
        out = cls.PREPARE_CLASS_CLONE({}).execute(**inputs)
        return getattr(out, "result", out)  # some return plain tuples
    return getattr(cls(), cls.FUNCTION)(**inputs)


def native_model(state: dict, config):
    """ComfyUI's own class around the weights; its position grid, made for 512 px and more, is laid out for ours."""
    import comfy.ldm.pixart.pixartms as pixartms
    import comfy.model_base
    import comfy.model_management as memory
    import comfy.model_patcher
    import comfy.supported_models

    grid = pixartms.get_2d_sincos_pos_embed_torch
    pixartms.get_2d_sincos_pos_embed_torch = lambda *args, **kwargs: grid(*args, **kwargs | {"base_size": 8})
    shape = {name: value for name, value in config.to_dict().items() if name != "interpolation_scale"}
    settings = {"image_model": "pixart_alpha", "pe_interpolation": config.interpolation_scale, **shape}
    model_config = comfy.supported_models.PixArtAlpha(settings)
    model_config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.PixArt(model_config)
    missing, _ = model.diffusion_model.load_state_dict(state, strict=False)
    assert not missing, missing
    return comfy.model_patcher.ModelPatcher(model.eval(), memory.get_torch_device(), memory.unet_offload_device())


class Stock:
    """Both MODELs of the nano base, prompts, and pictures of both."""

    def __init__(self, part, nano: str):
        import nodes

        asyncio.run(nodes.init_builtin_extra_nodes())
        self.part, nano = part, Path(nano)
        path = nano / "base" / "pixart_nano_base.safetensors"
        self.ours = part("nodes.bridge.model").load_model(str(path), "float32")
        self.student = part("nodes.bridge.model").load_model(str(nano / "transformer"), "float32")
        self.config = self.ours.model.diffusion_model.config
        self.theirs = native_model(self.ours.model.diffusion_model.state_dict(), self.config)
        self.clip = part("nodes.bridge.clip").load_clip(str(nano / "text_encoder"))
        self.vae = part("nodes.bridge.vae").load_vae(str(nano / "vae"))
        self.text = self.encode("a small red house on a meadow below blue mountains at dawn, the sun on the left")
        self.negative = self.encode("a lake at night")
        self.latent = call("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)[0]

    def encode(self, text: str) -> list:
        return call("CLIPTextEncode", clip=self.clip, text=text)[0]

    def sample(self, model, sampler="euler", scheduler="normal", positive=None, negative=None, latent=None, **changed):
        given = {"seed": 3, "steps": STEPS, "cfg": CFG, "denoise": 1.0} | changed
        return call(
            "KSampler",
            model=model,
            sampler_name=sampler,
            scheduler=scheduler,
            positive=positive or self.text,
            negative=negative or self.negative,
            latent_image=latent or self.latent,
            **given,
        )[0]["samples"]

    def custom(self, model, sigmas, guider=None, sampler="euler"):
        guider = guider or call("CFGGuider", model=model, positive=self.text, negative=self.negative, cfg=CFG)[0]
        return call(
            "SamplerCustomAdvanced",
            noise=call("RandomNoise", noise_seed=3)[0],
            guider=guider,
            sampler=call("KSamplerSelect", sampler_name=sampler)[0],
            sigmas=sigmas,
            latent_image=self.latent,
        )[0]["samples"]

    def picture(self, latent) -> torch.Tensor:
        return call("VAEDecode", samples={"samples": latent}, vae=self.vae)[0].clamp(0, 1) * 255

    def compare(self, cases: dict) -> None:
        """Each case, a function of a MODEL, on both: pictures at most 1/255 apart everywhere; names all that differ."""
        wrong = {}
        for name, run in cases.items():
            one = self.picture(run(self.ours))
            assert one.isfinite().all(), name
            if name in EXCEPT:
                continue
            other = self.picture(run(self.theirs))
            apart = (one - other).abs().max().item()
            if not apart <= 1:
                wrong[name] = round(apart, 2)
        assert not wrong, wrong


def check_every_sampler(s: Stock) -> None:
    import comfy.samplers

    names = comfy.samplers.SAMPLER_NAMES
    assert len(names) > 35
    s.compare({name: lambda model, name=name: s.sample(model, sampler=name) for name in names})


def check_every_scheduler(s: Stock) -> None:
    import comfy.samplers

    cases = {name: lambda model, name=name: s.sample(model, scheduler=name) for name in comfy.samplers.SCHEDULER_NAMES}
    for name, inputs in SIGMA_NODES.items():
        cases[name] = lambda model, name=name, inputs=inputs: s.custom(model, call(name, steps=STEPS, **inputs)[0])
    assert len(cases) > 14
    s.compare(cases)


def check_model_nodes(s: Stock) -> None:
    cases = {
        name: lambda model, name=name, inputs=inputs: s.sample(call(name, model=model, **inputs)[0])
        for name, inputs in MODEL_NODES.items()
    }
    sigmas = call("KarrasScheduler", steps=STEPS, sigma_max=150.0, sigma_min=0.03, rho=7.0)[0]
    empty = s.encode("")
    guiders = {
        "BasicGuider": {"conditioning": s.text},
        "DualCFGGuider": {
            "cond1": s.text,
            "cond2": empty,
            "negative": s.negative,
            "cfg_conds": 3.0,
            "cfg_cond2_negative": 2.0,
            "style": "regular",
        },
        "PerpNegGuider": {
            "positive": s.text,
            "negative": s.negative,
            "empty_conditioning": empty,
            "cfg": 4.0,
            "neg_scale": 1.0,
        },
    }
    for name, inputs in guiders.items():
        cases[name] = lambda model, name=name, inputs=inputs: s.custom(
            model, sigmas, call(name, model=model, **inputs)[0]
        )
    cases["ModelMergeSimple"] = lambda model: s.sample(
        call("ModelMergeSimple", model1=model, model2=model, ratio=0.3)[0]
    )
    s.compare(cases)


def check_conditioning_and_latent_nodes(s: Stock) -> None:
    other, mask = s.encode("a desert with three trees below green hills at night, moon on the right side"), half_mask()
    area = call("ConditioningSetArea", conditioning=other, width=64, height=128, x=64, y=0, strength=1.0)[0]
    masked = call("ConditioningSetMask", conditioning=other, mask=mask, strength=1.0, set_cond_area="default")[0]
    late = call("ConditioningSetTimestepRange", conditioning=other, start=0.3, end=1.0)[0]
    texts = {
        "ConditioningCombine": call("ConditioningCombine", conditioning_1=s.text, conditioning_2=other)[0],
        "ConditioningConcat": call("ConditioningConcat", conditioning_to=s.text, conditioning_from=other)[0],
        "ConditioningAverage": call(
            "ConditioningAverage", conditioning_to=s.text, conditioning_from=other, conditioning_to_strength=0.4
        )[0],
        "ConditioningSetArea": s.text + area,
        "ConditioningSetMask": s.text + masked,
        "ConditioningSetTimestepRange": s.text + late,
        "ConditioningZeroOut": call("ConditioningZeroOut", conditioning=s.text)[0],
        "CLIPTextEncodePixArtAlpha": call(
            "CLIPTextEncodePixArtAlpha", width=160, height=96, text="a lake", clip=s.clip
        )[0],
    }
    cases = {name: lambda model, text=text: s.sample(model, positive=text) for name, text in texts.items()}
    drawn = s.sample(s.ours)
    latents = {
        "SetLatentNoiseMask": call("SetLatentNoiseMask", samples={"samples": drawn}, mask=mask)[0],
        "RepeatLatentBatch": call("RepeatLatentBatch", samples={"samples": drawn}, amount=2)[0],
        "LatentUpscale": call(
            "LatentUpscale",
            samples={"samples": drawn},
            upscale_method="bilinear",
            width=160,
            height=160,
            crop="disabled",
        )[0],
    }
    for name, latent in latents.items():
        cases[name] = lambda model, latent=latent: s.sample(model, latent=latent, denoise=0.6)
    s.compare(cases)


def half_mask() -> torch.Tensor:
    mask = torch.zeros(1, SIDE, SIDE)
    mask[..., SIDE // 2 :] = 1
    return mask


# ----------------------------------------------------------------------------------------------------------- patches


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


def check_attributes_of_comfyuis_class(s: Stock) -> None:
    ours, theirs = s.ours.model.diffusion_model, s.theirs.model.diffusion_model
    plain = {name: value for name, value in vars(theirs).items() if isinstance(value, (int, float)) and name[0] != "_"}
    assert len(plain) > 7
    for name, value in plain.items():
        if name != "training":
            assert getattr(ours, name) == value, name
    assert ours.dtype == theirs.dtype
    for name in ("in_channels", "out_channels", "patch_size", "num_heads", "hidden_size", "depth", "model_channels"):
        assert s.ours.model.model_config.unet_config[name] is not None, name


@functools.cache
def stock(part, nano: str) -> Stock:
    """One for all checks."""
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    return Stock(part, nano)


if __name__ == "__main__":
    inside.main(globals(), stock)
