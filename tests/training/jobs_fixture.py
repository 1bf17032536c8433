"""A queue for tests, and how to have its jobs do something."""

import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def add(queue, data="steps", steps=10_000, models="", **more):
    return queue.create("finetune", {"data": data, "base": "b", "steps": steps, "models": models}, **more)


def add_dataset(queue, what="steps", pictures=10_000, **more):
    return queue.create("prepare", {"input": f"/pictures/{what}", "max_tokens": pictures}, **more)


def until(queue, job_id, *states, ticking=True):
    """Tick until the job is in one of the states."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if ticking:
            queue.tick()
        found = queue.job(job_id)
        if found.state in states:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{found.state} ({found.reason}), not {states}")


def running(queue, how=add, **more):
    return until(queue, how(queue, **more).id, "running")


def starts(queue, job_id) -> list[int]:
    return [int(line) for line in (queue.root / job_id / "starts").read_text().split()]
