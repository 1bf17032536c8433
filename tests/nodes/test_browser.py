"""The official frontend opens our workflows without missing nodes, and makes the graphs of them that our tests run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.workflow_api import load_workflow, to_api

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
OPEN = """async (workflow) => {
    await window.app.loadGraphData(workflow);
    const prompt = await window.app.graphToPrompt();
    const nodes = window.app.graph._nodes;
    return {
        output: prompt.output, workflow: prompt.workflow,
        missing: nodes.filter(node => !(node.type in LiteGraph.registered_node_types)).map(node => node.type),
    };
}"""


@pytest.fixture(scope="module")
def page(comfy_server, open_page):
    comfy_server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Release.Status": "what's new seen"})
    page = open_page(comfy_server, 1900, 1000)
    page.wait_for_function("() => window.app && window.app.extensionManager && window.app.graph")
    yield page
    page.close()


@pytest.mark.parametrize("name", WORKFLOWS)
def test_opens_as_the_graph_that_we_test_and_is_saved_as_it_was(schemas, page, name):
    """No node is missing, and every widget has the value that the file gives it: no changed schema has shifted any."""
    workflow = load_workflow(ROOT / "workflows" / f"{name}.json")
    opened = page.evaluate(OPEN, workflow)
    assert opened["missing"] == [] and page.errors == []
    ours = to_api(workflow, schemas)
    theirs = {node_id: (node["class_type"], node["inputs"]) for node_id, node in opened["output"].items()}
    assert theirs == {node_id: (node["class_type"], node["inputs"]) for node_id, node in ours.items()}
    saved = {node["id"]: node for node in opened["workflow"]["nodes"]}
    for node in workflow["nodes"]:
        assert saved[node["id"]]["widgets_values"] == node["widgets_values"], node["type"]


def test_in_the_place_of_another_packs_node_ours_is_whole(page):
    """ComfyUI's exchange puts the new node where the old one was, with its size, and does not tell it."""
    whole = page.evaluate(
        """async () => {
            const graph = window.app.graph;
            const old = LiteGraph.createNode("Note");
            graph.add(old);
            const node = LiteGraph.createNode("PixArtDeltaTextEncode");
            Object.assign(node, { id: old.id, size: [260, 120], graph });
            graph._nodes[graph._nodes.indexOf(old)] = graph._nodes_by_id[old.id] = node;
            await new Promise(resolve => setTimeout(resolve, 1000));
            const fits = node.computeSize().every((side, axis) => node.size[axis] >= side);
            const texts = node.widgets.filter(widget => widget.element).map(widget => widget.element.isConnected);
            graph.remove(node);
            return [fits, texts];
        }"""
    )
    assert whole == [True, [True, True]] and page.errors == []


@pytest.mark.parametrize("path", sorted((ROOT / "subgraphs").glob("*.json")), ids=lambda path: path.stem)
def test_a_blueprint_is_a_node_that_draws(comfy_server, page, path):
    """ComfyUI offers it; opened as the editor puts it into a graph, its inside is a whole graph up to the picture."""
    offered = comfy_server.get("/global_subgraphs")
    assert path.stem in {entry["name"] for entry in offered.values() if "pixart-delta" in entry["info"]["node_pack"]}
    opened = page.evaluate(OPEN, load_workflow(path))
    assert opened["missing"] == [] and page.errors == []
    (node,) = page.evaluate("() => window.app.graph._nodes.map(node => node.widgets.map(widget => widget.name))")
    assert {"prompt", "width", "height", "seed", "model_name"} <= set(node)
    inner = {entry["class_type"]: entry["inputs"] for entry in opened["output"].values()}
    assert {"PixArtDeltaModelLoader", "PixArtDeltaTextEncode", "PixArtDeltaLCMSampler", "VAEDecode"} <= set(inner)
    assert inner["PixArtDeltaTextEncode"]["prompt"] and inner["PixArtDeltaModelLoader"]["model_name"].startswith(
        "bundled/"
    )
    assert len(inner["VAEDecode"]["samples"]) == len(inner["PixArtDeltaLCMSampler"]["positive"]) == 2
