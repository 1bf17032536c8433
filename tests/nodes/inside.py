"""Checks that run in ComfyUI's own interpreter: `python inside.py COMFYUI FAMILY CHECK…`. Started by test_inside.py.

Prints a JSON object: check -> "" or its traceback. A separate process, because ComfyUI's top-level modules (`nodes`,
`server`) must be the first of their names.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a red mountain at dawn"


def start(comfyui: str):
    """Prepare ComfyUI for the CPU and load the extension as ComfyUI does; returns its bridge modules by name."""
    sys.path[0] = comfyui
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    import utils.extra_config  # noqa: F401  before `nodes` puts comfy/, with a utils.py of its own, on the path

    import nodes

    assert asyncio.run(nodes.load_custom_node(str(ROOT)))
    name = next(name for name in sys.modules if name.endswith(".bridge.model"))
    package = name.removesuffix(".nodes.bridge.model")
    return lambda part: importlib.import_module(f"{package}.{part}")


def sibling(name: str, folder: Path):
    """A module of the tests by its path: ComfyUI has its own `tests` and `nodes`."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(checks: Mapping[str, Any], make: Callable[[Callable, str], Any], context=torch.inference_mode) -> None:
    """The command line of each script of checks.

    Args:
        checks: what a script has, by name.
        make: what a check is given, from `start`'s function and the folder that the command line names.
        context: that a check runs in.
    """
    comfyui, folder, *names = sys.argv[1:]
    part = start(comfyui)
    found = {}
    for name in names:
        try:
            with context():
                checks[name](make(part, folder))
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()[-3000:]
    print(json.dumps(found))  # noqa: T201


def close(one: torch.Tensor, other: torch.Tensor, limit: float = 1e-5) -> None:
    error = ((one.float() - other.float()).norm() / other.float().norm()).item()
    assert error < limit, f"relative error {error:.2e}, allowed {limit:.0e}"


class Setup:
    """The parts that checks share: a MODEL in float32, its conditioning, a latent."""

    def __init__(self, part, family: str):
        self.part, self.family = part, Path(family)
        self.core = part("pixart_core")
        self.load = part("nodes.bridge.model").load_model
        self.sampling = part("nodes.bridge.guider")
        self.model = self.load(str(self.family / "transformer"), "float32")
        clip = part("nodes.bridge.clip").load_clip(str(self.family / "text_encoder"))
        encode_prompts = part("nodes.bridge.prompt").encode_prompts
        self.positive, self.negative = encode_prompts(clip, PROMPT, "a lake", 0, 0, False)
        self.latent = self.sampling.empty_latent(128, 96, 2)

    def sample(
        self, model, sampler_name="lcm", steps=4, cfg=1.0, scheduler="simple", noise_sampler=None, positive=None, seed=3
    ):
        """The stock sampling function, with our noises if given."""
        import comfy.sample
        import comfy.samplers

        noise = comfy.sample.prepare_noise(self.latent["samples"], seed)
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
        options = {"noise_sampler": noise_sampler} if noise_sampler else {}
        sampler = comfy.samplers.ksampler(sampler_name, options)
        return comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            sampler,
            sigmas,
            positive or self.positive,
            self.negative,
            self.latent["samples"],
            disable_pbar=True,
            seed=seed,
        )


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


def native(path: Path):
    """The file in ComfyUI's own loader."""
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(path))


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


def save_random(s: Setup, config, name: str) -> Path:
    sys.path.append(str(ROOT))  # after ComfyUI's folder: only for the fixtures' `tests` and `pixart_core`
    fixtures = sibling("fixtures_nano", ROOT / "tests")
    path = s.family.parent / name
    s.part("pixart_core.checkpoint").save_pixart(fixtures.random_pixart(config).state_dict(), path, config=config)
    return path


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


def check_text_encoder_equals_transformers(s: Setup) -> None:
    """Plain and 8-bit, by our node's path and by the stock one; long prompts are cut at 120 tokens."""
    encoder = s.part("pixart_core.text").TextEncoder.from_pretrained(s.family, dtype=torch.float32)
    clips = {q: s.part("nodes.bridge.clip").load_clip(str(s.family / "text_encoder"), q) for q in ("none", "8-bit")}
    encode = s.part("nodes.bridge.prompt").encode_prompts
    for text in (PROMPT, "", "A (RED:1.3) Mountain", "and a lake " * 100):
        caption, mask = encoder.encode([text])
        expected = caption[:, : int(mask.sum())]
        for quantization, limit in (("none", 1e-4), ("8-bit", 0.1)):
            found = encode(clips[quantization], text, "", 0, 0, False)[0][0][0]
            assert found.shape == expected.shape and found.shape[1] <= 120
            close(found, expected, limit)
    stock = clips["none"].encode_from_tokens_scheduled(clips["none"].tokenize(PROMPT.upper()))[0][0]
    close(stock, encoder.encode([PROMPT])[0][:, : stock.shape[1]], 1e-4)
    linear = clips["8-bit"].cond_stage_model.t5xxl.transformer.encoder.block[0].layer[0].SelfAttention.q
    assert type(linear.weight).__name__ == "QuantizedTensor" or type(linear.weight.data).__name__ == "QuantizedTensor"


def check_a_training_can_have_the_memory(s: Setup) -> None:
    """With free_memory, a training node leaves none of ComfyUI's models on the device before its job is queued."""
    from comfy import model_management

    training = s.part("nodes.background.start")
    found: list[int] = []

    def create(*_) -> None:
        found.append(len(model_management.loaded_models()))
        raise InterruptedError  # so that no job is queued

    queue = mock.Mock(jobs=list, same=lambda *_: None, create=create, root=s.family)
    stand_ins = {
        "_dataset": lambda text: mock.Mock(folder=Path(text), ready=True),
        "checked_settings": lambda kind, values, **_: kind.make({**values, "run": "queue", "base": "there"}),
        "check_and_estimate": lambda *_, **__: "",
    }
    for free in (False, True):
        model_management.load_models_gpu([s.model])
        jobs = mock.patch.object(training.jobs, "queue", lambda: queue)
        with jobs, mock.patch.multiple(training, **stand_ins), contextlib.suppress(InterruptedError):
            training.start_training("lcd", "", {"data": "here"}, "", False, free)
    assert found[0] > 0 and found[1] == 0, found


def check_prompt_rules_leave_names_of_embeddings(s: Setup) -> None:
    rules = s.part("nodes.bridge.prompt").prompt_text
    assert rules("  A Red (Lake:1.2), embedding:My_Dog.v2 AND (embedding:Ü:1.1) ") == (
        "a red (lake:1.2), embedding:My_Dog.v2 and (embedding:Ü:1.1)"
    )
    assert rules("Embeddings of A", False) == "embeddings of a"


def check_a_lora_with_biases_and_a_loha(s: Setup) -> None:
    """As ComfyUI's LoraSave extracts it, and of a kind that only ComfyUI's loader knows; by hand."""
    from safetensors.torch import save_file

    key = "diffusion_model.blocks.0.attn.qkv"
    width = s.model.model.diffusion_model.config.hidden_size
    torch.manual_seed(0)
    bias, rows = torch.randn(3 * width), torch.randn(width)
    parts = [torch.randn(*shape) for shape in ((3 * width, 2), (2, width), (3 * width, 2), (2, width))]
    plain = {f"{key}.lora_up.weight": parts[0], f"{key}.lora_down.weight": parts[1], f"{key}.diff_b": bias}
    plain["transformer.transformer_blocks.1.attn1.to_k.diff_b"] = rows
    other = {f"{key}.hada_{name}": part for name, part in zip(("w1_a", "w1_b", "w2_a", "w2_b"), parts, strict=True)}
    before = s.model.model.diffusion_model.state_dict()
    for name, state in (("plain", plain), ("loha", other)):
        path = s.family.parent / f"{name}.safetensors"
        save_file({each: tensor.clone() for each, tensor in state.items()}, path)
        patched = s.part("nodes.bridge.model").apply_lora(s.model, str(path), 0.5)
        found = {each: patched.patch_weight_to_device(each, return_weight=True) for each in patched.patches}
        change = parts[0] @ parts[1] * (1 if name == "plain" else parts[2] @ parts[3])
        close(found[f"{key}.weight"], before["blocks.0.attn.qkv.weight"] + change / 2)
        if name == "plain":
            close(found[f"{key}.bias"], before["blocks.0.attn.qkv.bias"] + bias / 2)
            other_bias = before["blocks.1.attn.qkv.bias"].clone()
            other_bias[width : 2 * width] += rows / 2
            close(found["diffusion_model.blocks.1.attn.qkv.bias"], other_bias)


def check_dora_and_lokr_are_as_peft_merges_them(s: Setup) -> None:
    """An export of the trainer through ComfyUI's own loader, under its own names, and through our node."""
    import copy

    import comfy.sd
    from safetensors.torch import load_file

    lora, export = s.part("training.lora"), s.part("training.export")
    network = s.part("pixart_core.checkpoint").load_pixart(s.family / "transformer", torch.float32)
    for kind in ("lora", "dora", "lokr"):
        trained = lora.add_lora(copy.deepcopy(network), 3, 6.0, kind=kind)
        for number, each in enumerate(each for each in trained.parameters() if each.requires_grad):
            each.data += 0.1 * torch.randn(each.shape, generator=torch.Generator().manual_seed(number))
        path = s.family.parent / f"{kind}.safetensors"
        export.write_weights(trained, path, "comfyui", torch.float32, {}, "")
        wanted: dict[str, dict[int, torch.Tensor]] = {}
        for name, layer in lora._layers(trained).items():
            layer.merge()
            key, part, _ = lora._target(name)
            wanted.setdefault(key, {})[part] = layer.get_base_layer().weight.detach()
        node = s.part("nodes.bridge.model").apply_lora(s.model, str(path), 1.0)
        stock, _ = comfy.sd.load_lora_for_models(s.model, None, load_file(path), 1.0, 0)
        for patched in (node, stock):
            assert len(patched.patches) == len(wanted)
            for key in wanted:
                found = patched.patch_weight_to_device(f"diffusion_model.{key}", return_weight=True)
                merged = torch.cat([part for _, part in sorted(wanted[key].items())])
                close(found, merged.reshape(found.shape), 1e-4)


def check_the_loss_is_plotted_with_its_four_bands(s: Setup) -> None:
    """Each in its colour, and none where nothing is held out."""
    pictures = s.part("nodes.bridge.pictures")
    steps, losses = [10, 20, 30], [0.5, 0.4, None]
    held_out = [[factor, None, 0.5 * factor] for factor in (0.3, 0.1, 0.2, 0.6, 0.8)]

    def colours(*curves) -> set:
        plot = (pictures.loss_plot(steps, losses, *curves)[0] * 255).round().int().flatten(0, 1)
        return set(map(tuple, plot.tolist()))

    of_bands, others = set(pictures._BANDS), {pictures._CURVE, pictures._HELD_OUT}
    assert of_bands | others <= colours(held_out)
    assert not of_bands & colours(held_out[:1]) and others <= colours(held_out[:1])
    assert not of_bands & colours([[None] * 3] * 5) and pictures._HELD_OUT not in colours()


def check_lists_offer_what_fits(s: Setup) -> None:
    """Shards once, as the folder or the index; folders by what they are; only LoRA among the LoRA."""
    import shutil

    import folder_paths
    from safetensors.torch import load_file, save_file

    files = s.part("nodes.bridge.files")
    root = s.family.parent / "lists"
    encoders, own, loras = root / "encoders", root / "own", root / "loras"
    state = load_file(s.family / "text_encoder" / "model.safetensors")
    names = sorted(state)
    for folder in (encoders / "t5-v1_1-xxl", encoders, own / "PixArt", loras):
        folder.mkdir(parents=True, exist_ok=True)
    for part, chosen in ((1, names[:4]), (2, names[4:])):
        for folder in (encoders / "t5-v1_1-xxl", encoders):
            save_file({each: state[each] for each in chosen}, folder / f"model-0000{part}-of-00002.safetensors")
    shutil.copy(s.family / "text_encoder" / "config.json", encoders / "t5-v1_1-xxl")
    shutil.copy(s.family / "transformer" / "diffusion_pytorch_model.safetensors", own / "A_model.safetensors")
    save_file({"block1.convs.0.weight": torch.zeros(1)}, own / "A_network.safetensors")
    save_file({"x.lora_A.weight": torch.zeros(1)}, own / "another_models_lora.safetensors")
    shutil.copy(ROOT / "models/nano/lcm_lora/pytorch_lora_weights.safetensors", own / "a_lora.safetensors")
    places = {"text_encoders": encoders, files.FOLDER: own, "loras": loras}
    kept = {name: folder_paths.folder_names_and_paths[name] for name in places}
    try:
        for name, place in places.items():
            folder_paths.folder_names_and_paths[name] = ([str(place)], folder_paths.supported_pt_extensions)
        listed = {kind: [x for x in files.names(kind) if "bundled" not in x] for kind in ("text_encoder", "lora")}
        assert listed["text_encoder"] == ["model-00001-of-00002.safetensors", "t5-v1_1-xxl/"], listed
        assert listed["lora"] == ["a_lora.safetensors"], listed
        assert "A_model.safetensors" in files.names("model")
        assert "A_network.safetensors" in files.names("hed")
        assert files.locate("text_encoder", "t5-v1_1-xxl/") == str(encoders / "t5-v1_1-xxl")
    finally:
        folder_paths.folder_names_and_paths.update(kept)


if __name__ == "__main__":
    main(globals(), Setup)
