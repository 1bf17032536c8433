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


@pytest.fixture(scope="session")
def page(comfy_server, open_page):
    comfy_server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Release.Status": "what's new seen"})
    page = open_page(comfy_server, 1900, 1000, timeout=300_000)
    page.wait_for_function("() => window.app && window.app.extensionManager && window.app.graph")
    yield page
    page.close()


@pytest.mark.parametrize("name", WORKFLOWS)
def test_opens_without_missing_nodes_and_gives_the_graph_that_we_test(comfy_server, page, name, tmp_path):
    workflow = load_workflow(ROOT / "workflows" / f"{name}.json")
    opened = page.evaluate(OPEN, workflow)
    assert opened["missing"] == [] and page.errors == []
    ours = to_api(workflow, comfy_server.object_info())
    theirs = {node_id: (node["class_type"], node["inputs"]) for node_id, node in opened["output"].items()}
    assert theirs == {node_id: (node["class_type"], node["inputs"]) for node_id, node in ours.items()}
    page.screenshot(path=tmp_path / f"{name}.png")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_saved_as_the_editor_saves_it(page, name):
    """Every widget has the value that the file gives it: nothing shifted by a changed schema."""
    workflow = load_workflow(ROOT / "workflows" / f"{name}.json")
    saved = {node["id"]: node for node in page.evaluate(OPEN, workflow)["workflow"]["nodes"]}
    for node in workflow["nodes"]:
        assert saved[node["id"]]["widgets_values"] == node["widgets_values"], node["type"]
