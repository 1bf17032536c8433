"""The bundled workflows: sound files, listed by ComfyUI, and the pictures that `pc.Pipeline` makes."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image

import pixart_core as pc
from pixart_core.hed import HED, detect
from tests.nodes.graphs import difference, pictures
from tools.workflow_api import find_node, load_workflow, to_api

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
CONTROLLED = ("PixArt 14 ControlNet with Edges in 4 Steps", "PixArt 16 ControlNet on the Base Model")
LOW_VRAM, BASE = "PixArt 03 Text to Image under 8 GB", "PixArt 05 Base Model in 14 Steps"
NAMES = ("PixArt 01 Text to Image in 4 Steps", LOW_VRAM, BASE, *CONTROLLED)
RELEASED = "(1024 px)"
"""At the end of a template's name: it is wired for the released weights."""
CALLED_EARLIER = dict(
    zip(
        NAMES,
        (
            "text_to_image_4_steps",
            "text_to_image_8bit_low_vram",
            "base_model_14_steps",
            "hed_controlnet_4_steps",
            "hed_controlnet_base_14_steps",
        ),
        strict=True,
    )
)
EARLIER = ROOT / "tests" / "earlier" / "v87a0225" / "workflows"
FRONTEND_ONLY = {"MarkdownNote", "Note", "Reroute"}


def test_the_first_ones_are_there():
    assert {path.stem for path in (ROOT / "workflows").glob("*.json")} >= set(NAMES)


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_links_join_what_they_say(path):
    workflow = load_workflow(path)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"]) and workflow["last_node_id"] >= max(nodes)
    for link_id, source, output, target, entry, kind in workflow["links"]:
        assert link_id in nodes[source]["outputs"][output]["links"] and nodes[source]["outputs"][output]["type"] == kind
        assert nodes[target]["inputs"][entry]["link"] == link_id and nodes[target]["inputs"][entry]["type"] == kind
    used = [link[0] for link in workflow["links"]]
    named = [i["link"] for node in nodes.values() for i in node.get("inputs", ()) if i.get("link") is not None]
    assert sorted(used) == sorted(named)


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_a_preview_picture_lies_beside_it(path):
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG" and picture.size == (384, 384), "as large as its neighbours in the list"


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_a_titled_note_says_what_it_does(path):
    notes = [node for node in load_workflow(path)["nodes"] if node["type"] == "MarkdownNote"]
    assert notes and all(note["title"] not in ("", "Note") for note in notes)
    assert all((note["color"], note["bgcolor"]) == ("#222", "#000") for note in notes)
    # Its first sentence is a heading: the rest is small at the zoom that the template opens with.
    lead, _, rest = notes[0]["widgets_values"][0].partition("\n\n")
    assert lead.startswith("## ") and len(lead) < 120 and rest


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob(f"*{RELEASED}.json")), ids=lambda path: path.stem)
def test_what_is_not_bundled_is_offered_for_download(path):
    """Every loader's file is in the `models` of its node, as ComfyUI's dialog reads them, and in the note."""
    nodes = load_workflow(path)["nodes"]
    (note,) = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
    loaders = [node for node in nodes if "Loader" in node["type"] or "HEDPreprocessor" in node["type"]]
    assert loaders
    for node in loaders:
        (model,) = node["properties"]["models"]
        assert model["name"] == node["widgets_values"][0] and model["name"].endswith((".safetensors", ".pth"))
        assert model["url"].startswith("https://huggingface.co/") and "/resolve/main/" in model["url"]
        assert f"models/{model['directory']}/" in note and model["name"] in note


@pytest.fixture(scope="module")
def downloads(comfy_server):
    """Files under the names of all that the templates offer to download; taken away at the end."""
    made = []
    for path in (ROOT / "workflows").glob(f"*{RELEASED}.json"):
        for node in load_workflow(path)["nodes"]:
            for model in node["properties"].get("models", ()):
                made.append(comfy_server.base / "models" / model["directory"] / model["name"])
    for file in set(made):
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.name == "ControlNetHED.pth":  # the one list that goes by content
            torch.save(HED((4, 8, 8, 8, 8)).state_dict(), file)
        else:
            file.write_bytes(b"")
    yield
    for file in set(made):
        file.unlink()


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob(f"*{RELEASED}.json")), ids=lambda path: path.stem)
def test_downloaded_under_their_names_no_widget_has_to_be_touched(comfy_server, schemas, downloads, path):
    """ComfyUI accepts the graph as it is; that these stand-ins are empty is found when the first is loaded."""
    graph = to_api(load_workflow(path), schemas)
    if "LoadImage" in {node["class_type"] for node in graph.values()}:
        Image.new("RGB", (64, 64)).save(comfy_server.base / "input" / "example.png")
    result = comfy_server.prompt(graph)
    assert result.prompt_id is not None, result.errors
    assert len(result.errors) == 1 and "Loader" in result.errors[0]


def api_graph(schemas, name: str, folder: Path = ROOT / "workflows") -> dict:
    """Without the previews of what goes in."""
    graph = to_api(load_workflow(folder / f"{name}.json"), schemas)
    return {node_id: node for node_id, node in graph.items() if node["class_type"] != "PreviewImage"}


@pytest.fixture(scope="module")
def shipped(comfy_server, schemas):
    """shipped(name) -> pictures of a template as it is, and the warnings that the log has of it; each is run once."""

    @functools.cache
    def run(name: str):
        before = len(comfy_server.log)
        made = pictures(comfy_server.prompt(api_graph(schemas, name)))
        return made, [line for line in comfy_server.log[before:].splitlines() if "Warning: " in line]

    return run


def of_the_pipeline(graph: dict) -> np.ndarray:
    """What `pc.Pipeline` makes of what a template's nodes ask for, in float32."""

    def inputs(kind: str) -> dict:
        return graph[find_node(graph, kind)]["inputs"]

    family = MODELS / ("nano256" if "256" in inputs("PixArtDeltaModelLoader")["model_name"] else "nano")
    hint = {}
    if any(node["class_type"] == "PixArtDeltaHEDPreprocessor" for node in graph.values()):
        picture = Image.open(family / "examples" / inputs("PixArtDeltaExamplePicture")["picture"])
        pixels = np.asarray(picture, dtype=np.float32) / 255
        hed = pc.load_hed(MODELS / "nano" / "hed" / "hed.safetensors")
        hint["hint"] = detect(hed, torch.from_numpy(pixels)[None])
    text, size = inputs("PixArtDeltaTextEncode"), inputs("PixArtDeltaResolution")
    base = "base" in inputs("PixArtDeltaModelLoader")["model_name"]
    sampler = inputs("KSampler" if base else "PixArtDeltaLCMSampler")
    transformer = family / "base" / "pixart_nano_base.safetensors" if base else None
    pipeline = pc.Pipeline.from_pretrained(family, torch.float32, transformer=transformer)
    (made,) = pipeline(
        text["prompt"],
        steps=sampler["steps"],
        seed=sampler["seed"],
        width=size["width"],
        height=size["height"],
        sampler="dpm" if base else "lcm",
        guidance=sampler.get("cfg"),
        **hint,
    )
    return made


def in_float32(graph: dict) -> dict:
    """Where a CPU is fast in bfloat16, its roundings alone are as large as a limit after 14 steps with guidance."""
    graph[find_node(graph, "PixArtDeltaModelLoader")]["inputs"]["dtype"] = "float32"
    return graph


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_the_pipelines(comfy_server, schemas, name):
    graph = in_float32(api_graph(schemas, name))
    ours = pictures(comfy_server.prompt(graph))
    limit = 4 if name == LOW_VRAM else 1  # the pipeline's text encoder is not quantised
    assert len(ours) == 1 and difference(ours[0], of_the_pipeline(graph)) < limit


@pytest.mark.parametrize("name", NAMES)
def test_no_warnings_as_shipped(shipped, name):
    made, warnings = shipped(name)
    assert made and warnings == []


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_that_was_saved_earlier_still_makes_its_picture(comfy_server, schemas, name):
    """With the family of 128 px, that it was saved with."""
    graph = in_float32(api_graph(schemas, CALLED_EARLIER[name], EARLIER))
    ours = pictures(comfy_server.prompt(graph))
    limit = 4 if name == LOW_VRAM else 1
    assert len(ours) == 1 and difference(ours[0], of_the_pipeline(graph)) < limit


def test_other_workflows_that_were_saved_earlier_are_still_taken(comfy_server, schemas):
    """Those that train, and that use what was trained: ComfyUI finds nothing wrong with them. None comes to run, as one
    that takes long stands before them."""
    names = {path.stem for path in EARLIER.glob("*.json")} - set(CALLED_EARLIER.values())
    assert len(names) == 4
    first = api_graph(schemas, BASE)
    first[find_node(first, "KSampler")]["inputs"] |= {"steps": 5000, "seed": 87}
    running = comfy_server.post("/prompt", {"prompt": first})["prompt_id"]
    try:
        for name in sorted(names):
            graph = to_api(load_workflow(EARLIER / f"{name}.json"), schemas)
            taken = comfy_server.post("/prompt", {"prompt": graph})
            comfy_server.post("/queue", {"delete": [taken["prompt_id"]]})
            assert taken["node_errors"] == {}
        assert comfy_server.get("/queue")["queue_running"][0][1] == running
    finally:
        comfy_server.interrupt()
        while any(comfy_server.get("/queue").values()):
            time.sleep(0.1)


def test_comfyui_lists_them_as_templates(comfy_server):
    templates = comfy_server.get("/workflow_templates")
    listed = next(names for folder, names in templates.items() if "pixart-delta" in folder)
    assert set(NAMES) <= set(listed)
    for name in NAMES:
        assert json.loads(comfy_server.request(f"/api/workflow_templates/pixart-delta/{quote(name)}.json"))["nodes"]
