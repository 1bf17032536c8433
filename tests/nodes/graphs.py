"""API-format graphs for the tests, built of small parts; and what a picture is as numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

PROMPT = "a red mountain at dawn, a small house on the left"


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def text_to_image(
    family: str = "nano",
    *,
    seed: int = 3,
    steps: int = 4,
    batch: int = 1,
    width: int = 128,
    height: int = 128,
    grid: str = "diffusers",
    prompt: str = PROMPT,
    changes: Mapping | None = None,
) -> dict:
    """The nine-node graph with our sampler; `changes` replaces or adds nodes by id.

    Ids: model, clip, vae, size, text, sample, decode, save.
    """
    graph = {
        "model": node("PixArtDeltaModelLoader", model_name=f"{family}/transformer/", dtype="default"),
        "clip": node("PixArtDeltaTextEncoderLoader", text_encoder_name=f"{family}/text_encoder/", quantization="none"),
        "vae": node("PixArtDeltaVAELoader", vae_name=f"{family}/vae/"),
        "size": node("PixArtDeltaResolution", width=width, height=height, bins="off", batch_size=batch),
        "text": node(
            "PixArtDeltaTextEncode",
            clip=["clip", 0],
            prompt=prompt,
            negative_prompt="",
            width=["size", 1],
            height=["size", 2],
            unconditional="negative prompt",
            clean_caption=False,
        ),
        "sample": node(
            "PixArtDeltaLCMSampler",
            model=["model", 0],
            positive=["text", 0],
            latent_image=["size", 0],
            seed=seed,
            steps=steps,
            grid=grid,
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="test"),
    }
    return graph | dict(changes or {})


def ksampler(
    model: str = "lcm",
    *,
    seed: int = 3,
    steps: int = 1,
    cfg: float = 1.0,
    sampler_name: str = "lcm",
    scheduler: str = "simple",
    denoise: float = 1.0,
) -> dict:
    """Nodes "lcm" (our sampling patch) and "sample" (the stock KSampler), to put into `text_to_image`'s changes."""
    return {
        "lcm": node("PixArtDeltaLCMSampling", model=["model", 0]),
        "sample": node(
            "KSampler",
            model=[model, 0],
            positive=["text", 0],
            negative=["text", 1],
            latent_image=["size", 0],
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler_name=sampler_name,
            scheduler=scheduler,
            denoise=denoise,
        ),
    }


def pictures(result) -> list[np.ndarray]:
    """The pictures of a prompt, float 0 … 255, (H, W, 3) each; fails with the prompt's errors when there are none."""
    assert not result.errors, result.errors
    return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float32) for data in result.images]


def difference(one, other) -> float:
    """Mean absolute difference of two pictures, in units of 1/255."""
    one, other = (np.asarray(image, dtype=np.float32) for image in (one, other))
    assert one.shape == other.shape
    return float(np.abs(one - other).mean())
