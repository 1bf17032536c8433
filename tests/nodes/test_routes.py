"""The training routes of the real ComfyUI: what they answer. What they refuse is in test_routes_refused.py."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from pixart_delta.training.jobs import process

from tests.nodes.panel import record
from tests.nodes.routes import JOBS, call, create, ids, pid_of, post, write_job

pytestmark = pytest.mark.host
ROOT = Path(__file__).resolve().parents[2]


def test_a_job_is_queued_listed_moved_and_deleted(server, root):
    status, made = create(server, {"steps": 5})
    assert status == 200, made
    assert made["state"] == "queued", made
    assert made["name"] == "x", made
    one = server.get(f"{JOBS}/{made['id']}")
    assert one["settings"]["steps"] == 5 and one["settings"]["data"] == str(server.base / "input" / "data")
    assert one["settings"]["base"].endswith("pixart_nano_base.safetensors")
    assert one["settings"]["run"] == str(root / made["id"])
    _, second = create(server, {"steps": 6})
    assert ids(server) == ["holder", made["id"], second["id"]]
    assert post(server, f"/{second['id']}/move", {"before": made["id"]})[0] == 200
    assert ids(server) == ["holder", second["id"], made["id"]]
    assert post(server, f"/{made['id']}/pause")[0] == 200
    assert server.get(f"{JOBS}/{made['id']}")["state"] == "paused"
    assert post(server, f"/{made['id']}/delete") == (200, "") and made["id"] not in ids(server)
    assert server.get("/api" + JOBS)["jobs"], "the editor asks below /api"


def test_changes_are_told_over_the_websocket_at_most_four_a_second(server, root):
    import websocket

    ws = websocket.create_connection(f"ws://127.0.0.1:{server.port}/ws", timeout=60, http_no_proxy=["127.0.0.1"])
    status = {"state": "running", "pid": pid_of(root), "step": 0, "steps": 1000, "loss": 0.5}
    seen, begun = [], time.monotonic()
    while time.monotonic() < begun + 5 or len(seen) < 2 and time.monotonic() < begun + 300:
        status["step"] += 1
        temporary = record(root / "holder") / "status.tmp"
        temporary.write_text(json.dumps(status))
        temporary.replace(temporary.with_suffix(".json"))
        ws.settimeout(0.02)
        try:
            message = json.loads(ws.recv())
        except (websocket.WebSocketTimeoutException, ValueError):
            continue
        if message["type"] == "pixart_delta.jobs":
            seen += [message["data"]]
    seconds = time.monotonic() - begun
    ws.close()
    assert 2 <= len(seen) <= 4 * seconds + 1, "four a second"
    steps = [job["step"] for data in seen for job in data["jobs"] if "step" in job]
    assert steps == sorted(steps) and steps[-1] > steps[0]


def test_the_samples_route_gives_samples_only(server, root, tmp_path):
    folder = root / "holder"
    picture = (ROOT / "models/nano/scenes/000000.png").read_bytes()
    (folder / "samples" / "step_00000500.png").write_bytes(picture)
    (folder / "samples" / "step_00000500.json").write_text('{"step": 500, "prompts": ["a lake"]}')
    (folder / "samples" / "secret.png").write_text("secret")
    (tmp_path / "secret.png").write_text("secret")
    (folder / "samples" / "step_00000600.png").symlink_to(tmp_path / "secret.png")
    listed = server.get(f"{JOBS}/holder/samples")["samples"]
    drawn = (folder / "samples" / "step_00000500.png").stat().st_mtime
    assert listed[0] == {"name": "step_00000500.png", "step": 500, "prompts": ["a lake"], "time": drawn}
    status, answer, headers = call(server, "GET", f"{JOBS}/holder/samples/step_00000500.png")
    assert (status, answer, headers["Content-Type"]) == (200, picture, "image/png")
    assert headers["X-Content-Type-Options"] == "nosniff"
    for name in (
        "secret.png",
        "step_00000600.png",
        "step_00000500.json",
        "..%2fjob.json",
        "%2e%2e%2fjob.json",
        "..%2f..%2f..%2f..%2fcomfyui.log",
        "step_1.png%00",
        "step_00000700.png",
    ):
        status, answer, _ = call(server, "GET", f"{JOBS}/holder/samples/{name}")
        assert status == 404, (name, answer)
    (folder / "samples").rename(folder / "real")
    (folder / "samples").symlink_to(folder / "real")
    assert call(server, "GET", f"{JOBS}/holder/samples/step_00000500.png")[0] == 404


def test_the_log_is_plain_text_without_control_characters(server, root):
    hostile = "\x1b]0;title\x07\x1b[2J\x1b[31m<script>alert(1)</script>\x1b[0m \u202eabc\u2066 \x08\x00\x9b31m"
    log = record(root / "holder") / "process.log"
    log.write_bytes(b"old\n" * 50_000 + f"bar 1%\rbar 100%\n{hostile}\nlast \xe4".encode() + b"\xff\n")
    text = server.get(f"{JOBS}/holder/log?lines=4")["text"]
    assert "<script>alert(1)</script>" in text
    assert "bar 100%" in text
    assert "bar 1%" not in text
    assert not [letter for letter in text if letter != "\n" and not letter.isprintable() and letter != "\ufffd"]
    assert server.get(f"{JOBS}/holder/log?lines=2000")["text"].count("\n") <= 2000
    assert call(server, "GET", f"{JOBS}/holder/log?lines=x")[0] == 400
    write_job(root, "silent")
    assert server.get(f"{JOBS}/silent/log") == {"text": ""}


def test_metrics_since_a_step(server, root):
    with (root / "holder" / "metrics.jsonl").open("w") as file:
        file.writelines(f'{{"step": {n}, "loss": {1 / n}}}\n' for n in range(1, 5001))
    whole = server.get(f"{JOBS}/holder/metrics")
    assert whole["thinned"]
    assert len(whole["columns"]["step"]) <= 1001
    assert whole["columns"]["step"][-1] == 5000
    assert server.get(f"{JOBS}/holder/metrics?since=4998")["columns"]["step"] == [4999, 5000]
    for query in ("since=x", "since=-5", "points=1", "points=999999", "since=1e3", "since=" + "9" * 40):
        assert call(server, "GET", f"{JOBS}/holder/metrics?{query}")[0] == 400, query


def test_numbers_that_json_cannot_say_do_not_break_the_page(server, root):
    status = {"state": "running", "pid": pid_of(root), "step": 3, "steps": 5, "loss": float("nan"), "memory": "x"}
    (record(root / "holder") / "status.json").write_text(json.dumps(status))
    (found,) = server.get(JOBS)["jobs"]
    assert found["step"] == 3
    assert "loss" not in found
    assert "memory" not in found


def test_damaged_jobs_are_listed_and_can_be_deleted(server, root):
    (record(write_job(root, "damaged")) / "job.json").write_text("{")
    found = server.get(f"{JOBS}/damaged")
    assert found["state"] == "failed" and found["actions"] == ["delete"]
    assert post(server, "/damaged/retry")[0] == 409
    assert post(server, "/damaged/delete")[0] == 200 and ids(server) == ["holder"]


def test_what_cannot_be_done_now_is_a_conflict(server, root):
    status, problem = post(server, "/holder/delete")
    assert status == 409 and "delete needs one that is" in problem
    assert post(server, "/holder/fly")[0] == 409
    assert post(server, "/no-such-job/stop")[0] == 404
    status, problem = post(server, "/holder/sample")
    assert status == 409 and "without the text encoder" in problem
    assert post(server, "/holder/save")[0] == 200
    assert (record(root / "holder") / "control" / "save").exists() and not (root / "holder" / "control").exists()


def test_what_is_offered_fits_the_command(server, root):
    write_job(root, "waiting", state="queued", command="prepare", order=2.0)
    assert server.get(f"{JOBS}/holder")["actions"] == ["stop", "pause", "save", "kill"]
    found = server.get(f"{JOBS}/waiting")
    assert (found["reason"], found["text"]) == ("waits for holder", "waiting: queued, waits for holder")
    write_job(
        root,
        "preparing",
        state="running",
        command="prepare",
        pid=pid_of(root),
        order=3.0,
        identity=process.identity(pid_of(root)),
        device="cuda:0",
    )
    assert server.get(f"{JOBS}/preparing")["actions"] == ["stop", "pause", "kill"]
    assert post(server, "/preparing/save")[0] == 409


def test_one_badly_typed_job_stops_nothing(server, root):
    write_job(root, "badly-typed", order=None)
    assert ids(server) == ["holder", "badly-typed"]
    assert server.get(f"{JOBS}/badly-typed")["state"] == "failed" and post(server, "/badly-typed/delete")[0] == 200


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"id": "bad", "command": "lcd", "settings": {}, "device": "cpu", "state": "done", "result": {"step": %s}}'
        % ("9" * 400),
        '{"id": "bad", "command": "lcd", "settings": {"model": {"depth": NaN}}, "device": "cpu", "state": "done"}',
        '{"id": "bad", "command": "lcd", "settings": {}, "device": "cpu", "state": "queued", "order": %s}'
        % ("9" * 400),
        '{"id": "bad", "command": "no-such", "settings": {}, "device": "cpu", "state": "done", "result": {"loss": []}}',
        "x" * 3_000_000,
    ],
    ids=["brackets", "step", "nan", "order", "command", "large"],
)
def test_one_bad_job_hides_no_other(server, root, text):
    (record(write_job(root, "bad")) / "job.json").write_text(text)
    assert sorted(ids(server)) == ["bad", "holder"]
    assert server.get(f"{JOBS}/bad")["id"] == "bad" and server.get(f"{JOBS}/holder")["state"] == "running"
    assert post(server, "/bad/delete")[0] == 200 and ids(server) == ["holder"]
