"""A queue for tests, and how to have its jobs do something."""

import time
from pathlib import Path

from pixart_delta.training.config import FinetuneConfig, PrepareConfig

HERE = Path(__file__).resolve().parent


def finetune(data="steps", **values):
    return FinetuneConfig.make({"run": "the queue's", "data": data, "base": "b", **values})


def dataset(**values):
    return PrepareConfig.make({"output": "the queue's", **values})


def add(queue, data="steps", steps=10_000, models="", **more):
    return queue.create(finetune(data, steps=steps, models=models), **more)


def add_dataset(queue, what="steps", pictures=10_000, **more):
    return queue.create(dataset(input=f"/pictures/{what}", max_tokens=pictures), **more)


def until(queue, job_id, *states, ticking=True):
    """Tick until the job is in one of the states."""
    deadline = time.monotonic() + 500
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
