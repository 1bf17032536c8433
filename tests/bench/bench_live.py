"""The live workflow in a real browser: from the end of a stroke to the picture that follows it.

    python tests/bench/bench_live.py [--size 256] [--strokes 20] [--steps 2] [--device cpu|auto] [--app]
    python tests/bench/bench_live.py --film FILE.webp      a recording instead: the app as it opens, a scene drawn in it

Opens the template PixArt 19 Live Drawing in ComfyUI's own frontend (headless Chromium, the same cores), draws strokes
with the mouse, and waits in the page until the picture of that run is decoded. ComfyUI's own events tell where the time
goes: `sent` until the editor hears that the prompt has started, `run` until it hears that the preview node has ended,
`shown` until its picture is there. It hears of a short run at its end (web/live/quiet.mjs): `sent` is nearly all then.
Machines are seldom idle: the load average stands beside each figure. Exits with 1 when the median is above half a
second at 256 px, or when a picture does not change with its stroke. The recording is the browser's own
(Page.startScreencast, in true time), made into one file by ffmpeg.
"""

from __future__ import annotations

import argparse
import base64
import io
import math
import os
import shutil
import statistics
import subprocess
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

SCENE = [
    [(0.0, 0.48), (0.16, 0.37), (0.3, 0.47), (0.48, 0.35), (0.66, 0.48), (0.84, 0.38), (1.0, 0.47)],
    [(0.0, 0.62), (1.0, 0.62)],
    [(0.78 + 0.06 * math.cos(turn / 4), 0.16 + 0.06 * math.sin(turn / 4)) for turn in range(26)],
    [(0.37, 0.77), (0.41, 0.83), (0.58, 0.83), (0.62, 0.77), (0.37, 0.77)],
    [(0.49, 0.76), (0.49, 0.58), (0.6, 0.75), (0.49, 0.75)],
]
"""Strokes of the recording: mountains, a shore, the sun, a boat and its sail; parts of the sheet's sides."""
FPS, WIDE = 8, 760
"""Pictures a second and width in px of the recording's file."""

OPEN = """async ([workflow, size, steps, app]) => {
    const set = (type, name, value) => {
        const node = workflow.nodes.find(node => node.type === type);
        node.widgets_values[name] = value;
    };
    set("PixArtDeltaResolution", 0, size); set("PixArtDeltaResolution", 1, size);
    set("PixArtDeltaLiveCanvas", 0, ""); set("PixArtDeltaLCMSampler", 2, steps);
    workflow.extra.linearMode = app;
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
    parser.add_argument("--app", action="store_true", help="in App mode, as the template opens; else as a graph")
    parser.add_argument("--film", type=Path, help="make a recording, and measure nothing")
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
            if options.film:
                film(browser, server, options)
                return 0
            good = [measure(browser, server, size, options, where) for size in options.size]
            browser.close()
    return 0 if all(good) else 1


def open_page(browser, server, size: int, steps: int, app: bool):
    """The live template in a page of its own, at that size and number of steps, on a blank sheet."""
    from tools.workflow_api import load_workflow

    page = browser.new_page(viewport={"width": 1366, "height": 768})
    page.set_default_timeout(120_000)
    page.route(lambda url: not url.startswith(server.address), lambda route: route.abort())
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(server.address)
    page.wait_for_function("() => window.app?.extensionManager && window.app.graph")
    page.evaluate(OPEN, [load_workflow(ROOT / "workflows" / "PixArt 19 Live Drawing.json"), size, steps, app])
    page.locator(".pxd-sheet").wait_for()
    return page


def measure(browser, server, size: int, options, where: str) -> bool:
    page = open_page(browser, server, size, options.steps, options.app)
    rows, pictures, worked, drew = [], [], [], []
    for index in range(options.strokes + 3):  # the first ones load models
        before, browsed = cpu_seconds(server.process.pid), browser_seconds()
        stroke(page, index)
        rows.append(settled(page))
        worked.append(cpu_seconds(server.process.pid) - before)
        drew.append(browser_seconds() - browsed)
        pictures.append(fetch(server, rows[-1]["url"]))
    page.close()
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
        f"{max(changes):.1f} of 255; for a stroke ComfyUI computed {statistics.median(worked[3:]):.2f} s, the browser "
        f"{statistics.median(drew[3:]):.2f} s",
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


def browser_seconds() -> float:
    """`cpu_seconds` of all of the browser's processes: what this one started, and those did, but for ComfyUI."""
    parents = {int(each.parent.name): _parent(each) for each in Path("/proc").glob("[0-9]*/stat")}
    found = {os.getpid()}
    while new := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= new
    return sum(cpu_seconds(pid) for pid in found if "chrom" in _program(pid))


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended meanwhile
        return 0


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/exe").resolve().name
    except OSError:
        return ""


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


def film(browser, server, options) -> None:
    """Draw a scene in the app, and write what the browser showed as an animated WebP."""
    page = open_page(browser, server, 256, options.steps, app=True)
    for _ in range(2):  # the models are loaded before it begins
        stroke(page, 0)
        settled(page)
    page.locator('[data-tool="live_clear"]').click()
    page.wait_for_timeout(3000)
    with tempfile.TemporaryDirectory() as folder:
        frames = record(page, Path(folder))
        began = time.monotonic()
        for points in SCENE:
            draw(page, points)
            settled(page)
        page.wait_for_timeout(2500)
        ended = time.monotonic() - began
        page.close()
        listed = [
            f"file '{name}'\nduration {after - at:.3f}"
            for (at, name), (after, _) in zip(frames, [*frames[1:], (frames[-1][0] + 0.5, "")], strict=True)
        ]
        (Path(folder) / "frames.txt").write_text("\n".join(listed))
        command = ["ffmpeg", "-y", "-loglevel", "error", "-f", "concat", "-i", Path(folder) / "frames.txt"]
        command += ["-vf", f"fps={FPS},scale={WIDE}:-1", "-c:v", "libwebp", "-q:v", "60", "-loop", "0", options.film]
        subprocess.run(command, check=True)
    size, load = options.film.stat().st_size / 1000, os.getloadavg()[0]
    print(f"{options.film}: {ended:.1f} s, {len(frames)} frames, {size:.0f} kB, load average {load:.1f}")


def draw(page, points) -> None:
    """One stroke along points, as a hand would: not faster than half a second."""
    box = page.locator(".pxd-sheet").bounding_box()
    at = [(box["x"] + (0.02 + 0.96 * x) * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    for point in at[1:]:
        page.mouse.move(*point, steps=3)
        page.wait_for_timeout(600 / len(at))
    page.mouse.up()


def record(page, folder: Path) -> list[tuple[float, str]]:
    """Keep what the page shows as JPEG files from now on: seconds and name of each; more come while it waits."""
    session, frames = page.context.new_cdp_session(page), []

    def keep(event: dict) -> None:
        name = f"{len(frames):05d}.jpg"
        (folder / name).write_bytes(base64.b64decode(event["data"]))
        frames.append((event["metadata"]["timestamp"], name))
        session.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})

    session.on("Page.screencastFrame", keep)
    session.send("Page.startScreencast", {"format": "jpeg", "quality": 85, "everyNthFrame": 1})
    return frames


if __name__ == "__main__":
    sys.exit(main())
