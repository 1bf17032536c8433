"""The live workflow in a real browser: from the end of a stroke to the picture that follows it.

    python tests/bench/bench_live.py [--size 256] [--strokes 20] [--steps 2] [--device cpu|auto] [--frames FOLDER]

Opens the template PixArt 19 Live Drawing in ComfyUI's own frontend (headless Chromium, the same cores), draws strokes
with the mouse, and waits in the page until the picture of that run is decoded. ComfyUI's own events tell where the time
goes: `sent` until the prompt starts, `run` until the preview node has ended, `shown` until its picture is there.
Machines are seldom idle: the load average stands beside each figure. Exits with 1 when the median is above half a
second at 256 px, or when a picture does not change with its stroke.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LIMIT = 0.5
QUIET = 0.6
"""Seconds without another run after which a picture is a stroke's last."""
CHANGED = 0.5
"""Mean difference, of 255, from which a picture has changed; the same picture twice has 0."""

OPEN = """async ([workflow, size, steps]) => {
    const set = (type, name, value) => {
        const node = workflow.nodes.find(node => node.type === type);
        node.widgets_values[name] = value;
    };
    set("PixArtDeltaResolution", 0, size); set("PixArtDeltaResolution", 1, size);
    set("PixArtDeltaLiveCanvas", 0, ""); set("PixArtDeltaLCMSampler", 2, steps);
    workflow.extra.linearMode = false;
    await window.app.loadGraphData(workflow);
    const times = (window.liveTimes = {});
    const preview = String(workflow.nodes.find(node => node.type === "PreviewImage").id);
    const note = (name) => (times[name] = performance.now());
    document.addEventListener("pointerup", () => note("up"), true);
    window.app.api.addEventListener("execution_start", () => note("start"));
    window.app.api.addEventListener("executed", async ({ detail }) => {
        if (String(detail.node) !== preview) return;
        note("executed");
        const file = detail.output.images[0];
        const image = new Image();
        image.src = window.app.api.apiURL("/view?" + new URLSearchParams(file));
        await image.decode();
        note("shown");
        times.url = image.src;
        times.seen = (times.seen ?? 0) + 1;
    });
}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[256, 128], help="px of the picture")
    parser.add_argument("--strokes", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--frames", type=Path, help="folder for a recording of the page as JPEG files")
    options = parser.parse_args()
    import torch
    from playwright.sync_api import sync_playwright

    from tools.comfy_server import ComfyServer, comfyui_trees

    cpu = options.device == "cpu" or not torch.cuda.is_available()
    where = "CPU" if cpu else torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as folder:
        server = ComfyServer(next(iter(comfyui_trees().values())), Path(folder) / "comfyui", cpu=cpu)
        with server, sync_playwright() as driver:
            server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Release.Status": "what's new seen"})
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            good = [measure(browser, server, size, options, where) for size in options.size]
            browser.close()
    return 0 if all(good) else 1


def measure(browser, server, size: int, options, where: str) -> bool:
    from tools.workflow_api import load_workflow

    page = browser.new_page(viewport={"width": 1500, "height": 950})
    page.set_default_timeout(120_000)
    page.route(lambda url: not url.startswith(server.address), lambda route: route.abort())
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(server.address)
    page.wait_for_function("() => window.app?.extensionManager && window.app.graph")
    page.evaluate(OPEN, [load_workflow(ROOT / "workflows" / "PixArt 19 Live Drawing.json"), size, options.steps])
    page.locator(".pxd-sheet").wait_for()
    frames = record(page, options.frames) if options.frames else None
    rows, pictures, worked = [], [], []
    for index in range(options.strokes + 3):  # the first ones load models
        before = cpu_seconds(server.process.pid)
        stroke(page, index)
        rows.append(settled(page))
        worked.append(cpu_seconds(server.process.pid) - before)
        pictures.append(fetch(server, rows[-1]["url"]))
    page.close()
    if frames is not None:
        print(f"{len(frames)} frames in {options.frames}")
    rows, pictures = rows[3:], pictures[2:]
    changes = [float(np.abs(one - other).mean()) for one, other in zip(pictures, pictures[1:], strict=False)]
    parts = {"sent": ("up", "start"), "run": ("start", "executed"), "shown": ("executed", "shown")}
    total = sorted((row["shown"] - row["up"]) / 1000 for row in rows)
    median, p95 = statistics.median(total), total[min(len(total) - 1, round(0.95 * len(total)))]
    inner = {name: statistics.median((row[b] - row[a]) / 1000 for row in rows) for name, (a, b) in parts.items()}
    print(
        f"{where}, {size} px, {options.steps} steps: end of stroke to picture {median:.3f} s, p95 {p95:.3f} s "
        f"({', '.join(f'{name} {value:.3f}' for name, value in inner.items())}); {len(rows)} strokes, load average "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; picture changed by {min(changes):.1f} to "
        f"{max(changes):.1f} of 255; ComfyUI computed {statistics.median(worked[3:]):.3f} s for a stroke",
        flush=True,
    )
    return min(changes) >= CHANGED and (size != 256 or median <= LIMIT)


def cpu_seconds(pid: int) -> float:
    """Time that a process has computed, all threads together; what it would take alone is seen even on a busy machine.
    0 where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stroke(page, index: int) -> None:
    """A line of its own across the sheet, in a quarter of a second."""
    box = page.locator(".pxd-sheet").bounding_box()
    row = (0.1 + 0.8 * (index * 0.37 % 1)) * box["height"]
    page.mouse.move(box["x"] + 0.05 * box["width"], box["y"] + row)
    page.mouse.down()
    for step in range(1, 6):
        lift = (0.12 if step % 2 else -0.05) * box["height"]
        page.mouse.move(
            box["x"] + (0.05 + 0.17 * step) * box["width"], box["y"] + min(max(row - lift, 2), box["height"] - 2)
        )
        time.sleep(0.05)
    page.mouse.up()


def settled(page) -> dict:
    """The times of a stroke's last picture: while it was drawn others may have been under way."""
    before: dict = {}
    while True:
        page.wait_for_function("() => liveTimes.shown > liveTimes.up && liveTimes.shown > liveTimes.start")
        now = page.evaluate("() => ({...window.liveTimes})")
        if now == before:
            return now
        before = now
        time.sleep(QUIET)


def fetch(server, url: str) -> np.ndarray:
    data = server.request(url.removeprefix(server.address))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float32)


def record(page, folder: Path) -> list[str]:
    """Keep what the page shows as JPEG files, named by milliseconds."""
    import base64

    folder.mkdir(parents=True, exist_ok=True)
    session, names, began = page.context.new_cdp_session(page), [], time.monotonic()

    def keep(event: dict) -> None:
        name = f"{round(1000 * (time.monotonic() - began)):07d}.jpg"
        (folder / name).write_bytes(base64.b64decode(event["data"]))
        names.append(name)
        session.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})

    session.on("Page.screencastFrame", keep)
    session.send("Page.startScreencast", {"format": "jpeg", "quality": 80, "everyNthFrame": 1})
    return names


if __name__ == "__main__":
    sys.exit(main())
