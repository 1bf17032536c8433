"""Nodes that go on showing a job while it runs (web/live/follow.mjs), in a page of their own."""

from __future__ import annotations

import pytest

from tests.nodes.panel import change, open_panel, state_of
from tests.nodes.test_panel_jobs import made  # noqa: F401
from tests.nodes.test_panel_pictures import draw, running  # noqa: F401

pytestmark = pytest.mark.host
SHOW = """() => {
    const { graph, api } = window.app;
    graph.clear();
    const status = LiteGraph.createNode("PixArtDeltaTrainingStatus");
    const shown = LiteGraph.createNode("PreviewImage");
    for (const node of [status, shown]) graph.add(node);
    status.widgets.find(widget => widget.name === "job").value = "followed";
    status.connect(1, shown, 0);
    window.followed = [];
    api.addEventListener("executed", ({ detail }) => {
        if (String(detail.node) === String(shown.id)) window.followed.push(detail.output.images[0]);
    });
    window.statusNode = status;
}"""
LINKED = """() => {
    const { graph, api } = window.app;
    graph.clear();
    const [train, status, shown] = ["PixArtDeltaTrainLCD", "PixArtDeltaTrainingStatus", "PreviewImage"].map(
        type => LiteGraph.createNode(type));
    for (const node of [train, status, shown]) graph.add(node);
    train.connect(0, status, status.inputs.findIndex(input => input.name === "job"));
    status.connect(1, shown, 0);
    window.started = 0;
    api.addEventListener("execution_start", () => { window.started += 1; });
}"""
SETTLED = 3000
"""Milliseconds after which a page would have sent what it should not send."""


@pytest.fixture
def page(panel_server, open_page):
    page = open_page(panel_server, 1500, 1000)
    open_panel(page)
    yield page
    assert page.errors == []
    page.evaluate("() => window.app.graph.clear()")
    page.close()


def test_what_shows_a_running_job_is_drawn_anew(page, running):  # noqa: F811
    """A status node's previews follow the samples of its job; switched off they stay as they are."""
    folder = running("followed", shown=lambda folder: draw(folder, 1))
    state_of(page, "followed", "running")
    page.evaluate(SHOW)
    page.wait_for_timeout(SETTLED)  # what there was before it was looked at is not news
    assert page.evaluate("() => window.followed.length") == 0
    draw(folder, 2)
    page.wait_for_function("() => window.followed.length === 1")
    page.evaluate("() => { window.statusNode.widgets.find(widget => widget.name === 'follow').value = false; }")
    draw(folder, 3)
    page.wait_for_timeout(SETTLED)
    assert page.evaluate("() => window.followed.length") == 1


def test_what_is_linked_to_a_training_that_was_not_started_follows_no_other(page, running):  # noqa: F811
    """As in a template that is opened while another training runs."""
    folder = running("another")
    change(folder, created=2e9)  # the newest, which a node without a link would choose
    draw(folder, 1)
    state_of(page, "another", "running")
    page.evaluate(LINKED)
    page.wait_for_timeout(SETTLED)
    draw(folder, 2)
    page.wait_for_timeout(2 * SETTLED)
    assert page.evaluate("() => window.started") == 0
