"""Screenshots of ComfyUI's real frontend with this extension, to be looked at; needs Playwright and Chromium.

    python -m tools.screenshots templates FOLDER [--names 11 12 …] [--sizes 1366x768 1500x950] [--graph] [--no-run]
    python -m tools.screenshots panel [FILE]

`templates` opens each template in both canvases, and again after a run (those for the bundled model; a training is not
started). `panel` runs the training of the template PixArt 20 as it is shipped and takes the picture that README shows,
a real one, when it has drawn its samples three times.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .comfy_server import ROOT, ComfyServer, comfyui_trees
from .workflow_api import load_workflow

WORKFLOWS = ROOT / "workflows"
PANEL = ROOT / "web" / "docs" / "images" / "training_panel.png"
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Release.Status": "what's new seen",
    "Comfy.Workflow.Persist": False,
    "Comfy.Execution.PreviewMethod": "latent2rgb",
}
READY = "() => window.app?.extensionManager && window.app.graph && document.querySelector('.pi-chart-line')"
OPEN = """async ([name, workflow]) => {
    await window.app.loadGraphData(workflow, true, true, name, { openSource: "template" });
}"""
SETTLED = 1500
"""Milliseconds after which nothing moves any more."""
PATIENCE = 900
"""Seconds that a run or a training may take."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    templates = kinds.add_parser("templates")
    templates.add_argument("folder", type=Path)
    templates.add_argument("--names", nargs="+", default=[""], help="what their names contain, such as 11")
    templates.add_argument("--sizes", nargs="+", default=["1366x768", "1500x950"])
    templates.add_argument("--graph", action="store_true", help="as graphs, also those that open as apps")
    templates.add_argument("--no-run", action="store_true", help="only as opened")
    panel = kinds.add_parser("panel")
    panel.add_argument("file", type=Path, nargs="?", default=PANEL)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, browser_beside_server(Path(folder)) as (browser, server):
        if options.kind == "panel":
            shoot_panel(browser, server, options.file)
        else:
            shoot_templates(browser, server, options)
    return 0


@contextlib.contextmanager
def browser_beside_server(folder: Path) -> Iterator[tuple]:
    """A headless Chromium and a server of the newest ComfyUI, whose files are in `folder`."""
    from playwright.sync_api import sync_playwright

    with ComfyServer(next(iter(comfyui_trees().values())), folder / "comfyui") as server, sync_playwright() as driver:
        server.post("/settings", SETTINGS)
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser, server
        browser.close()


def open_page(browser, server, width: int, height: int, nodes_2: bool = False):
    """A page of the frontend, cut off from everything else, in the classic canvas or in Nodes 2.0."""
    server.post("/settings", {"Comfy.VueNodes.Enabled": nodes_2})
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(120_000)
    page.route(lambda url: not url.startswith(server.address), lambda route: route.abort())
    page.on("dialog", lambda dialog: dialog.accept())
    page.on("pageerror", lambda error: print("error in the page:", error, flush=True))
    page.goto(server.address)
    page.wait_for_function(READY)
    page.wait_for_timeout(SETTLED)
    return page


def shoot_templates(browser, server, options) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    files = [path for path in sorted(WORKFLOWS.glob("*.json")) if any(name in path.stem for name in options.names)]
    for size in options.sizes:
        for nodes_2 in (False, True):
            page = open_page(browser, server, *map(int, size.split("x")), nodes_2)
            for path in files:
                workflow = load_workflow(path)
                if options.graph:
                    workflow["extra"]["linearMode"] = False
                page.evaluate(OPEN, [path.stem, workflow])
                page.wait_for_timeout(SETTLED)
                name = f"{path.stem} {size} {'nodes_2' if nodes_2 else 'classic'}".replace(" ", "_")
                page.screenshot(path=options.folder / f"{name}_opened.png")
                if not options.no_run and "1024 px" not in path.stem and "Train" not in path.stem:
                    run(page, server)
                    page.screenshot(path=options.folder / f"{name}_run.png")
                print(name, flush=True)
            page.close()


def run(page, server) -> None:
    """Run what is open, to its end."""
    page.evaluate("() => window.app.queuePrompt(0)")
    page.wait_for_timeout(SETTLED)
    wait(lambda: not any(server.get("/queue").values()))
    page.wait_for_timeout(SETTLED)


def wait(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it took longer than {PATIENCE} s")
        time.sleep(0.3)


def shoot_panel(browser, server, file: Path) -> None:
    page = open_page(browser, server, 1366, 900)
    name = "PixArt 20 Train LCD"
    page.evaluate(OPEN, [name, load_workflow(WORKFLOWS / f"{name}.json")])
    page.locator("button:has(.pi-chart-line)").first.click()
    run(page, server)

    training = next(job["id"] for job in server.get("/pixart_delta/jobs")["jobs"] if job["command"] == "lcd")

    def drawn() -> int:
        job = server.get(f"/pixart_delta/jobs/{training}")
        if job["state"] == "failed":
            raise RuntimeError(job["reason"])
        return len(server.get(f"/pixart_delta/jobs/{training}/samples")["samples"])

    wait(lambda: drawn() >= 3)
    row = page.locator(f'li[data-job="{training}"] .pxd-row')
    if row.get_attribute("aria-expanded") != "true":
        row.click()
    page.locator(f'li[data-job="{training}"] .pxd-newest').wait_for()
    page.wait_for_timeout(4 * SETTLED)
    page.screenshot(path=file)
    page.close()


if __name__ == "__main__":
    sys.exit(main())
