"""Stock nodes on our MODEL and on ComfyUI's own PixArt class with the same nano weights; see inside.py.

`python inside_stock.py COMFYUI NANO CHECK…`. Patches of other nodes are in checks_attention.py.
"""

from __future__ import annotations

import checks_attention
from inside_process import main
from setup_stock import STEPS, Stock, call, half_mask, stock

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


if __name__ == "__main__":
    main(globals() | vars(checks_attention), stock)
