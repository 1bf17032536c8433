"""Processes: start one that outlives us, know it again after a restart, end it.

A process number alone is no proof, since numbers are used again; with its start time, counted by the kernel and not by
a clock that people set, it is one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ..launcher import alone

_WAY = 5
"""Levels of priority by which a job gives way."""


def spawn(arguments: list[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own (Ctrl-C in the server's terminal does not reach it).

    It gives way: whoever makes pictures, or only looks at the panel, does not wait for a core that it holds.
    """
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        flags |= subprocess.BELOW_NORMAL_PRIORITY_CLASS
    else:
        flags = 0
    with log.open("ab") as out:
        child = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=dict(environment),
            cwd=log.parent,
            creationflags=flags,
            start_new_session=sys.platform != "win32",
        )
    if sys.platform != "win32":
        _give_way(child.pid)
    return child


def _give_way(pid: int) -> None:
    """Lower the priority of a process and of the session that it leads.

    By 5 of the 20 levels: beside one that wants a core, a third of its weight, a quarter of the core. At 10 it is a
    tenth of it, and beside a few others a training comes to a standstill.
    """
    with contextlib.suppress(OSError):  # it may have ended already
        os.setpriority(os.PRIO_PROCESS, pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + _WAY))
    # Linux shares the cores out between sessions first, and a process's own priority counts only within its session.
    with contextlib.suppress(OSError):  # another system, or one that is set up otherwise
        try:
            Path(f"/proc/{pid}/autogroup").write_text(str(_WAY), "ascii")
        except BlockingIOError:  # who is not root may do it ten times a second
            time.sleep(0.15)
            Path(f"/proc/{pid}/autogroup").write_text(str(_WAY), "ascii")


_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
"""Variable by which a process is told the devices that it may see, and in which order."""


def machine_wide(kind: str, number: int) -> int:
    """The number that a device of ours has on the machine, where the variable says it in plain numbers.

    Two servers that see one device each both call theirs cuda:0; their jobs lie in one queue.
    """
    visible = _plain_numbers(os.environ.get(_VISIBLE.get(kind, ""), ""))
    return visible[number] if number < len(visible) else number


def environment(device: str) -> dict[str, str]:
    """Our variables, with those that leave a process the one device that its job is for.

    Args:
        device: as in `Job.device`: its number is the machine's.
    """
    kind, _, number = device.partition(":")
    values = {key: value for key, value in alone(os.environ).items() if key != "PYTHONPATH"}
    values["PYTHONIOENCODING"] = "utf-8"
    if kind == "cpu":
        values |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        # Half of the cores stay ComfyUI's. Threads that wait must not spin on the others': steps then take a hundred
        # times as long on a busy machine.
        values.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))
        values.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    elif kind in _VISIBLE:
        variable = _VISIBLE[kind]
        named = [each for each in values.get(variable, "").split(",") if each]
        # Devices that are named otherwise (GPU-1234…) are counted as we see them.
        counted = not _plain_numbers(values.get(variable, "")) and int(number) < len(named)
        values[variable] = named[int(number)] if counted else number
        if "HIP_VISIBLE_DEVICES" in values and values["HIP_VISIBLE_DEVICES"] == os.environ.get(variable):
            values["HIP_VISIBLE_DEVICES"] = values[variable]  # ComfyUI's --cuda-device sets both, the second for ROCm
    return values


def _plain_numbers(listed: str) -> list[int]:
    """The devices of such a variable; none where one is not a plain number."""
    parts = [part.strip() for part in listed.split(",") if part.strip()]
    return [int(part) for part in parts] if all(part.isdecimal() for part in parts) else []


def identity(pid: int) -> str | None:
    """What no other process of this number has, or None when none runs (a zombie does not run)."""
    if sys.platform == "win32":
        return _windows_identity(pid)
    if Path("/proc/self/stat").exists():
        try:
            # The name, in brackets, may hold anything; state is the first field after it, start time the twentieth.
            fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"
    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True)
    state, _, started = answer.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()


def runs(pid: int | None, known: str) -> bool:
    """Whether the very process that was seen as `known` runs."""
    return pid is not None and known != "" and identity(pid) == known


def find(argument: str) -> int | None:
    """The process that was started with this argument, if there is one and this system lists arguments."""
    if Path("/proc/self/stat").exists():
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and os.fsencode(argument) in (folder / "cmdline").read_bytes().split(b"\0"):
                    return int(folder.name)
    elif sys.platform != "win32":
        for line in subprocess.run(["ps", "-axo", "pid=,command="], capture_output=True, text=True).stdout.splitlines():
            pid, _, command = line.strip().partition(" ")
            if argument in command and int(pid) != os.getpid():
                return int(pid)
    return None


def lists_arguments() -> bool:
    """Whether `find` can be believed when it finds nothing."""
    return sys.platform != "win32"


def end(pid: int, force: bool = False) -> None:
    """Ask a process of `spawn`, and what it started, to end; with force, end them unsaved."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            os.kill(pid, signal.SIGTERM)  # Windows has no gentle way; requests go by file
        elif force:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM)


def _windows_identity(pid: int) -> str | None:
    import ctypes
    from ctypes import wintypes

    if sys.platform != "win32":
        return None
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.OpenProcess.restype = wintypes.HANDLE
    handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
    if not handle:
        return None
    try:
        created, ended, system, user = (wintypes.FILETIME() for _ in range(4))
        code = wintypes.DWORD()
        kernel.GetExitCodeProcess(wintypes.HANDLE(handle), ctypes.byref(code))
        kernel.GetProcessTimes(
            wintypes.HANDLE(handle), *(ctypes.byref(each) for each in (created, ended, system, user))
        )
        running = code.value == 259  # STILL_ACTIVE
        return f"{created.dwHighDateTime}:{created.dwLowDateTime}" if running else None
    finally:
        kernel.CloseHandle(wintypes.HANDLE(handle))
