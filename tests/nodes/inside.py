"""Checks that run in ComfyUI's own interpreter: `python inside.py COMFYUI FAMILY CHECK…`. Started by test_inside.py.

Prints a JSON object: check -> "" or its traceback. Here: the MODEL and its sampling; the rest is in checks_files.py.
"""

from __future__ import annotations

from dataclasses import replace

import checks_files
import torch
from inside_process import PROMPT, ROOT, Setup, close, main, native, save_random


def check_stock_ksampler_gives_our_samplers_latent(s: Setup) -> None:
    """Same noises: ours draws them one after another from one generator."""
    for steps in (1, 2, 3, 4, 5, 8):
        ours = s.sampling.run_lcm(s.model, s.positive, s.latent, 3, steps, "diffusers")["samples"]
        generator = torch.Generator().manual_seed(3)
        torch.randn(s.latent["samples"].shape, generator=generator)
        noises = lambda *_: torch.randn(s.latent["samples"].shape, generator=generator)  # noqa: B023, E731
        theirs = s.sample(s.sampling.add_lcm_sampling(s.model), steps=steps, noise_sampler=noises)
        close(ours, theirs, 1e-4)


def check_our_sampler_ignores_lcm_sampling_on_the_model(s: Setup) -> None:
    patched = s.sampling.add_lcm_sampling(s.model)
    one, other = (s.sampling.run_lcm(m, s.positive, s.latent, 3, 4, "official")["samples"] for m in (s.model, patched))
    assert torch.equal(one, other)
    assert not hasattr(s.model.get_model_object("model_sampling"), "skip_steps")


def check_a_student_is_sampled_on_the_noise_schedule_that_its_export_names(s: Setup) -> None:
    """By our sampler as by `Pipeline`, and by the stock one behind LCM Sampling as by ours."""
    made = {}
    for schedule in ("linear", "scaled_linear"):
        path = s.family.parent / f"student_{schedule}.safetensors"
        about = {"training": {"command": "lcd", "step": 1, "config": {"beta_schedule": schedule}}}
        network = s.part("pixart_core").load_pixart(s.family / "transformer")
        s.part("pixart_core").save_pixart(network, path, dtype=torch.float32, metadata=about)
        model = s.load(str(path), "float32")
        made[schedule] = s.sampling.run_lcm(model, s.positive, s.latent, 3, 2, "diffusers")["samples"]
        pipeline = s.part("pixart_core").Pipeline.from_pretrained(
            s.family, dtype=torch.float32, device="cpu", transformer=path
        )
        ours = pipeline.sample([PROMPT] * 2, 2, 3, width=128, height=96)
        close(model.model.process_latent_in(made[schedule]), ours, 1e-3)
        generator = torch.Generator().manual_seed(3)
        torch.randn(s.latent["samples"].shape, generator=generator)
        noises = lambda *_: torch.randn(s.latent["samples"].shape, generator=generator)  # noqa: B023, E731
        stock = s.sample(s.sampling.add_lcm_sampling(model), steps=2, noise_sampler=noises)
        close(stock, made[schedule], 1e-4)
    assert (made["scaled_linear"] - made["linear"]).abs().mean() > 0.01


def check_inpainting_keeps_what_is_outside_the_mask(s: Setup) -> None:
    picture = torch.randn(2, 4, 12, 16)
    mask = torch.zeros(2, 1, 96, 128)
    mask[..., :64] = 1
    latent = {"samples": picture, "noise_mask": mask}
    out = s.sampling.run_lcm(s.model, s.positive, latent, 3, 4, "diffusers")["samples"]
    close(out[..., 9:], picture[..., 9:], 1e-3)
    assert (out[..., :7] - picture[..., :7]).abs().mean() > 0.1


def check_previews_of_the_bundled_family_have_its_colours(s: Setup) -> None:
    """A bundled scene's preview is near the scene, and far from it in the colours of Stable Diffusion's latents."""
    import comfy.latent_formats
    import latent_preview
    import numpy
    from PIL import Image

    nano = ROOT / "models" / "nano"
    scene = torch.from_numpy(numpy.array(Image.open(nano / "scenes/000001.png").convert("RGB"))).float()[None] / 255
    latent = s.part("pixart_core.vae").encode(s.part("pixart_core.vae").load_vae(nano), scene)
    small = torch.nn.functional.avg_pool2d(scene.movedim(-1, 1), 8)[0].movedim(0, -1)

    def apart(form) -> float:
        bias = getattr(form, "latent_rgb_factors_bias", None)
        previewer = latent_preview.Latent2RGBPreviewer(form.latent_rgb_factors, bias)
        preview = numpy.asarray(previewer.decode_latent_to_preview(latent), numpy.float32) / 255
        return float((torch.from_numpy(preview) - small).abs().mean())

    ours = s.load(str(nano / "transformer"), "float32").model.latent_format
    assert apart(ours) < 0.12 < 0.2 < apart(comfy.latent_formats.SD15())


def preview_of(form, latent: torch.Tensor) -> torch.Tensor:
    """What --preview-method taesd shows, (H, W, 3) in 0 … 255; fails where ComfyUI falls back to colours."""
    import latent_preview
    import numpy
    from comfy.cli_args import LatentPreviewMethod, args

    before, args.preview_method = args.preview_method, LatentPreviewMethod.TAESD
    try:
        previewer = latent_preview.get_previewer(torch.device("cpu"), form)
    finally:
        args.preview_method = before
    assert isinstance(previewer, latent_preview.TAESDPreviewerImpl), type(previewer)
    return torch.from_numpy(numpy.array(previewer.decode_latent_to_preview(latent))).float()


def check_previews_by_taesd_are_drawn_by_the_familys_decoder(s: Setup) -> None:
    """Of the bundled family's own files, and of what was trained from them and lies elsewhere."""
    nano, latent = ROOT / "models" / "nano", torch.randn(1, 4, 6, 8)
    drawn = s.part("pixart_core.vae").decode(s.part("pixart_core.vae").load_vae(nano), latent)[0] * 255
    base = nano / "base" / "pixart_nano_base.safetensors"
    elsewhere = save_random(s, s.core.inspect_file(base).config, "trained.safetensors")
    for path in (nano / "transformer", base, elsewhere):
        assert (preview_of(s.load(str(path), "float32").model.latent_format, latent) - drawn).abs().max() <= 1


def check_a_family_brings_the_colours_and_the_decoder_of_its_previews(s: Setup) -> None:
    """They stay its own when the MODEL is saved; a file of a released shape keeps Stable Diffusion's."""
    import comfy.latent_formats
    import folder_paths

    colours = {"factors": [[0.5, 0.25, 0.0], [0.0, 0.5, 0.25], [0.25, 0.0, 0.5], [0.125] * 3], "bias": [0.0, -0.5, 0.5]}
    network = s.part("pixart_core").load_pixart(s.family / "transformer")
    s.part("pixart_core").save_pixart(network, s.family / "own", layout="diffusers", metadata={"preview": colours})
    model, latent = s.load(str(s.family / "own"), "float32"), torch.randn(1, 4, 6, 8)
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(s.family.parent))
    try:
        saved = s.part("nodes.bridge.save").save_model(model, "saved", "authors", "float16")
    finally:
        folder_paths.set_output_directory(before)
    for form in (model.model.latent_format, s.load(saved, "float32").model.latent_format):
        assert (form.latent_rgb_factors, form.latent_rgb_factors_bias) == (colours["factors"], colours["bias"])
        assert form.scale_factor == comfy.latent_formats.SD15().scale_factor
    drawn = s.part("pixart_core.vae").decode(s.part("pixart_core.vae").load_vae(s.family), latent)[0] * 255
    assert (preview_of(model.model.latent_format, latent) - drawn).abs().max() <= 1
    plain = save_random(s, replace(s.core.PIXART_512, depth=1), "released.safetensors")
    form = s.part("nodes.bridge.preview").latent_format(s.core.PIXART_512, s.core.inspect_file(plain))
    assert type(form) is comfy.latent_formats.SD15


def check_native_pixart_agrees_where_it_is_right(s: Setup) -> None:
    """The 1024-MS layout (ComfyUI's class has its widths built in), with guidance. From a file that holds pos_embed its
    position grid is right between about 700 and 1500 px only, hence the size."""
    path = save_random(s, replace(s.core.PIXART_1024_MS, depth=1), "ms.safetensors")
    s.latent = s.part("nodes.bridge.guider").empty_latent(896, 704, 1)
    s.positive, s.negative = ([[torch.randn(1, length, 4096), {}]] for length in (7, 3))
    ours, theirs = s.load(str(path), "float32"), native(path)
    assert type(ours.model.latent_format) is type(theirs.model.latent_format)
    close(s.sample(ours, "dpmpp_2m", 3, 3.0, "normal"), s.sample(theirs, "dpmpp_2m", 3, 3.0, "normal"), 1e-4)


def check_512_layout_is_sigma_to_native_and_alpha_to_us(s: Setup) -> None:
    path = save_random(s, replace(s.core.PIXART_512, depth=1), "512.safetensors")
    assert type(native(path).model.latent_format).__name__ == "SDXL", "fixed in ComfyUI: say so in the README"
    ours = s.load(str(path), "float32")
    assert type(ours.model.latent_format).__name__ == "SD15"
    reference = s.core.load_pixart(path, dtype=torch.float32)
    latent, caption = torch.randn(1, 4, 64, 48), torch.randn(1, 7, 4096)
    close(
        ours.model.diffusion_model(latent, torch.tensor([500.0]), caption),
        reference(latent, torch.tensor([500]), caption)[:, :4],
    )


def check_256_px_divides_by_zero_in_native_and_works_in_ours(s: Setup) -> None:
    path = save_random(s, replace(s.core.PIXART_256, depth=1), "256.safetensors")
    s.latent = s.part("nodes.bridge.guider").empty_latent(256, 256, 1)
    s.positive = s.negative = [[torch.randn(1, 7, 4096), {}]]
    assert s.sample(s.load(str(path), "float32"), "euler", 2, 3.0, "normal").isfinite().all()
    try:
        s.sample(native(path), "euler", 2, 3.0, "normal")
    except ZeroDivisionError:
        return
    raise AssertionError("fixed in ComfyUI: say so in the README")


def check_wrappers_patches_overrides_and_control_are_honoured(s: Setup) -> None:
    import comfy.patcher_extension as extension

    model, seen = s.model.clone(), []
    base = s.sample(s.sampling.add_lcm_sampling(model), steps=1)

    def wrapper(executor, *args, **kwargs):
        seen.append("wrapper")
        return executor(*args, **kwargs)

    def replace(values, extra):
        seen.append("block")
        return extra["original_block"](values)

    def override(function, *args, **kwargs):
        seen.append("attention")
        return function(*args, **kwargs)

    model.add_wrapper_with_key(extension.WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    model.set_model_patch_replace(replace, "dit", "double_block", 1)
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    close(s.sample(s.sampling.add_lcm_sampling(model), steps=1), base)
    assert seen.count("wrapper") == 1 and seen.count("block") == 1
    assert seen.count("attention") == 2 * s.model.model.diffusion_model.config.depth
    unet, x, t = s.model.model.diffusion_model, torch.randn(1, 4, 12, 16), torch.tensor([500.0])
    caption = s.positive[0][0].float()
    with torch.no_grad():
        plain = unet(x, t, caption)
        tokens = torch.randn(1, 48, unet.config.hidden_size)
        steered = unet(x, t, caption, control={"input": [None, tokens], "middle": [], "output": []})
        reference = s.core.load_pixart(s.family / "transformer", dtype=torch.float32)
        expected = reference(x, t, caption, control=[torch.zeros_like(tokens), tokens])[:, :4]
    close(steered, expected)
    assert (steered - plain).norm() / plain.norm() > 1e-3


def check_caption_masks_and_mixed_lengths(s: Setup) -> None:
    """A padded caption under its mask equals the bare one; micro-conditions come through unrounded."""
    caption, extra = s.positive[0]
    padded = torch.cat([caption, torch.randn(1, 9, caption.shape[-1])], dim=1)
    mask = torch.cat([torch.ones(1, caption.shape[1]), torch.zeros(1, 9)], dim=1)
    model = s.sampling.add_lcm_sampling(s.model)
    masked = s.sample(model, steps=2, positive=[[padded, {**extra, "caption_mask": mask}]])
    close(masked, s.sample(model, steps=2), 1e-4)
    conds = s.model.model.extra_conds(
        cross_attn=caption, width=2056, height=1000, noise=torch.zeros(1, 4, 8, 8), device="cpu"
    )
    assert conds["c_size"].cond.tolist() == [[1000, 2056]] and not conds["c_size"].cond.is_floating_point()


def check_clones_deep_copies_and_hooks(s: Setup) -> None:
    clone = s.model.clone()
    clone.add_patches({"diffusion_model.blocks.0.mlp.fc1.weight": ("diff", (torch.ones(192, 48),))})
    before = s.sample(s.sampling.add_lcm_sampling(s.model), steps=1)
    changed = s.sample(s.sampling.add_lcm_sampling(clone), steps=1)
    assert (before - changed).norm() > 1e-3
    close(s.sample(s.sampling.add_lcm_sampling(s.model), steps=1), before, 1e-6)
    loader, arguments = s.model.cached_patcher_init[:2]
    again = loader(*arguments, disable_dynamic=True)
    close(s.sample(s.sampling.add_lcm_sampling(again), steps=1), before, 1e-6)


def check_default_dtype_is_the_fast_one(s: Setup) -> None:
    import comfy.model_management as memory

    preferred = s.core.preferred_dtype("cpu")
    model = s.load(str(s.family / "transformer"))
    assert model.model.product_dtype() == preferred
    unet = model.model.diffusion_model
    assert unet.product_dtype == preferred and unet.stream_dtype() == torch.float32
    assert {p.dtype for p in unet.parameters()} <= {preferred, torch.float32}
    from comfy.cli_args import args

    args.fp32_unet = True
    assert s.load(str(s.family / "transformer")).model.product_dtype() == torch.float32
    args.fp32_unet = False
    assert memory.unet_dtype(device=torch.device("cpu"), weight_dtype=torch.float16) == torch.float32


def check_products_are_in_the_dtype_that_computes(s: Setup) -> None:
    """The stream of tokens is float32 in every dtype, the blocks' products are not."""
    model = s.load(str(s.family / "transformer"), "bfloat16").clone()
    model.set_model_compute_dtype(torch.bfloat16)
    seen = set()
    block = model.model.diffusion_model.blocks[1]
    for layer in (block.attn.qkv, block.cross_attn.q_linear, block.cross_attn.kv_linear, block.mlp.fc1):
        layer.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
    s.sample(s.sampling.add_lcm_sampling(model), steps=1)
    assert seen == {torch.bfloat16}, seen


if __name__ == "__main__":
    main(globals() | vars(checks_files), Setup)
