"""Control in a real ComfyUI: our nodes, stock nodes and `pc.Pipeline` make the same pictures; HED, files, errors."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import pixart_core as pc
from pixart_core.checkpoint import merge_controlnet
from pixart_core.delta import Delta, Lora, save_lora
from pixart_core.hed import HED, detect
from pixart_core.identify import inspect_file
from tests.fixtures_nano import make_nano_folder
from tests.nodes.graphs import PROMPT, difference, ksampler, node, pictures, text_to_image

INSIDE = "inside_control.py"


def test_inside(run_inside, inside_check):
    found = run_inside(INSIDE, lambda folder: make_nano_folder(folder / "nano", depth=4))
    assert found[inside_check] == "", found[inside_check]


@pytest.fixture(scope="session")
def family(comfy_server):
    """A family with a ControlNet, the joint file of both, hints, and HED weights where a download would be."""
    models = comfy_server.base / "models"
    family = make_nano_folder(models / "pixart_delta" / "controlled", controlnet=True, depth=3)
    (models / "controlnet").mkdir(exist_ok=True)
    merge_controlnet(family / "transformer", family / "controlnet", models / "controlnet" / "joint.safetensors")
    shutil.copy(family / "vae" / "diffusion_pytorch_model.safetensors", models / "controlnet" / "a_vae.safetensors")
    torch.manual_seed(0)
    save_file(HED((4, 8, 8, 8, 8)).state_dict(), models / "pixart_delta" / "hed_tiny.safetensors")
    for name, (width, height) in {"hint": (128, 128), "wide_hint": (160, 96)}.items():
        blobs = np.random.default_rng(1).integers(0, 2, (height // 8, width // 8)).astype(np.uint8) * 255
        Image.fromarray(blobs).resize((width, height)).convert("RGB").save(comfy_server.base / "input" / f"{name}.png")
    return family


@pytest.fixture(scope="session")
def pipeline(family):
    return pc.Pipeline.from_pretrained(family)


def with_control(apply: str = "ours", picture: str = "hint", sampler: dict | None = None, **settings) -> dict:
    """Changes for `text_to_image` that put one control between text and sampler."""
    values = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0} | settings
    links = {
        "positive": ["text", 0],
        "negative": ["text", 1],
        "control_net": ["control", 0],
        "image": ["hint", 0],
        "vae": ["vae", 0],
    }
    applied = (
        node("PixArtDeltaApplyControlNet", **links, **{"resize": "crop"} | values)
        if apply == "ours"
        else node("ControlNetApplyAdvanced", **links, **values)
    )
    sampling = sampler or {"sample": text_to_image()["sample"]}
    inputs = sampling["sample"]["inputs"]
    inputs["positive"] = ["apply", 0]
    if "negative" in inputs:
        inputs["negative"] = ["apply", 1]
    return sampling | {
        "control": node("PixArtDeltaControlNetLoader", control_net_name="controlled/controlnet/", dtype="default"),
        "hint": node("LoadImage", image=f"{picture}.png"),
        "apply": applied,
    }


@pytest.fixture(scope="session")
def run(comfy_server, family):
    return lambda changes=None, **options: pictures(
        comfy_server.prompt(text_to_image("controlled", changes=changes, **options))
    )


@pytest.mark.parametrize("options", [{}, {"batch": 3}, {"width": 160, "height": 96}], ids=str)
def test_lcm_pictures_are_the_pipelines(run, pipeline, comfy_server, options):
    picture = "wide_hint" if "width" in options else "hint"
    hint = Image.open(comfy_server.base / "input" / f"{picture}.png")
    theirs = pipeline(PROMPT, hint=hint, **{"steps": 4, "seed": 3, "width": 128, "height": 128} | options)
    ours = run(with_control(picture=picture), **options)
    assert len(ours) == len(theirs) == options.get("batch", 1)
    for one, other in zip(ours, theirs, strict=True):
        assert difference(one, other) < 1
    assert difference(ours[0], run(**options)[0]) > 1, "control must show"


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("options", [{}, {"batch": 3}, {"width": 160, "height": 96}], ids=str)
def test_base_pictures_are_the_pipelines_and_stock_apply_gives_the_same(run, pipeline, comfy_server, guidance, options):
    picture = "wide_hint" if "width" in options else "hint"
    hint = Image.open(comfy_server.base / "input" / f"{picture}.png")
    theirs = pipeline(
        PROMPT,
        hint=hint,
        sampler="dpm",
        guidance=guidance,
        **{"steps": 14, "seed": 3, "width": 128, "height": 128} | options,
    )
    settings = {"steps": 14, "cfg": guidance, "sampler_name": "dpmpp_2m", "scheduler": "sgm_uniform"}
    ours, stock = (
        run(with_control(apply, picture, ksampler("model", **settings)), **options) for apply in ("ours", "stock")
    )
    for one, other, third in zip(ours, theirs, stock, strict=True):
        assert difference(one, other) < 1
        assert difference(one, third) == 0


PARTS = {
    "half": {"strength": 0.5},
    "first half": {"end_percent": 0.45},
    "second half": {"start_percent": 0.45},
    "middle, strong": {"strength": 1.5, "start_percent": 0.1, "end_percent": 0.6},
}
"""Settings of the apply nodes; the pipeline's `Hint` calls them strength, start and end."""


@pytest.mark.parametrize("settings", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("kind", ["lcm", "cfg 1", "cfg 4.5"])
def test_strength_start_and_end_are_the_pipelines(run, pipeline, comfy_server, kind, settings):
    hint = Image.open(comfy_server.base / "input" / "hint.png")
    options = {
        "hint": pc.Hint(
            hint, settings.get("strength", 1.0), settings.get("start_percent", 0.0), settings.get("end_percent", 1.0)
        ),
        "seed": 3,
        "width": 128,
        "height": 128,
    }
    if kind == "lcm":
        expected = pipeline(PROMPT, **options)[0]
        assert difference(run(with_control(**settings))[0], expected) < 1
        return
    guidance = float(kind.removeprefix("cfg "))
    expected = pipeline(PROMPT, sampler="dpm", guidance=guidance, **options)[0]
    sampler = ksampler("model", steps=14, cfg=guidance, sampler_name="dpmpp_2m", scheduler="sgm_uniform")
    ours, stock = (run(with_control(apply, sampler=sampler, **settings))[0] for apply in ("ours", "stock"))
    assert difference(ours, expected) < 1 and difference(ours, stock) == 0


def test_two_chained_controls_add_up_to_the_pipelines_one(run, pipeline, comfy_server):
    """Strengths 0.6 and 0.4 of the same hint, in LCM and with guidance."""
    hint = Image.open(comfy_server.base / "input" / "hint.png")
    guided = ksampler("model", steps=14, cfg=4.5, sampler_name="dpmpp_2m", scheduler="sgm_uniform")
    for sampler, options in ((None, {}), (guided, {"sampler": "dpm"})):
        changes = with_control(sampler=sampler, strength=0.6)
        changes["second"] = with_control(strength=0.4)["apply"]
        changes["second"]["inputs"] |= {"positive": ["apply", 0], "negative": ["apply", 1]}
        for side, slot in (("positive", 0), ("negative", 1)):
            if side in changes["sample"]["inputs"]:
                changes["sample"]["inputs"][side] = ["second", slot]
        expected = pipeline(PROMPT, hint=hint, seed=3, width=128, height=128, **options)[0]
        assert difference(run(changes)[0], expected) < 1


def test_a_hint_for_each_picture_of_a_batch(run, pipeline, comfy_server):
    names = ("hint", "other_hint", "hint")
    folder = comfy_server.base / "input"
    Image.open(folder / "hint.png").rotate(90).save(folder / "other_hint.png")
    changes = with_control()
    changes |= {name: node("LoadImage", image=f"{name}.png") for name in ("hint", "other_hint")}
    changes["two"] = node("ImageBatch", image1=["hint", 0], image2=["other_hint", 0])
    changes["three"] = node("ImageBatch", image1=["two", 0], image2=["hint", 0])
    changes["apply"]["inputs"]["image"] = ["three", 0]
    hints = np.stack([np.asarray(Image.open(folder / f"{name}.png"), dtype=np.float32) / 255 for name in names])
    theirs = pipeline(PROMPT, hint=torch.from_numpy(hints), batch=3, seed=3, width=128, height=128)
    for one, other in zip(run(changes, batch=3), theirs, strict=True):
        assert difference(one, other) < 1


def test_a_lora_on_the_base_reaches_the_control(run, pipeline, family, comfy_server):
    """As the pipeline on a transformer with the LoRA merged."""
    (comfy_server.base / "models" / "loras").mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    up, down = (torch.randn(shape, generator=generator) / 4 for shape in ((144, 4), (4, 48)))
    lora = Lora("shown", tuple(Delta(f"blocks.{block}.attn.qkv.weight", 0, 1, up, down, 4.0) for block in range(2)))
    save_lora(lora, comfy_server.base / "models" / "loras" / "shown.safetensors")
    changes = with_control()
    changes["with lora"] = node(
        "PixArtDeltaLoraLoader", model=["model", 0], lora_name="shown.safetensors", strength=1.0
    )
    changes["sample"]["inputs"]["model"] = ["with lora", 0]
    ours = run(changes)[0]
    theirs = pc.Pipeline.from_pretrained(family)
    pc.apply_lora(theirs.transformer, lora)
    hint = Image.open(comfy_server.base / "input" / "hint.png")
    assert difference(ours, theirs(PROMPT, hint=hint, seed=3, width=128, height=128)[0]) < 1
    assert difference(ours, run(with_control())[0]) > 1


def test_after_unloading_the_second_run_is_the_same(run, comfy_server):
    """What ComfyUI's menu entry “Free model and node cache” does."""
    first = run(with_control())[0]
    comfy_server.post("/free", {"unload_models": True, "free_memory": True})
    again = comfy_server.prompt(text_to_image("controlled", changes=with_control()))
    assert {"sample", "apply", "control"} <= again.node_seconds.keys(), "it must have run, not come from the cache"
    assert difference(pictures(again)[0], first) == 0


def test_strength_0_is_no_control(run):
    assert difference(run(with_control(strength=0.0))[0], run()[0]) == 0


def test_chained_controls_and_percentages_equal_the_stock_nodes(run):
    made = []
    for apply in ("ours", "stock"):
        changes = with_control(apply, strength=0.6, end_percent=0.7)
        second = with_control(apply, strength=0.8, start_percent=0.3)["apply"]
        second["inputs"] |= {"positive": ["apply", 0], "negative": ["apply", 1]}
        changes["second"] = second
        changes["sample"]["inputs"]["positive"] = ["second", 0]
        made.append(run(changes)[0])
    assert difference(*made) == 0
    assert difference(made[0], run(with_control(strength=0.6, end_percent=0.7))[0]) > 0.01


def test_joint_file_gives_both(run):
    changes = with_control()
    expected = run(changes)[0]
    joint = node("PixArtDeltaControlNetLoader", control_net_name="joint.safetensors", dtype="default")
    sample = changes["sample"]
    sample["inputs"]["model"] = ["control", 1]
    assert difference(run(changes | {"control": joint})[0], expected) == 0


def test_hed_node_gives_the_cores_map_and_what_the_model_sees(run, comfy_server):
    changes = {
        "hint": node("LoadImage", image="wide_hint.png"),
        "hed": node(
            "PixArtDeltaHEDPreprocessor",
            image=["hint", 0],
            hed_name="hed_tiny.safetensors",
            safe=False,
            scribble=False,
            resolution=0,
            dtype="float32",
            vae=["vae", 0],
        ),
        "save": node("SaveImage", images=["hed", 0], filename_prefix="test"),
    }
    found = run(changes)[0]
    torch.manual_seed(0)
    image = np.asarray(Image.open(comfy_server.base / "input" / "wide_hint.png"), dtype=np.float32) / 255
    expected = detect(HED((4, 8, 8, 8, 8)), torch.from_numpy(image)[None])[0].expand(-1, -1, 3) * 255
    assert found.shape == (96, 160, 3) and np.abs(found - expected.numpy()).max() <= 1
    changes["save"]["inputs"]["images"] = ["hed", 1]
    assert run(changes)[0].shape == (96, 160, 3)


def test_split_and_merge(comfy_server, family):
    graph = {
        "split": node(
            "PixArtDeltaSplitControlNet",
            control_net_name="joint.safetensors",
            filename_prefix="apart/nano",
            dtype="as stored",
        ),
        "merge": node(
            "PixArtDeltaMergeControlNet",
            model_name="controlled/transformer/",
            control_net_name="controlled/controlnet/",
            filename_prefix="apart/both",
            dtype="float16",
        ),
    }
    result = comfy_server.prompt(graph)
    assert not result.errors, result.errors
    made = {path.name: inspect_file(path) for path in (comfy_server.base / "output" / "apart").iterdir()}
    assert {name: info.kind for name, info in made.items()} == {
        "nano_00001_base.safetensors": "pixart",
        "nano_00001_controlnet.safetensors": "controlnet",
        "both_00001_joint.safetensors": "pixart+controlnet",
    }
    assert made["both_00001_joint.safetensors"].dtype == torch.float16


def error_of(comfy_server, changes: dict) -> str:
    """The only error of a graph; the server must go on working."""
    result = comfy_server.prompt(text_to_image("controlled", changes=changes))
    assert len(result.errors) == 1 and not result.images, result.errors
    assert len(pictures(comfy_server.prompt(text_to_image("controlled", changes=with_control())))) == 1
    return result.errors[0]


def test_bad_inputs(comfy_server, family):
    loader = {"control": node("PixArtDeltaControlNetLoader", control_net_name="a_vae.safetensors", dtype="default")}
    assert "not a PixArt ControlNet but an autoencoder" in error_of(comfy_server, with_control() | loader)
    assert "swap them" in error_of(comfy_server, with_control(start_percent=0.9, end_percent=0.1))
    without = with_control("stock")
    del without["apply"]["inputs"]["vae"]
    assert "connect the vae input" in error_of(comfy_server, without)


def test_a_control_only_file_has_no_model(comfy_server, family):
    """ComfyUI shows what blocked a node as an error of it, but does not keep it in the history."""
    changes = with_control()
    changes["sample"]["inputs"]["model"] = ["control", 1]
    result = comfy_server.prompt(text_to_image("controlled", changes=changes))
    messages = [data["exception_message"] for _, kind, data in result.events if kind == "execution_error"]
    assert not result.images and len(messages) == 1
    assert "holds a ControlNet alone: take the MODEL from PixArt-δ Model Loader" in messages[0]


def test_missing_hed_weights_say_what_to_download(comfy_server, family):
    changes = with_control() | {
        "hed": node(
            "PixArtDeltaHEDPreprocessor",
            image=["hint", 0],
            hed_name="ControlNetHED.pth",
            safe=False,
            scribble=False,
            resolution=0,
            dtype="float32",
        )
    }
    changes["apply"]["inputs"]["image"] = ["hed", 0]
    error = error_of(comfy_server, changes)
    assert "lllyasviel/Annotators" in error
    assert "models/pixart_delta" in error
    assert "(node hed)" in error
