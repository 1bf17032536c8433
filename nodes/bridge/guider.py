"""LATENT and sampling: our LCM sampler on ComfyUI's guider, ComfyUI's samplers on our model, and warnings for both."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable

import comfy.model_base
import comfy.model_management as memory
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...pixart_core.lcm import MAX_STEPS, lcm_timesteps, require_finite, sample_lcm
from .family import SOURCE, name_other_reader
from .graphs import GRAPHS_OFF
from .model import diffusion_model, noise_table, seems_lcm
from .ui import say_once

FAR = 1.5
"""Times larger or smaller than in training, as the square root of the area, that a picture begins to fall apart."""


def add_lcm_sampling(model):
    """MODEL that ComfyUI's own samplers treat as an LCM: boundary scaling, and timesteps 19, 39, …, 999.

    With sampler "lcm", scheduler "simple" and cfg 1 these give diffusers' LCMScheduler exactly.
    """
    from comfy_extras.nodes_model_advanced import LCM, ModelSamplingDiscreteDistilled

    class ModelSamplingLCM(ModelSamplingDiscreteDistilled, LCM):
        pass

    patched = model.clone()
    patched.add_object_patch("model_sampling", ModelSamplingLCM(model.model.model_config))
    return patched


def switch_graphs(model, enabled: bool):
    """MODEL that is sampled with CUDA graphs where they are safe, or never.

    With them it is no part of ComfyUI's dynamic memory, which moves weights between steps.

    Raises:
        ValueError: on a model that was not loaded by us.
    """
    diffusion_model(model)
    patched = model.clone(disable_dynamic=enabled)
    patched.set_attachments(GRAPHS_OFF, not enabled)
    return patched


def empty_latent(width: int, height: int, batch: int) -> dict:
    """LATENT of zeros. Raises ValueError when a side is not a positive multiple of 8."""
    for name, side in (("width", width), ("height", height)):
        if side < 8 or side % 8:
            nearest = max(8, round(side / 8) * 8)
            raise ValueError(f"{name} is {side}, but must be a multiple of 8: try {nearest}, or choose a bins table")
    samples = torch.zeros(batch, 4, height // 8, width // 8, device=memory.intermediate_device())
    return {"samples": samples, "downscale_ratio_spacial": 8}


def run_lcm(model, positive, latent: dict, seed: int, steps: int, grid: str, denoise: float = 1.0) -> dict:
    """Sample with `pixart_core.sample_lcm` on ComfyUI's model: the same picture as `pixart_core.Pipeline`'s.

    One CPU generator draws the starting noise, then the noise of every step but the last, for the whole batch. Where a
    latent says which picture of a batch it is (`batch_index`), it gets the noises of the last in a batch of that size.

    Args:
        latent: LATENT, with `noise_mask` and the size of its pixels as ComfyUI's KSampler reads them.

    Raises:
        ValueError: on a latent that is not 4 channels, steps outside 1 … 8, or a model that returns NaN.
    """
    samples = _fitting_samples(model, latent)
    timesteps = lcm_timesteps(steps, grid, denoise)
    plain = grid == "dmd"
    if plain and samples.any():
        raise ValueError("a one-step (DMD) model draws from plain noise: give it an empty latent")
    model = model.clone()
    sampling = comfy.model_base.model_sampling(model.model.model_config, comfy.model_base.ModelType.EPS)
    model.add_object_patch("model_sampling", sampling)
    sigmas = torch.cat([sampling.sigmas[timesteps], torch.zeros(1)])
    generator = torch.Generator("cpu").manual_seed(seed)
    noise, *noises = (
        comfy.sample.prepare_noise_inner(samples.float(), generator, latent.get("batch_index")) for _ in timesteps
    )
    options = {"timesteps": timesteps, "noises": noises, "table": noise_table(model), "plain": plain}
    sampler = comfy.samplers.KSAMPLER(_sample_lcm, options)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    callback = latent_preview.prepare_callback(model, steps)
    out = guider.sample(
        noise,
        samples,
        sampler,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    kept = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio")}  # as KSampler does
    return kept | {"samples": out.to(memory.intermediate_device(), memory.intermediate_dtype())}


def _fitting_samples(model, latent: dict) -> Tensor:
    """A LATENT's samples (B, 4, h, w): empty ones of other models mended as in KSampler, clips of one picture taken.

    Raises:
        ValueError: on any other shape.
    """
    channels, samples = diffusion_model(model).config.in_channels, latent["samples"]
    shape = tuple(samples.shape) if not samples.is_nested else "of several tensors"
    if not samples.is_nested and samples.ndim == 5 and samples.shape[2] == 1:
        samples = samples.squeeze(2)
    if not samples.is_nested and samples.ndim == 4:
        samples = comfy.sample.fix_empty_latent_channels(model, samples, latent.get("downscale_ratio_spacial"))
    if samples.is_nested or samples.ndim != 4 or samples.shape[1] != channels:
        raise ValueError(
            f"the latent has shape {shape}; PixArt-α/δ takes {channels} channels (B, {channels}, height/8, width/8): "
            "use PixArt-δ Resolution or Empty Latent Image, or encode with the autoencoder of Stable Diffusion 1.x"
        )
    return samples


def _sample_lcm(
    model, x, sigmas, extra_args, callback, disable, timesteps: list[int], noises, table=None, plain=False
) -> Tensor:
    """`sample_lcm` as a k-diffusion sampler: x = z·√(1 + σ²) and denoised = x − σ·ε.

    table: ᾱ of the noise schedule that sigmas are of, where that is not PixArt's.
    plain: z is the noise itself, whatever σ is: ComfyUI gives σ times it, on an empty latent.
    """
    numbers = sigmas.tolist()  # once: reading one of a GPU's in between waits for the step before it
    upcoming = iter(numbers)

    def epsilon(latent: Tensor, _timestep: Tensor) -> Tensor:
        sigma = next(upcoming)
        noisy = latent * math.sqrt(1 + sigma**2)
        return (noisy - model(noisy, noisy.new_full((len(noisy),), sigma), **extra_args)) / sigma

    def report(step: int, denoised: Tensor) -> None:
        callback({"x": denoised, "i": step, "sigma": sigmas[step], "sigma_hat": sigmas[step], "denoised": denoised})

    start = x / (numbers[0] if plain else math.sqrt(1 + numbers[0] ** 2))
    return sample_lcm(epsilon, start, timesteps, noises, callback=report, table=table)


def watch_sampling(model):
    """Make every sampling run of a MODEL warn about settings that cannot give a good picture, and end with an error
    instead of a black one where float16 overflows: the dtype is the loader's to change. Returns the MODEL."""
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "pixart_delta", _check_sampling)
    return model


def _check_sampling(executor, guider, sigmas, extra_args, callback, noise, *rest, **kwargs):
    model = guider.model_patcher
    warnings = _warnings(model, guider.cfg, sigmas, executor.class_obj.sampler_function)
    if _whole_schedule(sigmas, model.get_model_object("model_sampling")):
        warnings += _size_warnings(diffusion_model(model).config.input_size, *noise.shape[-2:])
    for warning in warnings:
        say_once("Warning: " + warning, logging.WARNING)
    name_other_reader(model.get_attachment(SOURCE), itertools.chain.from_iterable(guider.conds.values()))
    return require_finite(executor(guider, sigmas, extra_args, callback, noise, *rest, **kwargs))


def _size_warnings(known: int, height: int, width: int) -> list[str]:
    """About a picture that is drawn from noise at a size far from that of training; all in latent pixels."""
    if 1 / FAR < math.sqrt(height * width) / known < FAR:
        return []
    return [
        f"{width * 8} × {height * 8} px is far from the {known * 8} × {known * 8} px that this model was trained at: "
        "expect repeated or broken shapes"
    ]


def _warnings(model, cfg: float, sigmas: Tensor, sampler: Callable) -> list[str]:
    sampling = model.get_model_object("model_sampling")
    distilled = seems_lcm(model)
    base_hint = "a base model takes 14 or more steps with KSampler: dpmpp_2m, sgm_uniform, cfg 4.5"
    not_lcm = [f"this is not a distilled (LCM) model; {base_hint}"] if distilled is False else []
    if sampler is _sample_lcm:
        return not_lcm
    if not hasattr(sampling, "skip_steps"):  # no LCM sampling on this MODEL
        if distilled:
            return [
                "this is a distilled (LCM) model: put PixArt-δ LCM Sampling before KSampler, or use PixArt-δ LCM "
                "Sampler"
            ]
        steps = len(sigmas) - 1
        few = steps <= MAX_STEPS and _whole_schedule(sigmas, sampling)
        return [f"{steps} steps are too few without PixArt-δ LCM Sampling; {base_hint}"] if few else []
    warnings = not_lcm
    if not math.isclose(cfg, 1.0):
        warnings.append(
            f"cfg is {cfg:g}, but a distilled model has its guidance built in: set cfg to 1 (0 would use "
            "the negative prompt alone)"
        )
    if sampler.__name__ != "sample_lcm":
        warnings.append(f"the sampler is {sampler.__name__.removeprefix('sample_')!r}: an LCM model takes 'lcm'")
    if not _on_lcm_grid(sigmas, sampling.sigmas):
        warnings.append("these are not the timesteps that the model was distilled on: set the scheduler to 'simple'")
    return warnings


def _whole_schedule(sigmas: Tensor, sampling) -> bool:
    """Whether sigmas go all the way from noise to picture; SplitSigmas, KSampler Advanced and others run parts."""
    last = sampling.timestep(sampling.sigma_max)
    return float(sigmas[-1]) == 0 and float(sampling.timestep(sigmas[:1])) >= 0.98 * float(last)


def _on_lcm_grid(sigmas: Tensor, grid: Tensor) -> bool:
    """Whether sigmas are a stretch of an even walk down the distillation timesteps, as scheduler "simple" gives."""
    sigmas, grid = sigmas[sigmas > 0].cpu(), grid.cpu().flip(0)
    difference, places = (sigmas[:, None] / grid - 1).abs().min(dim=1)
    if difference.max() > 1e-3:
        return False
    taken, count, total = places.tolist(), len(places), len(grid)
    walks = [[i * total // n for i in range(n)] for n in range(count, total + 1)]
    walks += [[i * (total // n) for i in range(n)] for n in range(count, MAX_STEPS + 1)]  # the authors' grid
    return any(taken == walk[start : start + count] for walk in walks for start in range(len(walk) - count + 1))
