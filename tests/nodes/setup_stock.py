"""ComfyUI's own PixArt class and our MODEL with the same nano weights, and stock nodes as ComfyUI calls them."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import torch

STEPS, CFG, SIDE = 4, 4.5, 128
EXCEPT = {
    "dpm_adaptive": "chooses its steps by its own errors, which differ in the last bits: seen 9/255",
    "SkipLayerGuidanceDiT": "ComfyUI's class calls no block replacements: no effect on it",
    "EasyCache": "ComfyUI's class calls no wrappers: it fails there",
}
"""What is not compared, and why."""


def call(node: str, **inputs) -> tuple:
    """What a stock node gives, as ComfyUI calls it."""
    import nodes

    cls = nodes.NODE_CLASS_MAPPINGS[node]
    if hasattr(cls, "define_schema"):
        out = cls.PREPARE_CLASS_CLONE({}).execute(**inputs)
        return getattr(out, "result", out)  # some return plain tuples
    return getattr(cls(), cls.FUNCTION)(**inputs)


def half_mask() -> torch.Tensor:
    mask = torch.zeros(1, SIDE, SIDE)
    mask[..., SIDE // 2 :] = 1
    return mask


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


@functools.cache
def stock(part, nano: str) -> Stock:
    """One for all checks."""
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    return Stock(part, nano)
