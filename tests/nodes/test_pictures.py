"""In a real ComfyUI: our nodes' pictures and `pc.Pipeline`'s, stock nodes on our MODEL, LoRAs, batches, interrupts."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

import pixart_core as pc
from pixart_core.checkpoint import save_pixart
from pixart_core.delta import Delta, Lora, apply_lora, save_lora
from pixart_core.lora import load_lora
from pixart_core.vae import load_vae
from tests.fixtures_nano import make_nano_folder, nano_config, random_pixart
from tests.nodes.graphs import PROMPT, difference, ksampler, node, pictures, text_to_image


@pytest.fixture(scope="session")
def family(comfy_server):
    """A random nano family where a download would be: models/pixart_delta/nano."""
    for folder in ("diffusion_models", "loras", "text_encoders", "vae"):
        (comfy_server.base / "models" / folder).mkdir(exist_ok=True)
    return make_nano_folder(comfy_server.base / "models" / "pixart_delta" / "nano")


@pytest.fixture(scope="session")
def run(comfy_server, family):
    return lambda *args, **kwargs: pictures(comfy_server.prompt(text_to_image(*args, **kwargs)))


@pytest.fixture(scope="session")
def pipeline(family):
    return pc.Pipeline.from_pretrained(family)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 1},
        {"steps": 8, "seed": 11},
        {"grid": "official"},
        {"grid": "dmd", "steps": 1},
        {"width": 160, "height": 96},
        {"batch": 3},
        {"width": 72, "height": 136},
        {"prompt": ""},
        {"prompt": "A RED Mountain (at dawn:1.5) " + "and a lake " * 200},
    ],
    ids=str,
)
def test_pictures_are_the_pipelines(run, pipeline, options):
    ours = run(**options)
    values = {"prompt": PROMPT, "steps": 4, "seed": 3, "width": 128, "height": 128} | options
    theirs = pipeline(values.pop("prompt"), **values)
    assert len(ours) == len(theirs) == options.get("batch", 1)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == (values["height"], values["width"], 3) and one.std() > 5
        assert difference(one, other) < 1


def test_stock_ksampler_with_one_step_gives_our_samplers_picture(run):
    """One step draws no further noise, so the two nodes have the same; `test_inside` compares several steps."""
    assert difference(run(steps=1)[0], run(steps=1, changes=ksampler())[0]) < 0.05


def test_stock_text_nodes_work(run):
    """CLIPTextEncode on our CLIP, our sampler, sizes from the latent."""
    changes = {"text": node("CLIPTextEncode", clip=["clip", 0], text=PROMPT.upper())}
    assert difference(run()[0], run(changes=changes)[0]) < 0.05


@pytest.mark.parametrize("guidance", [4.5, 1.0])
def test_base_model_with_ksampler_is_the_pipelines_dpm_solver(run, pipeline, guidance):
    """14 steps of dpmpp_2m on sgm_uniform are diffusers' DPM-Solver++; ours rounds the timesteps, ComfyUI does not."""
    settings = ksampler("model", steps=14, cfg=guidance, sampler_name="dpmpp_2m", scheduler="sgm_uniform")
    theirs = pipeline(PROMPT, sampler="dpm", steps=14, guidance=guidance, seed=3, width=128, height=128)[0]
    assert difference(run(changes=settings)[0], theirs) < 1


def test_learned_null_caption_is_the_authors_unconditional(run, comfy_server, family):
    """The authors' file holds it: as the pipeline, under the prompt's own length. One step, whose timestep is
    exact, and guidance that makes the unconditional side show in a random model."""
    name = "nano_base.safetensors"
    (comfy_server.base / "models" / "diffusion_models" / name).write_bytes(
        (family / "base" / "pixart_nano_base.safetensors").read_bytes()
    )
    settings = ksampler("model", steps=1, cfg=40, sampler_name="dpmpp_2m", scheduler="sgm_uniform")
    changes = settings | {"model": node("PixArtDeltaModelLoader", model_name=name, dtype="float32")}
    text = text_to_image()["text"]
    text["inputs"] |= {"unconditional": "learned null caption", "model": ["model", 0]}
    base = family / "base" / "pixart_nano_base.safetensors"
    theirs = pc.Pipeline.from_pretrained(family, transformer=base, dtype=torch.float32)
    expected = theirs(PROMPT, sampler="dpm", steps=1, guidance=40, seed=3, width=128, height=128)[0]
    learned, encoded = (difference(run(changes=c)[0], expected) for c in (changes | {"text": text}, changes))
    assert learned < 1 and learned < encoded / 3, (learned, encoded)


def test_image_to_image_keeps_more_at_lower_denoise(run):
    start = node("EmptyImage", width=128, height=128, batch_size=1, color=0x3060C0)

    def changed(denoise: float) -> float:
        encoded = {"start": start, "encoded": node("VAEEncode", pixels=["start", 0], vae=["vae", 0])}
        sample = node(
            "PixArtDeltaLCMSampler",
            model=["model", 0],
            positive=["text", 0],
            latent_image=["encoded", 0],
            seed=3,
            steps=2,
            grid="diffusers",
            denoise=denoise,
        )
        through = run(changes=encoded | {"decode": node("VAEDecode", samples=["encoded", 0], vae=["vae", 0])})[0]
        return difference(through, run(changes=encoded | {"sample": sample})[0])

    assert changed(0.1) < changed(0.5) < changed(1.0)


def test_8_bit_text_encoder_draws_nearly_the_same(run, comfy_server):
    loader = node("PixArtDeltaTextEncoderLoader", text_encoder_name="nano/text_encoder/", quantization="8-bit")
    changed = difference(run()[0], run(changes={"clip": loader})[0])
    assert 0 < changed < 8
    assert "(int8_tensorwise)" in comfy_server.log or "(float8_e4m3fn)" in comfy_server.log


def test_single_files_and_other_layouts_draw_the_same(run, comfy_server, family):
    """The authors' layout with a ComfyUI prefix, as a file in models/diffusion_models; T5 and VAE as files."""
    models = comfy_server.base / "models"
    save_pixart(pc.load_pixart(family / "transformer"), models / "diffusion_models" / "authors.safetensors")
    changes = {"model": node("PixArtDeltaModelLoader", model_name="authors.safetensors", dtype="default")}
    assert difference(run()[0], run(changes=changes)[0]) == 0


def test_float32_is_close_to_the_default(run):
    changes = {"model": node("PixArtDeltaModelLoader", model_name="nano/transformer/", dtype="float32")}
    assert difference(run()[0], run(changes=changes)[0]) < 4


def test_stable_diffusions_autoencoder_loads_in_ours_and_in_the_stock_node(run, comfy_server, family, tmp_path):
    """Its true shape with random weights, as a folder and as a file."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    names = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **names)
    vae.half().save_pretrained(comfy_server.base / "models" / "vae" / "sd" / "vae")
    theirs = pc.Pipeline.from_pretrained(family)
    theirs.vae = load_vae(comfy_server.base / "models" / "vae" / "sd" / "vae")
    expected = theirs(PROMPT, steps=1, seed=3, width=64, height=64)[0]
    for loader in (
        node("PixArtDeltaVAELoader", vae_name="sd/vae/"),
        node("PixArtDeltaVAELoader", vae_name="sd/vae/diffusion_pytorch_model.safetensors"),
        node("VAELoader", vae_name="sd/vae/diffusion_pytorch_model.safetensors"),
    ):
        assert difference(run(steps=1, width=64, height=64, changes={"vae": loader})[0], expected) < 1


# --- LoRA ---


@pytest.fixture(scope="session")
def lora(comfy_server, family):
    """A LoRA with alpha 4 at rank 2 on a fused matrix, a part of one, and a plain one."""
    generator = torch.Generator().manual_seed(1)

    def delta(key, rows, columns, part=0, parts=1):
        return Delta(
            key,
            part,
            parts,
            torch.randn(rows, 2, generator=generator),
            torch.randn(2, columns, generator=generator),
            4.0,
        )

    deltas = [
        delta("blocks.0.attn.qkv.weight", 48, 48, 1, 3),
        delta("blocks.1.cross_attn.kv_linear.weight", 48, 48, 1, 2),
        delta("blocks.0.mlp.fc1.weight", 192, 48),
    ]
    return save_lora(Lora("test", tuple(deltas)), comfy_server.base / "models" / "loras" / "test.safetensors")


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0])
def test_lora_nodes_equal_merged_weights(run, comfy_server, family, lora, strength, tmp_path):
    merged = pc.load_pixart(family / "transformer", dtype=torch.float32)
    apply_lora(merged, load_lora(lora), strength)
    name = f"merged_{strength}.safetensors"
    save_pixart(merged, comfy_server.base / "models" / "diffusion_models" / name)
    expected = run(changes={"model": node("PixArtDeltaModelLoader", model_name=name, dtype="float32")})[0]
    plain = node("PixArtDeltaModelLoader", model_name="nano/transformer/", dtype="float32")
    values = {"model": ["plain", 0], "lora_name": "test.safetensors"}
    for loader in (
        node("PixArtDeltaLoraLoader", **values, strength=strength),
        node("LoraLoaderModelOnly", **values, strength_model=strength),
    ):
        assert difference(expected, run(changes={"plain": plain, "model": loader})[0]) < 0.05
    without = difference(expected, run(changes={"model": plain})[0])
    assert without > 1 if strength else without == 0, without


# --- running ---


def test_batch_of_three_is_three_different_pictures(run):
    first, second, third = run(batch=3)
    assert min(difference(first, second), difference(second, third), difference(first, third)) > 2


def test_same_seed_same_picture_other_seed_another(run):
    assert difference(run(seed=5)[0], run(seed=6)[0]) > 2
    assert difference(run(seed=5)[0], run(seed=5)[0]) == 0


def test_progress_and_previews_come_at_every_step(comfy_server, family):
    result = comfy_server.prompt(text_to_image(steps=5, seed=41), extra_data={"preview_method": "latent2rgb"})
    assert not result.errors
    steps = [data["value"] for _, kind, data in result.events if kind == "progress" and data["node"] == "sample"]
    assert steps == [1, 2, 3, 4, 5]
    assert len([1 for _, kind, _ in result.events if kind == "preview"]) == 5


def test_interrupt_stops_within_a_step_and_the_next_run_works(comfy_server, family, run):
    """A model slow enough to be interrupted: 8 steps of a wider one at 768 px."""
    slow = random_pixart(nano_config(hidden_size=384, depth=6))
    save_pixart(slow, comfy_server.base / "models" / "diffusion_models" / "slow.safetensors")
    times = []

    def on_event(kind, data):
        if kind == "progress" and data["node"] == "sample":
            times.append(time.monotonic())
            if data["value"] == 2:
                comfy_server.interrupt()

    model = {"model": node("PixArtDeltaModelLoader", model_name="slow.safetensors", dtype="float32")}
    result = comfy_server.prompt(text_to_image(steps=8, width=768, height=768, changes=model), on_event)
    assert result.interrupted
    assert not result.images
    assert not result.errors
    assert len(times) <= 4, "the sampler went on after the interrupt"
    assert len(run(seed=77)) == 1


def test_prompts_while_another_is_running_are_queued(comfy_server, family):
    graphs = [text_to_image(seed=seed) for seed in (101, 102)]
    results = [None, None]

    def submit(index):
        results[index] = comfy_server.prompt(graphs[index])

    threads = [threading.Thread(target=submit, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert difference(*(pictures(result)[0] for result in results)) > 2


def test_saved_checkpoints_load_in_every_layout(comfy_server, family, run, lora):
    """The MODEL with a LoRA, saved in both layouts, loaded again: the LoRA is merged in."""
    changes = {
        "plain": node("PixArtDeltaModelLoader", model_name="nano/transformer/", dtype="float32"),
        "model": node("PixArtDeltaLoraLoader", model=["plain", 0], lora_name="test.safetensors", strength=1.0),
    }
    expected = run(changes=changes)[0]
    for layout in ("authors", "diffusers"):
        store = node(
            "PixArtDeltaSaveCheckpoint",
            model=["model", 0],
            filename_prefix=f"out/{layout}",
            layout=layout,
            dtype="float32",
        )
        result = comfy_server.prompt(text_to_image(changes=changes | {"store": store}))
        assert not result.errors, result.errors
        path = result.outputs["store"]["text"][0].removeprefix("saved ")
        model = pc.load_pixart(path)
        assert not any("lora" in name for name in model.state_dict())
        name = f"again_{layout}.safetensors"
        save_pixart(model, comfy_server.base / "models" / "diffusion_models" / name)
        again = run(changes={"model": node("PixArtDeltaModelLoader", model_name=name, dtype="float32")})[0]
        assert difference(expected, again) < 0.1


def test_the_loader_says_what_a_picture_takes_in_two_sentences(comfy_server, family):
    """Of the model as it was loaded; shown under the node by web/said.mjs."""
    result = comfy_server.prompt(text_to_image(seed=300, changes={"model": changed_loader()}))
    assert not result.errors
    texts = [data["text"] for _, kind, data in result.events if kind == "pixart_delta.said" and data["node"] == "model"]
    assert len(texts) == 1
    assert texts[0].count(". ") == 1
    assert texts[0].endswith("B.")
    assert "sampled (float32)" in texts[0]
    assert "int8" not in texts[0]
    assert len(texts[0]) < 120


def changed_loader() -> dict:
    """A loader that ComfyUI has not run yet."""
    return node("PixArtDeltaModelLoader", model_name="nano/transformer/", dtype="float32")


# --- warnings ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cfg": 4.5}, "set cfg to 1"),
        ({"cfg": 0.0}, "set cfg to 1"),
        ({"sampler_name": "euler"}, "an LCM model takes 'lcm'"),
        ({"scheduler": "karras"}, "set the scheduler to 'simple'"),
        ({"scheduler": "normal"}, "set the scheduler to 'simple'"),
        ({"scheduler": "beta"}, "set the scheduler to 'simple'"),
        ({"model": "model"}, "put PixArt-δ LCM Sampling before KSampler"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_settings_that_cannot_work_are_named(comfy_server, family, options, words):
    shown = warnings_of(comfy_server, ksampler(steps=4, seed=hash(str(options)) % 10**6, **options))
    assert any(words in text for text in shown), shown


@pytest.mark.parametrize("options", [{}, {"steps": 2}, {"steps": 7}, {"denoise": 0.5}], ids=str)
def test_settings_that_work_are_not(comfy_server, family, options):
    assert warnings_of(comfy_server, ksampler(**{"steps": 4, "seed": hash(str(options)) % 10**6} | options)) == []


def test_a_base_model_in_four_steps_is_named(comfy_server, family):
    save_pixart(
        pc.load_pixart(family / "transformer"),
        comfy_server.base / "models" / "diffusion_models" / "base.safetensors",
        metadata={"distilled": False},
    )
    base = {"model": node("PixArtDeltaModelLoader", model_name="base.safetensors", dtype="default")}
    assert any("not a distilled" in text for text in warnings_of(comfy_server, base))
    settings = {"cfg": 4.5, "sampler_name": "dpmpp_2m", "scheduler": "sgm_uniform"}
    few = warnings_of(comfy_server, base | ksampler("model", steps=4, **settings))
    assert any("too few" in text for text in few)
    assert warnings_of(comfy_server, base | ksampler("model", steps=14, **settings)) == []


@pytest.mark.parametrize(("command", "is_named"), [("finetune", True), ("lcm-lora", False), (None, False)])
def test_a_lora_may_make_an_lcm_of_a_base_model_but_not_a_fine_tuned_one(comfy_server, family, lora, command, is_named):
    models = comfy_server.base / "models"
    plain = pc.load_pixart(family / "transformer")
    save_pixart(plain, models / "diffusion_models" / "base.safetensors", metadata={"distilled": False})
    made = {"training": {"command": command}} if command else {}
    save_lora(load_lora(lora), models / "loras" / f"{command}.safetensors", metadata=made)
    values = {"model": ["plain", 0], "lora_name": f"{command}.safetensors", "strength": 1.0}
    changes = {
        "plain": node("PixArtDeltaModelLoader", model_name="base.safetensors", dtype="default"),
        "model": node("PixArtDeltaLoraLoader", **values),
    }
    assert any("not a distilled" in text for text in warnings_of(comfy_server, changes)) == is_named


def test_a_size_far_from_training_is_named(comfy_server, family):
    size = node("PixArtDeltaResolution", width=512, height=512, bins="off", batch_size=1)
    shown = warnings_of(comfy_server, ksampler(steps=1) | {"size": size})
    assert any("512 × 512 px is far from" in text for text in shown), shown


def test_ksampler_ends_with_an_error_and_not_a_black_picture_where_a_dtype_overflows(comfy_server, family):
    """float32 here, as ComfyUI casts float16 to it on a CPU."""
    model = pc.load_pixart(family / "transformer", torch.float32)
    model.blocks[0].mlp.fc2.weight.data.fill_(3e38)
    save_pixart(model, comfy_server.base / "models" / "diffusion_models" / "large.safetensors")
    large = {"model": node("PixArtDeltaModelLoader", model_name="large.safetensors", dtype="float32")}
    result = comfy_server.prompt(text_to_image(changes=large | ksampler(steps=1)))
    assert "its dtype overflows (try bfloat16 or float32)" in str(result.errors)
    assert not result.images


def warnings_of(comfy_server, changes: dict) -> list[str]:
    """The warning lines that a run adds to ComfyUI's log."""
    before = len(comfy_server.log)
    result = comfy_server.prompt(text_to_image(seed=np.random.default_rng().integers(10**9).item(), changes=changes))
    assert not result.errors, result.errors
    return [line for line in comfy_server.log[before:].splitlines() if "Warning: " in line]
