"""The training routes of the real ComfyUI: what they answer, and what they refuse."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest
from pixart_delta.training.jobs import process

from tests.nodes.panel import record, until
from tools.comfy_server import ComfyServer, comfyui_trees

pytestmark = pytest.mark.host
ROOT = Path(__file__).resolve().parents[2]
JOBS = "/pixart_delta/jobs"
BASE = "bundled/nano (base)"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of its own, with a folder that its operator allows besides ComfyUI's."""
    allowed = tmp_path_factory.mktemp("allowed")
    (allowed / "data").mkdir()
    variables = {
        "PIXART_DELTA_ROOTS": str(allowed),
        "PIXART_DELTA_HOSTS": "other.example, proxy.example",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with ComfyServer(next(iter(comfyui_trees().values())), tmp_path_factory.mktemp("routes"), env=variables) as running:
        running.allowed = allowed
        (running.base / "input" / "data").mkdir()
        yield running


@pytest.fixture
def root(server):
    """The empty folder of jobs; no process is ever started here: a running job of another name holds the device."""
    folder = server.base / "output" / "pixart_delta" / "training"
    records = record(folder / "x").parent
    holder = subprocess.Popen(["sleep", "600"], start_new_session=True)
    write_job(folder, "holder", state="running", pid=holder.pid, identity=process.identity(holder.pid))
    yield folder
    holder.kill()
    holder.wait()
    for job in (*folder.iterdir(), *records.iterdir()):
        if job.is_symlink():
            job.unlink()
        elif job.is_dir():  # the watcher may be writing that the holder has ended
            until(lambda job=job: shutil.rmtree(job, ignore_errors=True) or not job.exists())


def pid_of(root: Path) -> int:
    return json.loads((record(root / "holder") / "job.json").read_text())["pid"]


def write_job(root: Path, job_id: str, **more) -> Path:
    folder = root / job_id
    (folder / "samples").mkdir(parents=True)
    values = {
        "id": job_id,
        "command": "lcd",
        "settings": {"run": str(folder)},
        "device": "cpu",
        "name": job_id,
        "state": "done",
        "order": 1.0,
    }
    record(folder).mkdir(parents=True)
    (record(folder) / "job.json").write_text(json.dumps({**values, **more}))
    return folder


def call(server, method: str, path: str, body=None, headers=None) -> tuple[int, dict | bytes, dict]:
    """Status, answer and headers, with exactly the headers given."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json"} if headers is None else headers
    connection.request(method, path, data, sent)
    response = connection.getresponse()
    answer, kind = response.read(), response.headers.get_content_type()
    connection.close()
    return response.status, json.loads(answer) if kind == "application/json" else answer, dict(response.headers)


def post(server, path: str, body=None, headers=None) -> tuple[int, str]:
    status, answer, _ = call(server, "POST", JOBS + path, {} if body is None else body, headers)
    return status, answer.get("error", "") if isinstance(answer, dict) else answer.decode()


def create(server, settings: dict, **more) -> tuple[int, dict]:
    values = {"command": "lcd", "settings": {"base": BASE, "data": "data", **settings}, "name": "x", **more}
    status, answer, _ = call(server, "POST", JOBS, values)
    return status, answer


def ids(server) -> list[str]:
    return [job["id"] for job in server.get(JOBS)["jobs"]]


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

    ws = websocket.create_connection(f"ws://127.0.0.1:{server.port}/ws", timeout=1, http_no_proxy=["127.0.0.1"])
    status = {"state": "running", "pid": pid_of(root), "step": 0, "steps": 1000, "loss": 0.5}
    seen, end = [], time.monotonic() + 5
    while time.monotonic() < end:
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
    ws.close()
    assert 2 <= len(seen) <= 20, "four a second for five seconds"
    steps = [job["step"] for data in seen for job in data["jobs"] if "step" in job]
    assert steps == sorted(steps) and steps[-1] > steps[0]


@pytest.mark.parametrize(
    "data",
    [
        "..",
        "../..",
        "/",
        "/etc",
        "data/../../..",
        "data/../../user",
        "link",
        "no-such-folder",
        "\0",
        "s3://bucket/x",
        "pipe:touch /tmp/owned",
        "file:///etc",
        "~",
        "-rf",
        "--config",
    ],
)
def test_paths_outside_the_roots_are_refused(server, root, data):
    link = server.base / "input" / "link"
    if not link.is_symlink():
        link.symlink_to("/etc")
    status, answer = create(server, {"data": data})
    assert status == 400 and answer["error"], answer
    status, answer = create(server, {"models": data})
    assert status == 400 and answer["error"], answer
    assert ids(server) == ["holder"]


def test_folders_that_are_allowed(server, root):
    for data in ("data", str(server.base / "input" / "data"), str(server.allowed / "data"), "../input/data"):
        assert create(server, {"data": data}, name="allowed")[0] == 200
    assert create(server, {"base": str(ROOT / "models/nano/base/pixart_nano_base.safetensors")})[0] == 200


def test_where_a_job_writes_is_not_for_others_to_say(server, root):
    status, answer = create(server, {"run": "/tmp/elsewhere"})
    assert status == 400 and "chosen by the queue" in answer["error"]


@pytest.mark.parametrize("name", ["../up", "a/b", "a\\b", "..", "nul\0", "line\nbreak", "<b>", "x" * 100])
def test_names_with_separators_are_refused(server, root, name):
    status, answer = create(server, {}, name=name)
    assert status == 409
    assert "the name" in answer["error"]
    assert ids(server) == ["holder"]


@pytest.mark.parametrize("job_id", ["..", "%2e%2e", "..%2f..", "%2fetc", "link", "holder%00", "HOLDER", "."])
def test_ids_lead_nowhere_else(server, root, tmp_path, job_id):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "job.json").write_text((record(root / "holder") / "job.json").read_text())
    if not record(root / "link").is_symlink():
        record(root / "link").symlink_to(outside)
    for path in ("", "/log", "/metrics", "/samples"):
        status, answer, _ = call(server, "GET", f"{JOBS}/{job_id}{path}")
        assert status in (404, 405) or job_id in (".", "..", "%2e%2e") and "jobs" not in answer, answer
    assert post(server, f"/{job_id}/delete")[0] in (403, 404, 405)
    assert (outside / "job.json").exists()


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"lerning_rate": 1}, "did you mean learning_rate"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": "5; rm -rf /"}, "a whole number is wanted"),
        ({"precision": "--help"}, "choose one of"),
        ({"learning_rate": "NaN"}, "a number is wanted"),
        ({"compile": "true"}, "true or false is wanted"),
        ({"steps": 10**400}, "steps is a number of about 400 digits"),
        ({"steps": 10**12}, "steps is 1000000000000: it must be between 1 and 1000000000"),
        ({"learning_rate": 10**400}, "a finite number is wanted"),
        ({"data": "x" * 10_000}, "at most 4096 characters"),
    ],
)
def test_bad_settings_are_named(server, root, settings, problem):
    status, answer = create(server, settings)
    assert status == 400
    assert problem in answer["error"]
    assert ids(server) == ["holder"]


def test_nothing_from_outside_reaches_a_command_line(server, root):
    status, answer, _ = call(server, "POST", JOBS, {"command": "lcd --set run=/tmp/x", "settings": {}})
    assert status == 400 and "no training" in answer["error"]
    for more in ({"argv": ["sh"]}, {"python": "/bin/sh"}, {"device": "cpu"}, {"after": "holder"}):
        status, answer = create(server, {}, **more)
        assert status == 400, more


FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_requests_of_other_pages_are_refused(server, root, headers):
    status, _ = post(server, "/holder/stop", {}, {"Content-Type": "application/json", **headers})
    assert status == 403 and server.get(f"{JOBS}/holder")["state"] == "running"


def test_requests_of_our_page_are_served(server, root):
    write_job(root, "other")
    own = {"Origin": server.address, "Sec-Fetch-Site": "same-origin"}
    assert post(server, "/other/delete", {}, {"Content-Type": "application/json", **own})[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_forms_of_other_pages_cannot_look_like_json(server, root, kind):
    assert post(server, "/holder/stop", b"{}", {"Content-Type": kind})[0] == 415


def test_changes_need_a_post(server, root):
    for path in ("/holder/stop", "/holder/delete"):
        assert call(server, "GET", JOBS + path)[0] in (404, 405)
    assert server.get(f"{JOBS}/holder")["state"] == "running"


@pytest.mark.parametrize(
    "body, status",
    [
        (b"x" * 70_000, 413),
        (b"{" + b" " * 70_000 + b"}", 413),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b"[" * 60_000, 400),
        (b'{"before": "\\ud800"}', 400),
        (b'{"before": "\xed\xa0\x80"}', 400),
        ('{"before": ""}'.encode("utf-16"), 400),
        (b'{"before": NaN}', 400),
        (b"1" * 5000, 400),
        (b'{"before": 3}', 400),
    ],
)
def test_bodies_that_are_too_large_or_no_json(server, root, body, status):
    found, problem = post(server, "/holder/move", body)
    assert found == status and problem


def test_a_body_that_breaks_off_is_one_line_in_the_log(server, root):
    before = len(server.log)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = f"POST {JOBS} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: 500\r\n\r\n".encode() + b'{"command"')
        time.sleep(0.3)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: "broke off" in server.log[before:], 20)
    time.sleep(0.5)
    assert "Traceback" not in server.log[before:] and server.log[before:].count("broke off") == 1


@pytest.mark.parametrize("path", ["", "/holder", "/holder/log", "/holder/samples/step_1.png"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8188", "192.168.0.9", "0.0.0.0", "", "[", "localhost.evil.example"]
)
def test_another_name_that_leads_here_is_refused(server, root, path, host):
    """As after DNS rebinding, where the browser takes our answers for those of the page's own site."""
    status, answer, _ = call(server, "GET", JOBS + path, headers={"Host": host})
    assert status == 403 and "PIXART_DELTA_HOSTS" in answer["error"], answer


def test_another_name_changes_nothing(server, root):
    headers = {"Host": "evil.example", "Origin": "http://evil.example", "Content-Type": "application/json"}
    assert call(server, "POST", f"{JOBS}/holder/kill", {}, headers)[0] == 403
    assert server.get(f"{JOBS}/holder")["state"] == "running"


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "127.0.0.1", "127.8.9.1:80", "[::1]:8188", "proxy.example", "Proxy.Example.:443"],
)
def test_the_machines_own_names_and_listed_ones_are_served(server, root, host):
    assert call(server, "GET", JOBS, headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/%ff",
        "/%ed%a0%80",
        "/%ed%a0%80/log",
        "/holder/samples/%ff.png",
        "/holder/log?lines=%ff",
        "/holder/metrics?since=%ed%a0%80",
    ],
)
def test_bad_encodings_are_refused(server, root, path):
    status, answer, _ = call(server, "GET", JOBS + path)
    assert status == 400 and answer["error"], answer
    raw = path.replace("%ff", "\xff").replace("%ed%a0%80", "\xed\xa0\x80").encode("latin-1")
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET " + JOBS.encode() + raw + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert client.makefile("rb").readline().split()[1] == b"400"


def test_a_chunked_body_has_the_same_limit(server, root):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", JOBS, iter([b"x" * 10_000] * 20), headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


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
