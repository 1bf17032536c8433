"""A real ComfyUI as a child process, driven over its HTTP and websocket API: for the demo, the tests and the bench."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "pixart-delta"
"""Name of the extension's folder in custom_nodes, as the registry installs it."""

OnEvent = Callable[[str, Any], None]


class ServerError(RuntimeError):
    """ComfyUI did not start, died, or did not answer; the message ends with the tail of its log."""


@dataclass
class Result:
    """What one prompt gave."""

    prompt_id: str | None
    """None when ComfyUI refused the graph before queueing it."""
    history: dict = field(default_factory=dict)
    """The prompt's entry of /history: prompt, outputs, status."""
    images: list[bytes] = field(default_factory=list)
    """The files the output nodes wrote, in the order of their node ids, then of the batch."""
    errors: list[str] = field(default_factory=list)
    """One line per failing node: "Class (node id): message". Empty when the prompt succeeded."""
    interrupted: bool = False
    events: list[tuple[float, str, Any]] = field(default_factory=list)
    """(seconds since the prompt was sent, type, data); previews have type "preview" and the image's bytes."""
    seconds: float = 0.0
    node_seconds: dict[str, float] = field(default_factory=dict)
    """Node id -> seconds of its execution. Nodes that ComfyUI took from its cache are missing."""

    @property
    def outputs(self) -> dict:
        """Node id -> what that output node reported to the UI."""
        return self.history.get("outputs", {})


def comfyui_trees() -> dict[str, Path]:
    """Version -> folder of every ComfyUI that may be used: COMFYUI_PATH when set, else what `make setup` linked.

    Newest first. Raises ServerError when there is none.
    """
    named = os.environ.get("COMFYUI_PATH")
    folders = [Path(named)] if named else sorted((ROOT / ".comfyui").glob("*"))
    trees = {comfyui_version(folder): folder.resolve() for folder in folders}
    if not trees:
        raise ServerError("no ComfyUI here: run `make setup`, or set COMFYUI_PATH to a ComfyUI folder")
    return dict(sorted(trees.items(), key=lambda item: [int(n) for n in re.findall(r"\d+", item[0])], reverse=True))


def comfyui_version(folder: Path) -> str:
    """The version that a ComfyUI folder states. Raises ServerError when the folder is not a ComfyUI."""
    try:
        text = (folder / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        raise ServerError(f"{folder} is not a ComfyUI folder (it has no comfyui_version.py)") from None
    return re.search(r'__version__ = "([^"]+)"', text)[1]


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class ComfyServer:
    """Context manager: a headless ComfyUI with this extension, and its API.

    Args:
        comfyui_path: the ComfyUI folder (one of `comfyui_trees()`).
        base_directory: where this server keeps models, custom_nodes, input, output and user; made if missing.
        extension_root: folder to link into custom_nodes as `pixart-delta` and to load alone; None loads whatever
            base_directory/custom_nodes holds.
        extra_args: more arguments of ComfyUI's main.py.
        cpu: run on the CPU; False leaves the choice to ComfyUI.
        port: 0 takes a free one.
        python: the interpreter to run ComfyUI with.
        env: variables to add to the child's environment.
        timeout: seconds to wait for the server to answer.
    """

    def __init__(
        self,
        comfyui_path: str | os.PathLike,
        base_directory: str | os.PathLike,
        extension_root: str | os.PathLike | None = ROOT,
        extra_args: Sequence[str] = (),
        *,
        cpu: bool = True,
        port: int = 0,
        python: str | os.PathLike = sys.executable,
        env: Mapping[str, str] | None = None,
        timeout: float = 300,
    ):
        self.comfyui_path = Path(comfyui_path).resolve()
        self.base = Path(base_directory).resolve()
        self.extension_root = extension_root and Path(extension_root).resolve()
        self.extra_args, self.cpu, self.python, self.timeout = tuple(extra_args), cpu, str(python), timeout
        self.port = port or free_port()
        # Our root on the path would make our nodes/ shadow ComfyUI's nodes.py.
        self.env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | dict(env or {})
        self.log_path = self.base / "comfyui.log"
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, *_exc) -> None:
        self.stop()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Everything that this server printed so far, without colours."""
        text = self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    # --- the process ---

    def start(self) -> None:
        """Start the server and wait until it answers. Raises ServerError."""
        for name in ("custom_nodes", "user", "models", "input", "output", "temp"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                self._command(),
                cwd=self.base,
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        atexit.register(self.stop)
        try:
            self._wait_until_ready()
            if self.extension_root:
                self.import_seconds()
        except BaseException:
            self.stop()
            raise

    def _command(self) -> list[str]:
        command = [
            self.python,
            "-u",
            str(self.comfyui_path / "main.py"),
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--base-directory",
            str(self.base),
            "--user-directory",
            str(self.base / "user"),
            "--database-url",
            "sqlite:///:memory:",
            "--disable-api-nodes",
            "--disable-auto-launch",
        ]
        if self.cpu:
            command.append("--cpu")
        if self.extension_root:
            link = self.base / "custom_nodes" / FOLDER
            if not link.is_symlink():
                link.symlink_to(self.extension_root, target_is_directory=True)
            command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", FOLDER]
        return command + list(self.extra_args)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise self._error(f"ComfyUI stopped while starting (exit status {self.process.returncode})")
            with contextlib.suppress(OSError):
                self.get("/system_stats", timeout=5)
                return
            time.sleep(0.1)
        raise self._error(f"ComfyUI did not answer at {self.address} within {self.timeout:.0f} s")

    def stop(self) -> None:
        """End the server and everything it started. Safe to call twice."""
        atexit.unregister(self.stop)
        if self.process is None:
            return
        for sig, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            # The group outlives its leader while any child of it runs.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, sig)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        self.process = None

    def _error(self, message: str) -> ServerError:
        tail = "\n".join(self.log.splitlines()[-30:])
        return ServerError(f"{message}. The end of its log ({self.log_path}):\n{tail}")

    def import_seconds(self, folder: str = FOLDER) -> float:
        """Seconds (to a tenth) that ComfyUI's own import-time line gives for a custom node folder."""
        match = re.search(rf"([\d.]+) seconds( \(IMPORT FAILED\))?: .*[/\\]{re.escape(folder)}$", self.log, re.M)
        if match is None:
            raise self._error(f"ComfyUI did not try to import {folder}")
        if match[2]:
            raise self._error(f"ComfyUI could not import {folder}")
        return float(match[1])

    # --- the API ---

    def request(self, path: str, body: Any = None, timeout: float = 60) -> bytes:
        """GET, or POST `body` as JSON. Raises urllib.error.HTTPError on an error status."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        # Without a proxy handler: this is a loopback address whatever the environment says.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout) as response:
            return response.read()

    def get(self, path: str, timeout: float = 60) -> Any:
        return json.loads(self.request(path, timeout=timeout))

    def post(self, path: str, body: Any, timeout: float = 60) -> Any:
        answer = self.request(path, body, timeout)
        return json.loads(answer) if answer else None

    def object_info(self, node: str | None = None) -> dict:
        """The schemas of all nodes, or of one ({} when ComfyUI does not know it)."""
        return self.get("/object_info" + (f"/{node}" if node else ""))

    def interrupt(self) -> None:
        """Ask the running prompt to stop."""
        self.post("/interrupt", {})

    def prompt(
        self,
        graph: Mapping,
        on_event: OnEvent | None = None,
        timeout: float = 600,
        extra_data: Mapping | None = None,
    ) -> Result:
        """Run an API-format graph to its end.

        `on_event(type, data)` is called for every websocket message of this prompt while it runs; `extra_data`
        goes along with the prompt, e.g. {"preview_method": "latent2rgb"}. Failures of nodes are in `Result.errors`.

        Raises:
            ServerError: when the server dies or the time is over.
        """
        import websocket  # only the ones who run prompts need websocket-client

        client = uuid.uuid4().hex
        ws = websocket.create_connection(
            f"ws://127.0.0.1:{self.port}/ws?clientId={client}", timeout=timeout, http_no_proxy=["127.0.0.1"]
        )
        try:
            body = {"prompt": graph, "client_id": client, "extra_data": dict(extra_data or {})}
            started = time.monotonic()
            try:
                prompt_id = self.post("/prompt", body)["prompt_id"]
            except urllib.error.HTTPError as error:
                return Result(None, errors=_refusal(json.loads(error.read())))
            result = Result(prompt_id)
            self._listen(ws, result, on_event, started, timeout)
            self._finish(result)
        except (websocket.WebSocketException, OSError) as error:  # it may die between any two messages
            raise self._error(f"the connection to ComfyUI broke during the prompt ({error})") from error
        finally:
            ws.close()
        return result

    def _listen(self, ws, result: Result, on_event: OnEvent | None, started: float, timeout: float) -> None:
        """Collect a prompt's events until ComfyUI says that nothing of it is executing any more."""
        current, since = None, started
        while True:
            if time.monotonic() > started + timeout:
                raise self._error(f"the prompt did not finish within {timeout:.0f} s")
            message = ws.recv()
            now = time.monotonic()
            kind, data = _event(message)
            if kind != "preview" and data.get("prompt_id", result.prompt_id) != result.prompt_id:
                continue
            result.events.append((now - started, kind, data))
            if on_event:
                on_event(kind, data)
            if kind == "executing":
                if current is not None:
                    result.node_seconds[current] = result.node_seconds.get(current, 0.0) + now - since
                current, since = data["node"], now
                if current is None:
                    result.seconds = now - started
                    return

    def _finish(self, result: Result) -> None:
        """Fill in history, errors and images of a prompt that has ended."""
        result.history = self.get(f"/history/{result.prompt_id}")[result.prompt_id]
        for kind, data in result.history["status"]["messages"]:
            if kind == "execution_error":
                message = data["exception_message"].strip()
                result.errors.append(f"{data['node_type']} (node {data['node_id']}): {message}")
            elif kind == "execution_interrupted":
                result.interrupted = True
        for _, output in sorted(result.outputs.items(), key=lambda item: item[0].zfill(9)):
            for image in output.get("images", ()):
                result.images.append(self.request("/view?" + urllib.parse.urlencode(image)))


def _event(message: str | bytes) -> tuple[str, Any]:
    """(type, data) of a websocket message."""
    if isinstance(message, str):
        event = json.loads(message)
        return event["type"], event["data"]
    number = int.from_bytes(message[:4], "big")
    if number == 1:  # preview image: another 4 bytes tell JPEG from PNG
        return "preview", message[8:]
    if number == 4:  # the same with metadata: length, JSON, image
        return "preview", message[8 + int.from_bytes(message[4:8], "big") :]
    return f"binary {number}", {"bytes": message[4:]}


def _refusal(answer: dict) -> list[str]:
    """The error lines of a graph that ComfyUI did not accept."""
    lines = [
        f"{node['class_type']} (node {node_id}): {error['message']}: {error['details']}"
        for node_id, node in (answer.get("node_errors") or {}).items()
        for error in node["errors"]
    ]
    error = answer["error"]
    return lines or [error if isinstance(error, str) else f"{error['message']}: {error['details']}"]
