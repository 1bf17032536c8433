"""The bundled workflows: sound files, listed by ComfyUI, and the pictures that `pc.Pipeline` makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pixart_core as pc
from tests.fixtures_nano import make_nano_folder
from tests.nodes.graphs import difference, pictures
from tools.workflow_api import find_node, load_workflow, to_api

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "models" / "nano"
NAMES = ("text_to_image_4_steps", "text_to_image_8bit_low_vram", "base_model_14_steps")
FRONTEND_ONLY = {"MarkdownNote", "Note", "Reroute"}


def test_the_three_of_the_first_release_are_there():
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
    from PIL import Image

    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG" and min(picture.size) >= 200


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_a_note_says_what_to_download_and_where_it_goes(path):
    notes = [node["widgets_values"][0] for node in load_workflow(path)["nodes"] if node["type"] == "MarkdownNote"]
    assert any("huggingface.co" in note and "models/" in note for note in notes)


@pytest.fixture(scope="session")
def family(comfy_server):
    """The bundled family, or a random one in its place while a checkout has none."""
    return NANO if (NANO / "model_index.json").exists() else make_nano_folder(
        comfy_server.base / "models" / "pixart_delta" / "nano")


def api_graph(comfy_server, family, name: str) -> dict:
    graph = to_api(load_workflow(ROOT / "workflows" / f"{name}.json"), comfy_server.object_info())
    if family != NANO:
        stand_in = {"bundled/nano (student)": "nano/transformer/", "bundled/nano (base)": "nano/transformer/"}
        for node in graph.values():
            for key, value in node["inputs"].items():
                if key == "text_encoder_name":
                    node["inputs"][key] = "nano/text_encoder/"
                elif key == "vae_name":
                    node["inputs"][key] = "nano/vae/"
                elif key == "model_name":
                    node["inputs"][key] = stand_in[value]
    return graph


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_the_pipelines(comfy_server, family, name):
    graph = api_graph(comfy_server, family, name)
    ours = pictures(comfy_server.prompt(graph))
    text, size = (graph[find_node(graph, f"PixArtDelta{kind}")]["inputs"] for kind in ("TextEncode", "Resolution"))
    base = "base" in name
    sampler = graph[find_node(graph, "KSampler" if base else "PixArtDeltaLCMSampler")]["inputs"]
    transformer = NANO / "base" / "pixart_nano_base.safetensors" if base and family == NANO else None
    pipeline = pc.Pipeline.from_pretrained(family, transformer=transformer)
    theirs = pipeline(text["prompt"], steps=sampler["steps"], seed=sampler["seed"], width=size["width"],
                      height=size["height"], sampler="dpm" if base else "lcm", guidance=sampler.get("cfg"))
    limit = 4 if "8bit" in name else 1  # the pipeline's text encoder is not quantised
    assert len(ours) == 1 and difference(ours[0], theirs[0]) < limit


@pytest.mark.parametrize("name", NAMES)
def test_no_warnings_as_shipped(comfy_server, family, name):
    before = len(comfy_server.log)
    graph = api_graph(comfy_server, family, name)
    for node in graph.values():
        if "seed" in node["inputs"]:
            node["inputs"]["seed"] += 1  # not from ComfyUI's cache
    assert pictures(comfy_server.prompt(graph))
    warnings = [line for line in comfy_server.log[before:].splitlines() if "Warning: " in line]
    assert warnings == [] or family != NANO and all("not a distilled" in line or "distilled (LCM)" in line
                                                    for line in warnings)


def test_comfyui_lists_them_as_templates(comfy_server):
    templates = comfy_server.get("/workflow_templates")
    listed = next(names for folder, names in templates.items() if "pixart-delta" in folder)
    assert set(NAMES) <= set(listed)
    for name in NAMES:
        assert json.loads(comfy_server.request(f"/api/workflow_templates/pixart-delta/{name}.json"))["nodes"]
