"""Two ControlNets on a MODEL, and what a sampling with them has to give: computed without ComfyUI's control."""

from __future__ import annotations

import sys
from pathlib import Path

import inside_process
import torch


class Setup(inside_process.Setup):
    """A MODEL in float32, conditioning of unequal lengths, a VAE, two ControlNets on it, a hint per picture."""

    def __init__(self, part, family: str):
        super().__init__(part, family)
        sys.path.append(str(inside_process.ROOT))  # after ComfyUI's folder: for the fixtures' `pixart_core`
        self.fixtures = inside_process.sibling("fixtures_nano", inside_process.ROOT / "tests")
        self.bridge, self.hint = part("nodes.bridge.control_net"), part("nodes.bridge.hint")
        self.checkpoint = part("pixart_core.checkpoint")
        self.vae = part("nodes.bridge.vae").load_vae(str(self.family / "vae"))
        self.reference = self.core.load_pixart(self.family / "transformer", dtype=torch.float32)
        self.paths = {copies: self.save_control(copies) for copies in (1, 3)}
        self.control = self.bridge.load_control(str(self.paths[3]), "float32")
        generator = torch.Generator().manual_seed(5)
        self.hints = torch.rand(2, 96, 128, 3, generator=generator).round()
        self.latent = part("nodes.bridge.guider").empty_latent(128, 96, 2)

    def save_control(self, copies: int, zero: bool = False, base=None, wiring: str = "transformer") -> Path:
        base = base or self.reference
        control = self.fixtures.random_controlnet(base, copies, seed=copies)
        if zero:
            control.initialize_from(base)
        name = f"control_{copies}_{base.config.hidden_size}_{base.config.depth}_{zero}_{wiring}.safetensors"
        return self.checkpoint.save_controlnet(
            control.state_dict(),
            self.family.parent / name,
            wiring=wiring,
            config=self.core.PixArtConfig(**base.config.to_dict()),
        )

    def apply(self, control=None, hints=None, strength=1.0, start=0.0, end=1.0, resize="crop", conds=None, vae=None):
        conds = conds or (self.positive, self.negative)
        return self.bridge.apply_control(
            *conds,
            control or self.control,
            self.hints if hints is None else hints,
            vae or self.vae,
            strength,
            start,
            end,
            resize,
        )

    def run(self, conds=None, cfg=1.0, model=None, steps=3, latent=None):
        """Three steps of Euler; every value of the model's output counts."""
        positive, negative = conds or (self.positive, self.negative)
        before, self.negative = self.negative, negative
        if latent is not None:
            self.latent = latent
        try:
            return self.sample(model or self.model, "euler", steps, cfg, "normal", positive=positive)
        finally:
            self.negative = before


def stock():
    import nodes

    return nodes.ControlNetApplyAdvanced()


def monolithic(s: Setup, x, timestep, caption, hint, strengths: dict[int, float]):
    """One forward as the authors write it, in pixart_core alone; strengths by number of copied blocks."""
    controls = [
        [
            None if residual is None else strength * residual
            for residual in s.core.load_controlnet(s.paths[copies], dtype=torch.float32)(
                s.reference, x, timestep, caption, hint
            )
        ]
        for copies, strength in strengths.items()
    ]
    longest = max(map(len, controls))
    merged = [
        sum((control[i] for control in controls if i < len(control) and control[i] is not None), torch.zeros(()))
        for i in range(longest)
    ]
    return s.reference(x, timestep, caption, control=merged)[:, :4]


def reference_run(s: Setup, strengths: dict[int, float], cfg: float, window=lambda i: True):
    """`Setup.run` without ComfyUI's control: epsilon from `monolithic` in a plain Euler loop over ComfyUI's sigmas."""
    import comfy.sample
    import comfy.samplers

    sampling = s.model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 3)
    x = comfy.sample.prepare_noise(s.latent["samples"], 3) * torch.sqrt(1 + sigmas[0] ** 2)
    hint = s.vae.encode(s.hints) * 0.18215
    for i in range(3):
        scaled, t = x / torch.sqrt(1 + sigmas[i] ** 2), sampling.timestep(sigmas[i : i + 1]).expand(2)
        parts = strengths if window(i) else {3: 0.0}
        halves = [
            monolithic(s, scaled, t, cond[0][0].expand(2, -1, -1), hint, parts) for cond in (s.positive, s.negative)
        ]
        epsilon = halves[1] + cfg * (halves[0] - halves[1])
        x = x + epsilon * (sigmas[i + 1] - sigmas[i])
    return x / 0.18215


def raises(words: str, call, *args, **kwargs) -> None:
    try:
        call(*args, **kwargs)
    except (ValueError, FileNotFoundError) as error:
        assert words in str(error), str(error)
        return
    raise AssertionError(f"no error with {words!r}")
