"""A training that could only fail is refused in the browser, at its node, with what is wrong; there is no job of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.nodes.panel import LACKING, READY, jobs, keep
from tests.nodes.setup_jobs import BASE, DESCRIPTION

pytestmark = pytest.mark.host
ROOT = Path(__file__).resolve().parents[2]
_MANY = {"more_settings": "keep_checkpoints=1000000", "steps": 1_000_000, "checkpoint_every": 10}
DOOMED = {
    "base": ("TrainLCMLora", {"base": "a_control.safetensors"}, "but a PixArt ControlNet without its base model"),
    "distilled": ("TrainLCD", {"base": "bundled/nano (student)"}, "choose the base model that it was made from"),
    "hints": ("TrainControlNet", {"copy_blocks": 1}, "was prepared without hints"),
    "memory": ("TrainLCD", {"batch_size": 1_000_000, "recipe": "none"}, "out of memory with batch_size=1000000"),
    "disk": ("FineTune", {**_MANY, "recipe": "none"}, "are free"),
    "package": ("TrainLCD", {"optimizer": LACKING, "recipe": "none"}, f"{LACKING} is not installed"),
    "recipe": ("TrainLCD", {"recipe": "8gb"}, "Train an LCM-LoRA instead"),
    "pictures": ("Dataset", {"path": "empty"}, "empty holds no pictures"),
    "prompts": ("PromptDataset", {"prompts": " "}, "prompts is empty"),
}
RUN = """async ([type, values]) => {
    window.refused = null;
    window.app.api.addEventListener("execution_error", ({ detail }) => (window.refused = detail), { once: true });
    window.app.graph.clear();
    const node = window.LiteGraph.createNode(type);
    window.app.graph.add(node);
    node.pos = [300, 120];
    for (const [name, value] of Object.entries(values)) node.widgets.find(each => each.name === name).value = value;
    await window.app.queuePrompt(0);
}"""

SAID = """() => {
    const [node] = window.app.graph._nodes;
    return node.widgets.find(each => each.name === "pixart_delta_said")?.element.textContent;
}"""


@pytest.fixture(scope="module")
def page(panel_server, open_page):
    data = panel_server.base / "output" / "doomed"
    data.mkdir(parents=True)
    (data / "dataset.json").write_text(json.dumps(DESCRIPTION))
    (panel_server.base / "input" / "empty").mkdir()
    control = panel_server.base / "models" / "diffusion_models" / "a_control.safetensors"
    control.parent.mkdir(parents=True, exist_ok=True)
    control.symlink_to(ROOT / "models" / "nano" / "controlnet" / "diffusion_pytorch_model.safetensors")
    page = open_page(panel_server, 1366, 900)
    page.wait_for_function(READY)
    yield page
    page.close()
    control.unlink()


@pytest.mark.parametrize("name", DOOMED)
def test_it_is_refused_at_its_node(page, panel_server, name):
    kind, changed, problem = DOOMED[name]
    # A node with the number of one before gets that one's values from the editor: so all that differ are set.
    values = {"more_settings": ""}
    if "Dataset" not in kind:
        values |= {"base": BASE, "dataset": "doomed", "name": f"doomed {name}", "batch_size": 16, "recipe": "auto"}
        values |= {"optimizer": "adamw"}
    page.evaluate(RUN, [f"PixArtDelta{kind}", values | changed])
    page.wait_for_function("() => window.refused")
    refused = page.evaluate("() => window.refused")
    assert refused["node_type"] == f"PixArtDelta{kind}" and problem in refused["exception_message"]
    assert problem in page.wait_for_function(SAID).json_value(), "the reason stands under its node"
    page.wait_for_timeout(1000)
    keep(page, f"doomed_{name}")
    assert f"doomed {name}" not in [job["name"] for job in jobs(panel_server)]
    page.keyboard.press("Escape")
