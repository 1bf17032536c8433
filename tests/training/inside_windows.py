"""As much of Windows as can be had elsewhere: `python inside_windows.py FOLDER {jobs,train}`, see test_windows.py.

Nothing that Windows' Python lacks is there for our modules: fcntl, resource, sessions, priorities, SIGKILL … Locks are
those of `msvcrt`, made of the system's own. What the system itself does otherwise (open files that cannot be replaced,
drive letters, process handles) this does not show.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EARLIER = ROOT / "tests" / "earlier" / "v87a0225"
LACKING = {
    os: (
        "setsid setpgid getpgid killpg nice getpriority setpriority geteuid getuid getegid fork register_at_fork "
        "waitid mkfifo sched_getaffinity sched_setaffinity getloadavg O_DIRECTORY uname chown preadv"
    ).split(),
    signal: (
        "SIGKILL SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGALRM SIGSTOP pthread_sigmask sigwaitinfo alarm setitimer"
    ).split(),
}
MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "posix_ipc")


def take_away() -> None:
    """Call it when the standard library's and others' modules are imported, for which this is no Windows."""
    import fcntl

    lock = types.ModuleType("msvcrt")
    lock.LK_NBLCK = 2
    lock.locking = lambda handle, _mode, _count: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    sys.modules["msvcrt"] = lock
    for name in MODULES:
        sys.modules[name] = None
    for module, names in LACKING.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for name in ("CREATE_NEW_PROCESS_GROUP", "CREATE_NO_WINDOW", "BELOW_NORMAL_PRIORITY_CLASS"):
        setattr(subprocess, name, 0)
    sys.platform = "win32"


def until(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def jobs(folder: Path) -> None:
    """A queue with the stand-in as its trainer: started, asked, stopped, killed, deleted."""
    from pixart_delta.training.config import FinetuneConfig
    from pixart_delta.training.jobs import Queue, runner

    runner.TRAIN = Path(__file__).with_name("stand_in.py")
    queue = Queue(folder / "jobs", folder / "records")
    config = FinetuneConfig.make({"run": "the queue's", "data": "steps", "base": "b", "steps": 10_000})

    def state(job):
        queue.tick()
        return queue.job(job.id).state

    first, second = (queue.create(config, name) for name in ("CON", "nul."))
    until(lambda: state(first) == "running")
    assert state(second) == "queued"
    queue.act(first.id, "save")
    until(lambda: not queue.run_dir(first).requests())
    queue.act(first.id, "stop")
    until(lambda: state(first) == "stopped")
    until(lambda: state(second) == "running")
    queue.act(second.id, "kill")
    until(lambda: state(second) in ("paused", "failed"))
    queue.act(first.id, "delete")
    assert [job.id for job in queue.jobs()] == [second.id] and not (folder / "jobs" / first.id).exists()


def train(folder: Path) -> None:
    """A run of an earlier version, resumed to its end."""
    from pixart_delta.training.config import make_config
    from pixart_delta.training.loop import train
    from pixart_delta.training.run_dir import RunDir, RunDirError

    old = folder / "old"
    shutil.copytree(EARLIER, old)
    for file in (old / "run").glob("*.json"):
        file.write_text(file.read_text("utf-8").replace("/old/", f"{old.as_posix()}/"), "utf-8")
    run = RunDir(old / "run")
    kept = run.read_config()
    train(make_config(kept["command"], {**kept["config"], "workers": 0}))
    assert run.read_status()["state"] == "done" and Path(run.read_status()["export"]).is_file()
    assert not run.is_running()
    with run.lock():
        assert run.is_running()
        try:
            with run.lock(patience=0.1):
                raise AssertionError("two hold it")
        except RunDirError:
            pass


def main() -> None:
    spec = importlib.util.spec_from_file_location("train", ROOT / "training" / "train.py")
    register = importlib.util.module_from_spec(spec)
    if sys.argv[2] == "train":
        import accelerate  # noqa: F401
        import torch.utils.tensorboard  # noqa: F401
        import webdataset  # noqa: F401
    import asyncio  # noqa: F401
    import concurrent.futures.thread  # noqa: F401
    import multiprocessing  # noqa: F401

    import psutil

    take_away()
    spec.loader.exec_module(register)
    from pixart_delta.training.jobs import process

    def identity(pid):  # Windows' own answers only there
        with contextlib.suppress(psutil.NoSuchProcess):
            return (
                None if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE else str(psutil.Process(pid).create_time())
            )

    process._windows_identity = identity
    {"jobs": jobs, "train": train}[sys.argv[2]](Path(sys.argv[1]))
    sys.stdout.write("ok\n")


if __name__ == "__main__":
    main()
