"""Twenty photographs as a new user would bring them: through the template, a real ComfyUI and its page in a browser.

    python tests/bench/bench_photographs.py PHOTOGRAPHS OUTPUT [--steps 60]

Twenty of the pictures in PHOTOGRAPHS are cropped to five shapes and captioned by their names; the template *PixArt 24
Teach It Your Pictures* is opened with their folder and two prompts of our own, and run. Exits with 1 unless all twenty
are trained on, there is a row of samples for each prompt, from before the first step on, and the second run draws a
picture with the result. OUTPUT gets the samples, that picture and what the page looked like.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SHAPES = ((1, 1), (4, 3), (3, 4), (5, 3), (3, 5))
"""Width and height of one picture after the other."""
COUNT, SIDE = 20, 512
PROMPTS = "mountains at sunset\na flower on a meadow"
OPEN = """async ([workflow, steps, prompts]) => {
    await window.app.loadGraphData(workflow);
    const set = (type, values) => {
        const node = window.app.graph._nodes.find(node => node.type === `PixArtDelta${type}`);
        for (const [name, value] of Object.entries(values)) node.widgets.find(each => each.name === name).value = value;
    };
    set("Dataset", { folder: "photographs" });
    set("FineTune", { steps, sample_every: Math.ceil(steps / 2), sample_prompts: prompts });
    await window.app.queuePrompt(0);
}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    import tests.conftest  # noqa: F401  registers the root folder as a package
    from tests.nodes.conftest import CHROMIUM
    from tests.nodes.panel import READY, jobs, open_job, open_panel, until
    from tools.comfy_server import ComfyServer, comfyui_trees
    from tools.workflow_api import load_workflow

    options.output.mkdir(parents=True, exist_ok=True)
    workflow = load_workflow(ROOT / "workflows" / "PixArt 24 Teach It Your Pictures.json")
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(next(iter(comfyui_trees().values())), base) as server,
        sync_playwright() as driver,
    ):
        crop(options.photographs, server.base / "input" / "photographs")
        server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Release.Status": "what's new seen"})
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(300_000)
        page.goto(server.address)
        page.wait_for_function(READY)
        page.evaluate(OPEN, [workflow, options.steps, PROMPTS])
        trained = until(lambda: next((each for each in jobs(server) if each["command"] == "finetune"), None), 300)
        open_panel(page)
        ended = ("done", "failed")
        done = until(
            lambda: next((x for x in jobs(server) if x["id"] == trained["id"] and x["state"] in ended), None), 1500
        )
        print(f"{done['name']}: {done['state']} {done['reason']}, {done.get('pictures')}")
        open_job(page, done["id"])
        page.wait_for_timeout(2000)
        page.screenshot(path=options.output / "panel.png")
        run = server.base / "output" / "pixart_delta" / "training" / done["id"]
        sheets = sorted((run / "samples").glob("step_*.png"))
        for sheet in sheets:
            shutil.copy(sheet, options.output / sheet.name)
        rows = Image.open(sheets[-1]).height // 128
        page.evaluate("() => window.app.queuePrompt(0)")
        drawn = until(lambda: next((server.base / "output" / "pixart_delta").glob("taught_*.png"), None), 300)
        page.wait_for_timeout(3000)
        page.screenshot(path=options.output / "page.png")
        shutil.copy(drawn, options.output / "drawn.png")
        browser.close()
    print(f"{len(sheets)} sheets of samples, {rows} rows; drawn: {drawn.name}")
    return int("20 of 20 pictures, 5 sizes" not in str(done.get("pictures")) or rows != 2 or len(sheets) < 3)


def crop(photographs: Path, folder: Path) -> None:
    """Some of the pictures in five shapes, with captions of their names."""
    folder.mkdir(parents=True)
    files = sorted(file for file in photographs.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for number, file in enumerate(files[:COUNT]):
        width, height = SHAPES[number % len(SHAPES)]
        picture = Image.open(file).convert("RGB")
        scale = min(picture.width / width, picture.height / height)
        left, top = ((side - scale * part) / 2 for side, part in zip(picture.size, (width, height), strict=True))
        box = (left, top, left + scale * width, top + scale * height)
        size = round(SIDE * (width / height) ** 0.5), round(SIDE * (height / width) ** 0.5)
        picture.resize(size, Image.Resampling.LANCZOS, box).save(folder / f"{number:02}.jpg")
        words = [word for word in file.stem.replace("-", "_").split("_") if word.isalpha()]
        (folder / f"{number:02}.txt").write_text(f"a photograph, {' '.join(words[:3]).lower()}\n")


if __name__ == "__main__":
    sys.exit(main())
