"""The training panel as its tests use it: opened in a page, with trainings that are real or only written as files."""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.error
from pathlib import Path

READY = "() => window.app?.extensionManager && window.app.graph && document.querySelector('.pi-chart-line')"
HOSTILE = "<img src=x onerror='window.hacked = true'>\x1b[31m<script>window.hacked = true</script>\u202e"
LACKING = "schedulefree"
"""Package (and optimizer) that the server of the panel's tests has not got."""
PICTURES = os.environ.get("PIXART_DELTA_SCREENSHOTS")
"""Folder to keep screenshots in."""
PATIENCE = 300
"""Seconds that something is waited for: a training that starts beside other programs takes two minutes and more."""


def open_panel(page) -> None:
    page.wait_for_function(READY)
    if not page.locator(".pxd-panel").is_visible():
        page.locator("button:has(.pi-chart-line)").first.click()
    page.locator(".pxd-panel").wait_for()


def jobs(server) -> list[dict]:
    return server.get("/pixart_delta/jobs")["jobs"]


def job(server, job_id: str) -> dict:
    return server.get(f"/pixart_delta/jobs/{job_id}")


def act(server, job_id: str, action: str) -> None:
    try:
        server.post(f"/pixart_delta/jobs/{job_id}/{action}", {})
    except urllib.error.HTTPError as error:
        assert error.code == 409, error.read()  # it ended by itself


def until(condition, seconds: float = PATIENCE):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError("it did not come about")


def keep(page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png")


def state_of(page, job_id: str, state: str) -> None:
    page.locator(f'li[data-job="{job_id}"] .pxd-state[data-state="{state}"]').wait_for()


def end_trainings(server) -> None:
    for job in jobs(server):
        if "kill" in job["actions"]:
            act(server, job["id"], "kill")
    until(lambda: not any("kill" in job["actions"] for job in jobs(server)))


def run_folder(server, job_id: str) -> Path:
    """Where a job makes what it makes."""
    return server.base / "output" / "pixart_delta" / "training" / job_id


def record(folder: Path) -> Path:
    """Where the server keeps what a job is, of its run folder in output/pixart_delta/training."""
    return folder.parents[3] / "user" / "__pixart_delta" / "jobs" / folder.name


def pretend(folder: Path, order: float, **values) -> None:
    """A job as its record keeps it."""
    (folder / "samples").mkdir(parents=True)
    settings = {"run": str(folder), "data": "d", "base": "b"}
    change(
        folder,
        **{
            "id": folder.name,
            "command": "lcd",
            "settings": settings,
            "device": "cpu",
            "name": folder.name,
            "order": order,
            "result": {"step": 900, "steps": 1000, "loss": 0.01},
            **values,
        },
    )


def forget(folder: Path) -> None:
    """Remove a job's folder and its record, as if there had never been one."""
    for each in (record(folder), folder):
        shutil.rmtree(each, ignore_errors=True)


def change(folder: Path, **values) -> None:
    file = record(folder) / "job.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    old = json.loads(file.read_text()) if file.exists() else {}
    file.with_suffix(".new").write_text(json.dumps(old | values))
    file.with_suffix(".new").replace(file)


def write_metrics(folder: Path, steps: int) -> None:
    lines = (f'{{"step": {n}, "loss": {1 / n}, "learning_rate": 0.001}}\n' for n in range(1, steps + 1))
    (folder / "metrics.jsonl").write_text("".join(lines))


def row(page, job_id: str):
    return page.locator(f'li[data-job="{job_id}"] .pxd-row')


def open_job(page, job_id: str):
    """The opened row's detail, whatever was open before."""
    if row(page, job_id).get_attribute("aria-expanded") != "true":
        row(page, job_id).click()
    return page.locator(f'li[data-job="{job_id}"] .pxd-detail')
