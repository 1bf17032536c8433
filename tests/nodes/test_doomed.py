"""A training that could only fail is refused in the browser, at its node, with what is wrong; there is no job of it."""

from __future__ import annotations

import json

import pytest

from tests.nodes.panel import READY, jobs, keep

pytestmark = pytest.mark.host
BASE = "bundled/nano (base)"
DESCRIPTION = {
    "kind": "pixart_delta_features",
    "version": 2,
    "scaling_factor": 1.0,
    "caption_channels": 64,
    "max_tokens": 40,
    "hints": "",
    "shards": [{"name": "128x128_0.tar", "bucket": [128, 128], "count": 20, "bytes": 1, "sha256": "0" * 64}],
}
"""Of a dataset without hints."""
DOOMED = {
    "base": ("TrainLCMLora", {"base": "bundled/nano (student)"}, "has no learned null caption"),
    "hints": ("TrainControlNet", {"more_settings": "copy_blocks=1"}, "was prepared without hints"),
    "memory": ("TrainLCD", {"batch_size": 1_000_000, "recipe": "none"}, "out of memory with batch_size=1000000"),
    "disk": ("FineTune", {"more_settings": "keep_checkpoints=1000000", "recipe": "none"}, "are free"),
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


@pytest.fixture(scope="module")
def page(panel_server, open_page):
    data = panel_server.base / "output" / "doomed"
    data.mkdir(parents=True)
    (data / "dataset.json").write_text(json.dumps(DESCRIPTION))
    (panel_server.base / "input" / "empty").mkdir()
    page = open_page(panel_server, 1366, 900, timeout=120_000)
    page.wait_for_function(READY)
    yield page
    page.close()


@pytest.mark.parametrize("name", DOOMED)
def test_it_is_refused_at_its_node(page, panel_server, name):
    kind, changed, problem = DOOMED[name]
    values = (
        {} if kind in ("Dataset", "PromptDataset") else {"base": BASE, "dataset": "doomed", "name": f"doomed {name}"}
    )
    page.evaluate(RUN, [f"PixArtDelta{kind}", values | changed])
    page.wait_for_function("() => window.refused")
    refused = page.evaluate("() => window.refused")
    assert refused["node_type"] == f"PixArtDelta{kind}" and problem in refused["exception_message"]
    page.wait_for_timeout(1000)
    keep(page, f"doomed_{name}")
    assert f"doomed {name}" not in [job["name"] for job in jobs(panel_server)]
    page.keyboard.press("Escape")
