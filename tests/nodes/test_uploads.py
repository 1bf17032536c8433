"""What ComfyUI's own upload and userdata routes write is no job, and changes none: on the real servers."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

from tests.nodes.panel import act, job, jobs, record, run_folder, until
from tools.comfy_server import ComfyServer, comfyui_trees

pytestmark = pytest.mark.host
EARLIER = Path(__file__).parents[1] / "earlier" / "v87a0225"
HALF, WAITING, FINISHED, PICTURES = "half-a-lora-66aae1", "waiting-3519da", "finished-1e9248", "pictures-37771f"
PLACE = "pixart_delta/training"


class Fetched(http.server.BaseHTTPRequestHandler):
    """A loopback server that nothing should ask."""

    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        self.send_error(404)

    def log_message(self, *_arguments):
        pass


@pytest.fixture(scope="module")
def private():
    server = http.server.HTTPServer(("127.0.0.1", 0), Fetched)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/private"
    server.shutdown()


@pytest.fixture(scope="module", params=sorted(comfyui_trees()))
def server(request, tmp_path_factory):
    """A server whose output folder holds the jobs of an earlier version: done, paused in mid-way, waiting; and three
    that somebody laid there."""
    base = tmp_path_factory.mktemp("uploads")
    for name in ("base.safetensors", "features"):
        source, target = EARLIER / name, base / "input" / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    for each in (EARLIER / "jobs").glob("[a-z]*"):
        shutil.copytree(each, base / "output" / PLACE / each.name)
    for file in (base / "output").rglob("*.json"):
        text = file.read_text("utf-8").replace("/old/jobs", (base / "output" / PLACE).as_posix())
        file.write_text(text.replace("/old/", (base / "input").as_posix() + "/"), "utf-8")
    good = json.loads((base / "output" / PLACE / WAITING / "job.json").read_text())
    for name, text in {
        "fetches": json.dumps(
            {**good, "id": "fetches", "settings": {**good["settings"], "data": "http://127.0.0.1:1"}}
        ),
        "brackets": "[" * 100_000,
        "endless": json.dumps({**good, "id": "endless", "settings": {**good["settings"], "steps": 10**400}}),
    }.items():
        (base / "output" / PLACE / name).mkdir()
        (base / "output" / PLACE / name / "job.json").write_text(text)
    with ComfyServer(comfyui_trees()[request.param], base) as running:
        yield running


def upload(server, subfolder: str, name: str, data: bytes, kind: str = "output", overwrite: str = "true") -> int:
    """Status of a POST to ComfyUI's /upload/image."""
    mark = uuid.uuid4().hex
    head = f'--{mark}\r\nContent-Disposition: form-data; name="{{}}"'
    fields = {"type": kind, "subfolder": subfolder, "overwrite": overwrite}
    body = "".join(f"{head.format(key)}\r\n\r\n{value}\r\n" for key, value in fields.items())
    body += f'{head.format("image")}; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    data = body.encode() + data + f"\r\n--{mark}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
    return send(server, "/upload/image", data, headers)


def send(server, path: str, data: bytes, headers: dict, method: str = "POST") -> int:
    request = urllib.request.Request(server.address + path, data, headers, method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def states(server) -> dict[str, str]:
    return {each["id"]: each["state"] for each in jobs(server)}


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_jobs_of_an_earlier_version_are_taken_over_stopped(server):
    found = states(server)
    assert (found[FINISHED], found[HALF], found[WAITING], found[PICTURES]) == ("done", "paused", "paused", "done")
    for name in ("fetches", "brackets", "endless"):
        assert found[name] == "failed" and job(server, name)["actions"] == ["delete"]
    time.sleep(3)  # the watcher looks twice
    assert states(server) == found
    assert job(server, WAITING)["settings"]["run"] == str(run_folder(server, WAITING))
    assert job(server, HALF)["step"] == 4


def test_an_uploaded_job_is_none(server, private):
    settings = {**job(server, WAITING)["settings"], "data": private, "run": str(server.base / "elsewhere")}
    before = states(server)
    for state in ("queued", "preparing", "paused"):
        made = {"id": "x", "command": "lcd", "settings": settings, "device": "cpu", "name": "x", "state": state}
        for place in (f"{PLACE}/x", f"{PLACE}/../training/x", f"./{PLACE}//x"):
            assert upload(server, place, "job.json", json.dumps(made).encode()) == 200
            for name, text in (("settings.json", settings), ("config.json", {"command": "lcd", "config": settings})):
                assert upload(server, place, name, json.dumps(text).encode()) == 200
    time.sleep(3)
    assert states(server) == before
    assert not Fetched.asked
    assert not (server.base / "elsewhere").exists()
    server.stop()
    server.start()
    time.sleep(3)
    assert states(server) == before and not Fetched.asked, "jobs are taken over once"


def test_no_route_of_comfyui_writes_records(server):
    kept = record(run_folder(server, HALF))
    before = contents(kept.parent)
    assert kept / "job.json" in before
    evil = b'{"state": "queued"}'
    user = "user/__pixart_delta/jobs/" + HALF
    for kind in ("output", "input", "temp"):
        for place in (f"../{user}", f"{PLACE}/../../../{user}", str(kept), f"..%2f{user}", f"..\\{user}"):
            for overwrite in ("true", "1", "false"):
                upload(server, place, "job.json", evil, kind, overwrite)
                upload(server, "", f"{place}/job.json", evil, kind, overwrite)
    for file in (
        f"../__pixart_delta/jobs/{HALF}/job.json",
        f"__pixart_delta/jobs/{HALF}/job.json",
        f"x/../../__pixart_delta/jobs/{HALF}/job.json",
        str(kept / "job.json"),
    ):
        for quoted in (
            urllib.parse.quote(file, safe=""),
            urllib.parse.quote(urllib.parse.quote(file, safe=""), safe=""),
        ):
            for method, path in (
                ("POST", f"/userdata/{quoted}?overwrite=true"),
                ("POST", f"/userdata/settings.json/move/{quoted}?overwrite=true"),
                ("DELETE", f"/userdata/{quoted}"),
                ("GET", f"/userdata/{quoted}"),
            ):
                for headers in ({}, {"comfy-user": "__pixart_delta"}, {"comfy-user": "../__pixart_delta"}):
                    status = send(server, path, None if method == "GET" else evil, headers, method)
                    assert method != "GET" or status >= 400
    assert contents(kept.parent) == before
    assert not list(server.base.glob("user/__pixart_delta/**/default"))


def test_uploads_into_the_folder_of_a_job_change_nothing_of_it(server, private):
    """With overwrite, to each file that is or was read there; then it is resumed, and does what it was made for."""
    settings, folder = job(server, HALF)["settings"], f"{PLACE}/{HALF}"
    before = contents(record(run_folder(server, HALF)))
    evil = {**settings, "data": private, "base": "/etc/passwd", "steps": 10**6, "run": str(server.base / "elsewhere")}
    status = {"state": "done", "pid": 1, "step": 10**400, "steps": 8, "export": "/etc/passwd", "loss": 0}
    for place, name, text in (
        (
            "",
            "job.json",
            json.dumps({"id": HALF, "command": "lcd", "settings": evil, "device": "cpu", "state": "queued"}),
        ),
        ("", "settings.json", json.dumps(evil)),
        ("", "config.json", json.dumps({"command": "lcd", "config": evil})),
        ("", "config.json", "[" * 100_000),
        ("", "status.json", json.dumps(status)),
        ("", "status.tmp/x", "x"),
        ("", "process.log", "error: <script>alert(1)</script>"),
        ("", "metrics.jsonl", '{"step": 1, "loss": 1}\n'),
        ("", "lock", "x"),
        ("control", "stop", "x"),
        ("control", "save", "x"),
        ("control", "sample", "x"),
        ("exports", "pixart.safetensors", "x"),
        ("checkpoints", "step_99999999.safetensors", "x"),
        ("checkpoints", "step_-1.safetensors", "x"),
    ):
        assert upload(server, f"{folder}/{place}", name.rpartition("/")[2], text.encode()) == 200
    found = job(server, HALF)
    assert (found["state"], found["step"], found["settings"]) == ("paused", 4, settings)
    assert found["actions"] == ["resume", "delete"], "what lies in exports is not what it made"
    assert contents(record(run_folder(server, HALF))) == before
    assert server.get(f"/pixart_delta/jobs/{HALF}/log")["text"] == ""

    act(server, HALF, "resume")
    done = until(lambda: (found := job(server, HALF))["state"] in ("done", "failed") and found, 3600)
    log = server.get(f"/pixart_delta/jobs/{HALF}/log")["text"]
    assert (done["state"], done["step"], done["steps"], done["settings"]) == ("done", 8, 8, settings), log
    assert "step_00000004.safetensors at step 4" in log and done["export"] == "lora.safetensors"
    config = json.loads((run_folder(server, HALF) / "config.json").read_text())
    assert (config["command"], config["config"]) == ("lcm-lora", settings)
    assert (run_folder(server, HALF) / "control" / "stop").exists(), "nobody took it"
    assert not Fetched.asked and not (server.base / "elsewhere").exists()


def test_what_a_path_leads_to_is_looked_at_again_at_the_start(server, tmp_path):
    """A folder that was allowed when the job was made, and is now a link to somewhere else."""
    features = server.base / "input" / "features"
    features.rename(tmp_path / "features")
    features.symlink_to(tmp_path / "features")
    try:
        act(server, WAITING, "resume")
        failed = until(lambda: (found := job(server, WAITING))["state"] == "failed" and found)
        assert "could not be started: data is" in failed["reason"]
        assert "in a folder that trainings may read" in failed["reason"]
    finally:
        features.unlink()
        (tmp_path / "features").rename(features)
