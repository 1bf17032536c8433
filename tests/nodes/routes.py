"""The training routes as a client calls them, and jobs laid where they look. `server` and `root` are in conftest.py."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

from tests.nodes.panel import record

JOBS = "/pixart_delta/jobs"
BASE = "bundled/nano (base)"
FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


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
