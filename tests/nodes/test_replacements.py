"""Graphs made with ComfyUI_ExtraModels' nodes run on ours, and ComfyUI's editor is told how to exchange them."""

from __future__ import annotations

import io
import shutil

import pytest
from PIL import Image

from tests.fixtures_nano import make_nano_folder
from tests.nodes.graphs import node, text_to_image

OLD = {
    "PixArtCheckpointLoader",
    "PixArtCheckpointLoaderSimple",
    "T5v11Loader",
    "T5TextEncode",
    "PixArtT5TextEncode",
    "PixArtLoraLoader",
    "PixArtResolutionSelect",
}


@pytest.fixture(scope="module")
def family(comfy_server):
    family = make_nano_folder(comfy_server.base / "models" / "pixart_delta" / "nano")
    (comfy_server.base / "models" / "checkpoints").mkdir(exist_ok=True)
    shutil.copy(
        family / "base" / "pixart_nano_base.safetensors",
        comfy_server.base / "models" / "checkpoints" / "extra.safetensors",
    )
    return family


def test_the_editor_is_told(comfy_server):
    """Every exchange names inputs and outputs that our nodes have."""
    told, schemas = comfy_server.get("/node_replacements"), comfy_server.object_info()
    assert OLD <= set(told)
    for name in OLD:
        (exchange,) = told[name]
        new = schemas[exchange["new_node_id"]]
        inputs = {key for part in new["input"].values() for key in part}
        assert {entry["new_id"] for entry in exchange["input_mapping"]} <= inputs
        required = set(new["input"]["required"])
        assert exchange["output_mapping"], "the editor connects nothing else"
        assert required <= {entry["new_id"] for entry in exchange["input_mapping"]}, "a graph by the API lacks nothing"
        assert all(entry["new_idx"] < len(new["output"]) for entry in exchange["output_mapping"])


def test_a_graph_of_theirs_runs(comfy_server, family):
    t5 = {"t5v11_ver": "xxl", "path_type": "file", "device": "cpu", "dtype": "default"}
    changes = {
        "model": node("PixArtCheckpointLoader", ckpt_name="extra.safetensors", model="PixArtMS_XL_2"),
        "clip": node("T5v11Loader", t5v11_name="nano/text_encoder/", **t5),
        "text": node("T5TextEncode", text="a red mountain at dawn", T5=["clip", 0]),
        "size": node("PixArtResolutionSelect", model="PixArtMS_XL_2", ratio="2.00"),
        "latent": node("EmptyLatentImage", width=["size", 0], height=["size", 1], batch_size=1),
    }
    graph = text_to_image(changes=changes, steps=1)
    graph["sample"]["inputs"]["latent_image"] = ["latent", 0]
    # Two of theirs in a row: ComfyUI exchanges in the order of a set, which differs from one server to the next, and
    # each of these pairs fails in half of the orders if the outputs of the first are renumbered after the second.
    for index in range(8):
        graph[f"clip_{index}"] = node("T5v11Loader", t5v11_name="nano/text_encoder/", **t5)
        graph[f"text_{index}"] = node("T5TextEncode", text="nothing asks for it", T5=[f"clip_{index}", 0])
    for entry in graph.values():
        entry["_meta"] = {"title": entry["class_type"]}  # as the editor sends it; ComfyUI's exchange reads it
    result = comfy_server.prompt(graph)
    assert result.errors == []
    assert Image.open(io.BytesIO(result.images[0])).size == (1408, 704)
