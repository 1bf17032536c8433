"""The training routes of the real ComfyUI: what they refuse, whoever asks, and from where."""

from __future__ import annotations

import http.client
import socket
import struct
import time
from pathlib import Path

import pytest

from tests.nodes.panel import record, until
from tests.nodes.routes import FOREIGN, JOBS, call, create, ids, post, write_job

pytestmark = pytest.mark.host
ROOT = Path(__file__).resolve().parents[2]


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
