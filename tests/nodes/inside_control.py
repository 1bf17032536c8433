"""Control and HED in ComfyUI's own interpreter: `python inside_control.py COMFYUI FAMILY CHECK…`, see inside.py."""

from __future__ import annotations

import torch
from inside_process import close, main, native, save_random
from setup_control import Setup, monolithic, raises, reference_run, stock


def check_sampling_is_the_monolithic_forward(s: Setup) -> None:
    """Prompts of unequal length, a hint for each picture of the batch, a non-square size."""
    assert s.positive[0][0].shape != s.negative[0][0].shape
    for cfg in (1.0, 4.5):
        close(s.run(s.apply(), cfg), reference_run(s, {3: 1.0}, cfg), 1e-4)
    close(s.run(s.apply(strength=0.5), 4.5), reference_run(s, {3: 0.5}, 4.5), 1e-4)
    assert ((s.run(s.apply()) - s.run()).norm() / s.run().norm()) > 1e-2


def check_two_chained_controls(s: Setup) -> None:
    """Of different lengths and strengths, in either order."""
    one = s.bridge.load_control(str(s.paths[1]), "float32")
    chained = s.apply(strength=0.7, conds=s.apply(one, strength=0.4))
    other_way = s.apply(one, strength=0.4, conds=s.apply(strength=0.7))
    expected = reference_run(s, {1: 0.4, 3: 0.7}, 4.5)
    close(s.run(chained, 4.5), expected, 1e-4)
    close(s.run(other_way, 4.5), expected, 1e-4)
    twice = s.apply(strength=0.5, conds=s.apply(strength=0.5))
    close(s.run(twice), s.run(s.apply()), 1e-4)


def check_a_controlnet_unet_alone_and_chained(s: Setup) -> None:
    """The paper's ablation: residuals for the second half of the blocks only."""
    s.paths[2] = s.save_control(2, wiring="unet")
    unet = s.bridge.load_control(str(s.paths[2]), "float32")
    for cfg in (1.0, 4.5):
        close(s.run(s.apply(unet, strength=0.8), cfg), reference_run(s, {2: 0.8}, cfg), 1e-4)
    for conds in (s.apply(unet, conds=s.apply()), s.apply(conds=s.apply(unet))):
        close(s.run(conds), reference_run(s, {2: 1.0, 3: 1.0}, 1.0), 1e-4)


def check_start_and_end_percent(s: Setup) -> None:
    sampling = s.model.get_model_object("model_sampling")
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 3)
    for start, end in ((0.0, 0.4), (0.4, 1.0), (0.3, 0.6)):
        first, last = sampling.percent_to_sigma(start), sampling.percent_to_sigma(end)
        inside_window = [last <= float(sigma) <= first for sigma in sigmas[:3]]
        assert 0 < sum(inside_window) < 3
        expected = reference_run(s, {3: 1.0}, 1.0, lambda i, active=inside_window: active[i])
        close(s.run(s.apply(start=start, end=end)), expected, 1e-4)
    close(s.run(s.apply(start=1.0, end=1.0)), s.run(), 1e-6)


def check_stock_apply_is_ours_to_the_last_bit(s: Setup) -> None:
    for cfg, strength, start, end in ((1.0, 1.0, 0.0, 1.0), (4.5, 0.6, 0.2, 0.7)):
        theirs = stock().apply_controlnet(s.positive, s.negative, s.control, s.hints, strength, start, end, vae=s.vae)
        ours = s.apply(strength=strength, start=start, end=end)
        assert torch.equal(s.run(ours, cfg), s.run(theirs, cfg))


def check_zero_initialised_control_and_strength_0_are_no_control_to_the_last_bit(s: Setup) -> None:
    for dtype in ("float32", "bfloat16"):
        model = s.load(str(s.family / "transformer"), dtype)
        zero = s.bridge.load_control(str(s.save_control(3, zero=True)), dtype)
        for cfg in (1.0, 4.5):
            plain = s.run(cfg=cfg, model=model)
            assert torch.equal(s.run(s.apply(zero), cfg, model), plain)
            assert torch.equal(s.run(s.apply(strength=0.0), cfg, model), plain)
            assert not torch.equal(s.run(s.apply(), cfg, model), plain)


def check_our_lcm_sampler_takes_control(s: Setup) -> None:
    """As `Pipeline` computes it: same noises, the hint's latent, no rounding of the timesteps."""
    positive, _ = s.apply()
    ours = s.sampling.run_lcm(s.model, positive, s.latent, 3, 4, "diffusers")["samples"] * 0.18215
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(s.latent["samples"].shape, generator=generator)
    hint = s.vae.encode(s.hints) * 0.18215
    caption = s.positive[0][0].expand(2, -1, -1)
    expected = s.core.sample_lcm(
        lambda z, t: monolithic(s, z, t, caption, hint, {3: 1.0}), noise, s.core.lcm_timesteps(4), generator=generator
    )
    close(ours, expected, 1e-4)


def check_control_in_another_dtype_follows_the_model(s: Setup) -> None:
    expected = s.run(s.apply())
    for dtype in ("bfloat16", "float16"):
        control = s.bridge.load_control(str(s.paths[3]), dtype)
        close(s.run(s.apply(control)), expected, 0.02)
    half = s.load(str(s.family / "transformer"), "bfloat16")
    close(s.run(s.apply(), model=half), expected, 0.05)


def check_lora_on_the_base_reaches_the_control(s: Setup) -> None:
    """The control runs base block 0 itself: a patch there must be in both."""
    name = "blocks.0.mlp.fc1.weight"
    width = s.reference.config.hidden_size
    patch = torch.randn(4 * width, width, generator=torch.Generator().manual_seed(1)) * 0.1
    model = s.model.clone()
    model.add_patches({f"diffusion_model.{name}": ("diff", (patch,))})
    found = s.run(s.apply(), model=model)
    with torch.no_grad():
        s.reference.get_parameter(name).add_(patch)
    close(found, reference_run(s, {3: 1.0}, 1.0), 1e-4)
    with torch.no_grad():
        s.reference.get_parameter(name).sub_(patch)
    close(s.run(s.apply()), reference_run(s, {3: 1.0}, 1.0), 1e-4)


def check_areas_masks_and_control_on_one_prompt_only(s: Setup) -> None:
    ((caption, values),) = s.apply()[0]
    area = [[caption, {**values, "area": (12, 8, 0, 0), "strength": 1.0}], *s.positive]
    whole = [
        [
            caption,
            {key: value for key, value in values.items() if key != "control"}
            | {"area": (12, 8, 0, 0), "strength": 1.0},
        ],
        *s.positive,
    ]
    changed, plain = s.run((area, s.negative), 4.5), s.run((whole, s.negative), 4.5)
    assert changed.isfinite().all() and (changed - plain).norm() / plain.norm() > 1e-3
    mask = torch.zeros(1, 96, 128)
    masked = [[caption, {**values, "mask": mask, "mask_strength": 1.0}], *s.positive]
    bare = [
        [
            caption,
            {key: value for key, value in values.items() if key != "control"} | {"mask": mask, "mask_strength": 1.0},
        ],
        *s.positive,
    ]
    close(s.run((masked, s.negative), 4.5), s.run((bare, s.negative), 4.5), 1e-5)


def check_one_hint_serves_a_batch_and_two_serve_five(s: Setup) -> None:
    single = s.run(s.apply(hints=s.hints[:1]))
    repeated = s.run(s.apply(hints=s.hints[:1].repeat(2, 1, 1, 1)))
    close(single, repeated, 1e-5)
    s.latent = s.part("nodes.bridge.guider").empty_latent(128, 96, 5)
    cyclic = s.run(s.apply(hints=s.hints[[0, 1, 0, 1, 0]]), 4.5)
    close(s.run(s.apply(), 4.5), cyclic, 1e-5)


def check_hints_of_other_sizes_and_kinds(s: Setup) -> None:
    import torch.nn.functional as F

    large = F.interpolate(s.hints.movedim(-1, 1), scale_factor=2, mode="nearest").movedim(1, -1)
    close(s.run(s.apply(hints=large)), s.run(s.apply()), 1e-5)  # bilinear, two pixels for one: the same picture
    wide = F.interpolate(s.hints.movedim(-1, 1), (96, 256), mode="nearest").movedim(1, -1)
    close(s.run(s.apply(hints=wide, resize="stretch")), s.run(s.apply()), 1e-5)
    crop, pad = (s.hint.fit_hint(wide.movedim(-1, 1), 96, 128, mode) for mode in ("crop", "pad"))
    assert torch.equal(crop, wide.movedim(-1, 1)[..., 64:192])
    assert pad.shape == crop.shape
    assert not pad[..., :24, :].any()
    assert not pad[..., 72:, :].any()
    assert pad[..., 24:72, :].any()
    grey = s.hints[..., :1]
    # The same numbers in memory of another layout, for which a CPU may choose another convolution.
    close(s.run(s.apply(hints=grey)), s.run(s.apply(hints=grey.repeat(1, 1, 1, 3))), 1e-4)
    clear = torch.cat([s.hints, torch.zeros_like(grey)], dim=-1)
    close(s.run(s.apply(hints=clear)), s.run(s.apply(hints=torch.zeros_like(s.hints))), 1e-4)


def check_bad_hints(s: Setup) -> None:
    nan = s.hints.clone()
    nan[0, 0, 0, 0] = torch.nan
    raises("NaN", s.apply, hints=nan)
    theirs = stock().apply_controlnet(s.positive, s.negative, s.control, nan, 1.0, 0.0, 1.0, vae=s.vae)
    raises("NaN", s.run, theirs)
    raises("got shape", s.apply, hints=s.hints[..., :2])
    raises("swap them", s.apply, start=0.8, end=0.2)
    without = stock().apply_controlnet(s.positive, s.negative, s.control, s.hints, 1.0, 0.0, 1.0)
    raises("connect the vae input", s.run, without)

    class Sixteen:
        latent_channels = 16

    raises("16 channels", s.run, s.apply(vae=Sixteen()))
    s.run(s.apply())  # and it goes on


def check_a_control_that_does_not_fit(s: Setup) -> None:
    make = s.fixtures
    wide = make.random_pixart(make.nano_config(hidden_size=96, depth=4))
    raises("hidden size 96", s.run, s.apply(s.bridge.load_control(str(s.save_control(2, base=wide)), "float32")))
    deep = make.random_pixart(make.nano_config(depth=8))
    raises(
        "does not fit a MODEL of 4 blocks",
        s.run,
        s.apply(s.bridge.load_control(str(s.save_control(6, base=deep)), "float32")),
    )
    raises("not a PixArt ControlNet but a PixArt", s.bridge.load_control, str(s.family / "transformer"))
    raises("load one with PixArt-δ ControlNet Loader", s.apply, object())


def check_control_on_a_stock_pixart_says_what_to_load(s: Setup) -> None:
    """There it would be silently ignored."""
    from dataclasses import replace

    path = save_random(s, replace(s.core.PIXART_1024_MS, depth=1), "stock.safetensors")
    s.positive, s.negative = ([[torch.randn(1, length, 4096), {}]] for length in (7, 3))
    raises("PixArt-δ Model Loader", s.run, s.apply(), model=native(path))


def check_a_control_of_another_family_on_our_model(s: Setup) -> None:
    unet, x = s.model.model.diffusion_model, torch.randn(1, 4, 12, 16)
    raises(
        "another model family",
        unet,
        x,
        torch.tensor([500.0]),
        s.positive[0][0],
        control={"input": [], "middle": [torch.zeros(1, 4, 2, 2)], "output": []},
    )


def check_offloading_memory_and_no_leak(s: Setup) -> None:
    """Unloaded between runs, the second is the same; nothing keeps the base model alive."""
    import gc
    import weakref

    import comfy.model_management as memory

    conds = s.apply()
    first = s.run(conds)
    memory.unload_all_models()
    assert torch.equal(s.run(conds), first)
    control = conds[0][0][1]["control"]
    assert control.cond_hint is None and not control.extra_args
    assert [patcher.model for patcher in control.get_models()] == [control.control_model]
    other = s.load(str(s.family / "transformer"), "float32")
    s.run(conds, model=other)
    watched = weakref.ref(other.model.diffusion_model)
    memory.unload_all_models()
    del other
    gc.collect()
    assert watched() is None


def check_an_error_in_pre_run_leaves_nothing_behind(s: Setup) -> None:
    conds = s.apply()
    conds = s.apply(s.bridge.load_control(str(s.paths[1]), "float32"), conds=conds)
    first = s.run(conds)
    try:
        s.run(s.apply(vae=type("Sixteen", (), {"latent_channels": 16})(), conds=conds))
    except ValueError:
        pass
    assert torch.equal(s.run(conds), first)


def check_joint_file_gives_model_and_control(s: Setup) -> None:
    joint = s.family.parent / "joint.safetensors"
    s.checkpoint.merge_controlnet(s.family / "transformer", s.paths[3], joint)
    control, model = s.bridge.load_control(str(joint), "float32"), s.bridge.load_base(str(joint), "float32")
    close(s.run(s.apply(control), model=model), s.run(s.apply()), 1e-6)
    from comfy_execution.graph_utils import ExecutionBlocker

    blocked = s.bridge.load_base(str(s.paths[3]), "float32")
    assert isinstance(blocked, ExecutionBlocker) and "PixArt-δ Model Loader" in blocked.message


def check_hed_node_is_the_core(s: Setup) -> None:
    import comfy.model_management as memory

    hed, bridge = s.part("pixart_core.hed"), s.part("nodes.bridge.hed")
    torch.manual_seed(0)
    network = hed.HED((4, 4, 4, 4, 4))
    path = s.family.parent / "hed.safetensors"
    s.part("pixart_core.saving").save_weights(network.state_dict(), path)
    images = torch.rand(3, 64, 80, 3)
    found = bridge.soft_edges(str(path), "1", images, False, False, 0, "float32")
    expected = hed.detect(network, images).expand(-1, -1, -1, 3)
    assert found.shape == (3, 64, 80, 3)
    close(found, expected, 1e-6)
    memory.unload_all_models()
    assert torch.equal(bridge.soft_edges(str(path), "1", images, False, False, 0, "float32"), found)
    close(bridge.soft_edges(str(path), "1", images, False, False, 0, "bfloat16"), expected, 0.02)
    seen = bridge.round_trip(s.vae, found)
    core = s.part("pixart_core.vae")
    vae = core.load_vae(s.family, dtype=torch.float32)
    close(seen, core.decode(vae, core.encode(vae, found)), 1e-4)
    nan = images.clone()
    nan[0, 0, 0, 0] = torch.nan
    raises("NaN", bridge.soft_edges, str(path), "1", nan, False, False, 0, "float32")


def check_missing_hed_weights_say_what_goes_where(s: Setup) -> None:
    files = s.part("nodes.bridge.files")
    assert "ControlNetHED.pth" not in files.names("hed"), "ComfyUI's dialog would not offer it"
    raises("lllyasviel/Annotators", files.locate, "hed", "ControlNetHED.pth")


if __name__ == "__main__":
    main(globals(), Setup)
