"""HTTP under /pixart_delta/: trainings listed, looked into, started and asked to do things.

    GET  jobs                       all jobs
    GET  jobs/ID                    one, with its settings
    GET  jobs/ID/metrics?since=N    columns for a chart, thinned
    GET  jobs/ID/samples            grids of pictures there are
    GET  jobs/ID/samples/NAME       one of them
    GET  jobs/ID/log                end of what its process printed
    POST jobs                       {"command", "settings", "name"}: queue one
    GET  form                       settings of each training, and what may be chosen: for a form
    POST form                       {"command", "settings", "name", "check", "recipe"}: the same checks as a training
                                    node's, then queue it; "check": true only says what it will take; "recipe": a name
                                    of those in GET form, or "" for none
    POST jobs/ID/rename             {"name"}
    POST jobs/ID/open               show its folder on this machine's screen
    POST jobs/ID/ACTION             start, stop, pause, resume, retry, move {"before"}, sample, save, kill, delete

Answers are JSON; an error is {"error": message} with a fitting status. All work is done in threads of our own: the loop
that serves ComfyUI never waits for a disk. Where ComfyUI listens on this machine alone, only requests to this machine's
own names are served: another name that leads here (DNS rebinding) is a web page's way around the browser.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import json
import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from aiohttp import ClientPayloadError, web
from comfy.cli_args import args
from server import PromptServer

from ...pixart_core.errors import CheckpointError
from ...training.config import TRAININGS, ConfigError, TrainConfig
from ...training.estimate import DataError
from ...training.jobs import JobError, NoSuchJob, plain_text, read_metrics
from ...training.run_dir import RunDirError
from . import queue as jobs
from .desktop import show_folder
from .paths import PathError, checked_settings, listed
from .start import form, start_form

log = logging.getLogger(__name__)

HOSTS_VARIABLE = "PIXART_DELTA_HOSTS"
"""Environment variable with which who runs the server lists other names of it, separated by commas."""
BODY_LIMIT = 64 * 1024
_LOG_LIMIT = 64 * 1024
_PICTURE_LIMIT = 64 * 1024 * 1024
"""Bytes of a grid of samples: one of 16 pictures of 1024 px has half of it."""
_PROMPTS_LIMIT = 256 * 1024
_SAMPLES_LISTED = 500
_SAMPLE = re.compile(r"step_\d{1,12}\.png")
_NO_SNIFFING = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}


class Refused(Exception):
    """A request that is not served, with its HTTP status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def register() -> bool:
    """Add the routes to ComfyUI's server, before it starts; False where ComfyUI is a library without a server."""
    if getattr(PromptServer, "instance", None) is None:
        return False
    routes = PromptServer.instance.routes
    for path, work in (
        ("/form", _form),
        ("/jobs", _list),
        ("/jobs/{id}", _one),
        ("/jobs/{id}/metrics", _metrics),
        ("/jobs/{id}/samples", _samples),
        ("/jobs/{id}/samples/{name}", _sample),
        ("/jobs/{id}/log", _log),
    ):
        routes.get("/pixart_delta" + path)(_handler(work))
    for path, work in (
        ("/form", _start),
        ("/jobs", _create),
        ("/jobs/{id}/rename", _rename),
        ("/jobs/{id}/open", _open),
        ("/jobs/{id}/{action}", _act),  # after those that are no action of the queue
    ):
        routes.post("/pixart_delta" + path)(_handler(work, changes=True))
    return True


# --- what is answered; in a thread, from the parts of the path, the query and the body ---


def _list(path: dict, query: dict, body: Any) -> Any:
    return _response(f'{{"jobs": [{", ".join(jobs.view_texts(jobs.queue().jobs()).values())}]}}')


def _one(path: dict, query: dict, body: Any) -> Any:
    job = _job(path)
    return {**jobs.view(job), "settings": job.settings}


def _metrics(path: dict, query: dict, body: Any) -> Any:
    job = _job(path)
    return read_metrics(
        jobs.queue().run_dir(job).path / "metrics.jsonl",
        _whole(query, "since", -1, -1),
        _whole(query, "points", 1000, 2, 5000),
    )


def _samples(path: dict, query: dict, body: Any) -> Any:
    listed = jobs.queue().run_dir(_job(path)).samples()[-_SAMPLES_LISTED:]
    samples = [
        {"name": file.name, "step": int(file.stem[5:]), "prompts": _prompts(file), "time": file.stat().st_mtime}
        for file in listed
        if _SAMPLE.fullmatch(file.name)
    ]
    return {"samples": samples}  # with their times: after a retry one may be drawn anew


def _sample(path: dict, query: dict, body: Any) -> web.Response:
    folder = jobs.queue().run_dir(_job(path)).path / "samples"
    file = folder / path["name"]
    plain = _SAMPLE.fullmatch(path["name"]) and not folder.is_symlink() and not file.is_symlink() and file.is_file()
    if not plain:
        raise Refused(404, f"there is no sample {path['name']!r}")
    with file.open("rb") as opened:
        picture = opened.read(_PICTURE_LIMIT + 1)
    if len(picture) > _PICTURE_LIMIT:
        raise Refused(413, f"the sample {file.name} has more than {_PICTURE_LIMIT} bytes: open it in its folder")
    return web.Response(body=picture, content_type="image/png", headers=_NO_SNIFFING)


def _log(path: dict, query: dict, body: Any) -> Any:
    job, count = _job(path), _whole(query, "lines", 200, 1, 2000)
    try:
        with jobs.queue().log_file(job).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LOG_LIMIT))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return {"text": ""}
    text = text if size <= _LOG_LIMIT else text.partition("\n")[2]
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return {"text": plain_text("\n".join(lines[-count:]))}


def _create(path: dict, query: dict, body: Any) -> Any:
    command, settings, name = body.get("command"), body.get("settings"), body.get("name", "")
    kind = _training(command)
    if not isinstance(settings, dict) or not isinstance(name, str) or set(body) - {"command", "settings", "name"}:
        raise Refused(400, 'a job is {"command": text, "settings": object, "name": text}')
    job = jobs.queue().create(checked_settings(kind, settings, listed(settings)), name, jobs.device())
    jobs.watcher().wake()
    return jobs.view(job)


def _form(path: dict, query: dict, body: Any) -> Any:
    return form()


def _start(path: dict, query: dict, body: Any) -> Any:
    empty = {"command": "", "settings": {}, "name": "", "check": False, "recipe": ""}
    given = empty | body
    if set(body) - set(empty) or any(not isinstance(given[key], type(value)) for key, value in empty.items()):
        raise Refused(
            400, 'a form is {"command": text, "settings": object, "name": text, "check": true or false, "recipe": text}'
        )
    command, settings, name, check, recipe = (given[key] for key in empty)
    _training(command)
    try:
        job, text = start_form(command, name, settings, check, recipe)
    except CheckpointError as error:
        raise Refused(400, str(error)) from error
    return {"job": job, "text": text}


def _rename(path: dict, query: dict, body: Any) -> Any:
    if not isinstance(body.get("name"), str):
        raise Refused(400, "name is a text")
    job = jobs.queue().rename(path["id"], body["name"])
    jobs.watcher().wake()
    return jobs.view(job)


def _open(path: dict, query: dict, body: Any) -> Any:
    """Only the folder of a job, found by its id, and only where the person sits at this machine."""
    folder = jobs.queue().run_dir(_job(path)).path
    return {"folder": str(folder), "opened": _all_on_loopback() and show_folder(folder)}


def _act(path: dict, query: dict, body: Any) -> Any:
    before = body.get("before", "")
    if not isinstance(before, str):
        raise Refused(400, "before is the id of a job")
    _job(path)
    job = jobs.queue().act(path["id"], path["action"], before)
    jobs.watcher().wake()
    return jobs.view(job) if job else {"id": path["id"], "deleted": True}


# --- around it ---


def _handler(work: Callable[[dict, dict, Any], Any], changes: bool = False) -> Callable:
    """An aiohttp handler that runs `work` in a thread and turns what it raises into an answer."""

    @functools.wraps(work)
    async def handle(request: web.Request) -> web.Response:
        try:
            _check_host(request)
            _check_encoding(request)
            body = await _body(request) if changes else None
            answer = asyncio.get_running_loop().run_in_executor(
                _threads(), _answer, work, dict(request.match_info), dict(request.query), body
            )
            return await answer
        except Refused as error:
            return _error(error.status, str(error))

    return handle


def _answer(work: Callable, path: dict, query: dict, body: Any) -> web.Response:
    try:
        answer = work(path, query, body)
    except Refused as error:
        return _error(error.status, str(error))
    except NoSuchJob as error:
        return _error(404, str(error))
    except (JobError, RunDirError) as error:
        return _error(409, str(error))
    except (ConfigError, PathError, CheckpointError, DataError, ImportError) as error:
        return _error(400, str(error))
    except OSError as error:
        return _error(507 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 500, str(error))
    except Exception as error:
        log.exception("a request for a training failed")
        return _error(500, f"{type(error).__name__}: {error}")
    return answer if isinstance(answer, web.Response) else _json(answer)


def _json(values: Any, status: int = 200) -> web.Response:
    return _response(json.dumps(values, allow_nan=False), status)


def _response(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="application/json", headers=_NO_SNIFFING)


def _error(status: int, message: str) -> web.Response:
    return _json({"error": message}, status)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4, "pixart_delta routes")


async def _body(request: web.Request) -> dict:
    """The JSON object of a request that changes something. Only our own page may send one."""
    if not _same_origin(request):
        raise Refused(403, "requests from other sites are not served")
    if request.content_type != "application/json":
        raise Refused(415, "send JSON (Content-Type: application/json)")
    try:
        body = json.loads((await _bytes(request)).decode() or "{}", parse_constant=_refuse_constant)
        json.dumps(body, ensure_ascii=False).encode()  # a lone surrogate is no character, and no file has such a name
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the request is not JSON in UTF-8: {error}") from None
    if not isinstance(body, dict):
        raise Refused(400, "the request is not a JSON object")
    return body


async def _bytes(request: web.Request) -> bytes:
    data = b""
    try:
        async for part in request.content.iter_chunked(BODY_LIMIT):
            data += part
            if len(data) > BODY_LIMIT:
                raise Refused(413, f"a request has at most {BODY_LIMIT} bytes")
    except (ClientPayloadError, web.RequestPayloadError, ConnectionError) as error:
        log.warning("a request for a training broke off: %s %.200s", type(error).__name__, error)
        raise Refused(400, "the request broke off") from None
    return data


def _check_encoding(request: web.Request) -> None:
    try:
        unquote_to_bytes(request.raw_path.encode("utf-8", "surrogateescape")).decode()
    except ValueError as error:
        raise Refused(400, f"the address is not UTF-8: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _check_host(request: web.Request) -> None:
    """Raises Refused where the listener is this machine's own and the name that was asked for is not."""
    host = request.headers.get("Host")
    if host is None or not _on_loopback(request):  # programs may leave it out, browsers never do
        return
    listed = [each.strip().lower().rstrip(".") for each in os.environ.get(HOSTS_VARIABLE, "").split(",")]
    name = _host_name(host)
    if name != "localhost" and not _is_loopback(name) and (not name or name not in listed):
        raise Refused(
            403,
            f"ComfyUI listens on this machine alone, and {host[:100]!r} is none of its names. Is it meant to be, as "
            f"behind a reverse proxy or a tunnel? Then start ComfyUI with the environment variable {HOSTS_VARIABLE} "
            "listing it",
        )


def _all_on_loopback() -> bool:
    """Whether ComfyUI listens on this machine's own addresses alone."""
    return all(_is_loopback(address.strip()) for address in args.listen.split(","))


def _on_loopback(request: web.Request) -> bool:
    """Whether the request came in at an address that ComfyUI was told to listen on, and that is the machine's own."""
    everywhere = any(address.strip() in ("", "0.0.0.0", "::") for address in args.listen.split(","))
    here = request.transport.get_extra_info("sockname") if request.transport else None
    return not everywhere and isinstance(here, tuple) and _is_loopback(here[0])


def _host_name(host: str) -> str:
    """The name of a Host header, without the port; empty if it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _same_origin(request: web.Request) -> bool:
    """What the browser says about where a request comes from; programs, which say nothing, are not kept out."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        return site in ("same-origin", "none")
    return origin is None or urlsplit(origin).netloc.lower() == request.headers.get("Host", "").lower()


def _training(command: Any) -> type[TrainConfig]:
    if command not in TRAININGS:
        raise Refused(400, f"no training {command!r}: {', '.join(TRAININGS)}")
    return TRAININGS[command]


def _job(path: dict):
    return jobs.queue().job(path["id"])


def _whole(query: dict, name: str, default: int, low: int, high: int = 2**53) -> int:
    text = query.get(name, str(default))
    if not re.fullmatch(r"-?\d{1,15}", text) or not low <= int(text) <= high:
        raise Refused(400, f"{name} is {text!r}: a whole number from {low} to {high} is wanted")
    return int(text)


def _prompts(file: Path) -> list[str]:
    try:
        with file.with_suffix(".json").open("rb") as opened:
            prompts = json.loads(opened.read(_PROMPTS_LIMIT))["prompts"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [str(prompt)[:500] for prompt in prompts[:64]] if isinstance(prompts, list) else []
