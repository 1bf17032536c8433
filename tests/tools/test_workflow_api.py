"""tools/workflow_api.py and the demo's summary, on a small made-up workflow; the bundled ones run in workflows_api/."""

from __future__ import annotations

import json

import pytest

from tools.comfy_server import Result
from tools.demo import find_value, stage_seconds
from tools.workflow_api import WorkflowError, find_node, load_workflow, to_api

OBJECT_INFO = {
    "Loader": {"input": {"required": {"name": [["a", "b"], {}]}}, "output": ["MODEL"]},
    "Sampler": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "steps": ["INT", {"default": 4}],
            }
        },
        "output": ["LATENT"],
    },
}


def workflow() -> dict:
    return {
        "nodes": [
            {
                "id": 1,
                "type": "Loader",
                "mode": 0,
                "inputs": [],
                "widgets_values": ["b"],
                "outputs": [{"name": "MODEL", "type": "MODEL", "links": [7]}],
            },
            {
                "id": 2,
                "type": "Sampler",
                "mode": 0,
                "outputs": [],
                "widgets_values": [5, "fixed", 3],
                "inputs": [{"name": "model", "type": "MODEL", "link": 7}],
            },
            {"id": 3, "type": "MarkdownNote", "mode": 0, "inputs": [], "outputs": [], "widgets_values": ["a note"]},
        ],
        "links": [[7, 1, 0, 2, 0, "MODEL"]],
    }


def test_widgets_links_and_notes():
    graph = to_api(workflow(), OBJECT_INFO)
    assert {node_id: node["inputs"] for node_id, node in graph.items()} == {
        "1": {"name": "b"},
        "2": {"model": ["1", 0], "seed": 5, "steps": 3},
    }
    assert find_node(graph, "Sampler") == "2"
    with pytest.raises(WorkflowError, match="no VAEDecode node"):
        find_node(graph, "VAEDecode")


def test_a_node_that_this_comfyui_does_not_have():
    with pytest.raises(WorkflowError, match="does not have the nodes Sampler"):
        to_api(workflow(), {"Loader": OBJECT_INFO["Loader"]})


def test_an_input_that_the_node_no_longer_has():
    changed = workflow()
    changed["nodes"][1]["inputs"].append({"name": "vae", "type": "VAE", "link": 7})
    with pytest.raises(WorkflowError, match=r"Sampler \(node 2\) has no inputs vae"):
        to_api(changed, OBJECT_INFO)


def test_files_that_are_no_workflows(tmp_path):
    (tmp_path / "api.json").write_text(json.dumps({"1": {"class_type": "Loader", "inputs": {}}}))
    (tmp_path / "cut.json").write_text('{"nodes": [')
    for name, message in (("api.json", "UI format"), ("cut.json", "cannot read"), ("missing.json", "cannot read")):
        with pytest.raises(WorkflowError, match=message):
            load_workflow(tmp_path / name)


def test_the_demo_says_where_the_seconds_went():
    graph = {
        "1": {"class_type": "PixArtDeltaModelLoader", "inputs": {"name": "nano"}},
        "2": {"class_type": "PixArtDeltaTextEncode", "inputs": {"prompt": "a lake", "clip": ["1", 0]}},
        "3": {"class_type": "PixArtDeltaLCMSampler", "inputs": {"seed": 0, "model": ["1", 0]}},
        "4": {"class_type": "VAEDecode", "inputs": {}},
        "5": {"class_type": "SaveImage", "inputs": {}},
    }
    result = Result("id", node_seconds={"1": 1.0, "2": 0.5, "3": 2.0, "4": 0.25, "5": 0.125})
    stages = {"load": 1.0, "encode": 0.5, "sample": 2.0, "decode": 0.25, "other": 0.125}
    assert stage_seconds(graph, result) == stages
    assert find_value(graph, "positive", "prompt") == "a lake" and find_value(graph, "seed") == 0
