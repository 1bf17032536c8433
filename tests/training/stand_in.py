"""Stands in for training/train.py where a test is about the queue: the same run folder and requests, without torch.

`data` (of `prepare`: the last part of `input`) says what it does: "steps" takes steps until it has them; "die" ends at
step 2 without a word; "refuse" fails as the trainer does on bad data; "deaf" ignores every request; "load" stays in its
first state; "full" finds the disk full; "mute" writes no status. A `prepare` takes as many steps as its `max_tokens`.
"""

import argparse
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path

TRAIN = Path(__file__).resolve().parents[2] / "training" / "train.py"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("--config")
    parser.add_argument("--private", default="")
    options = parser.parse_args()
    runpy.run_path(str(TRAIN))  # registers the package
    from pixart_delta.training.run_dir import RunDir

    config = json.loads(Path(options.config).read_text())
    if options.command == "prepare":
        config |= {"data": Path(config["input"]).name, "steps": config["max_tokens"]}
    run, what = RunDir(config["run"], options.private).create(), config["data"]
    with (run.path / "starts").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if what == "load":
        time.sleep(60)
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append("stop"))
    with run.lock():
        run.write_config(options.command, config)
        step = json.loads((run.path / "saved").read_text()) if (run.path / "saved").exists() else 0
        if what == "refuse":
            say("error: the data is bad: make it good")
            return 1
        state = train(run, config, step, asked)
    say(state)
    return 0 if state != "failed" else 1


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def train(run, config, step, asked) -> str:
    steps, what = config["steps"], config["data"]
    while step < steps:
        if what == "die" and step == 2:
            os._exit(3)
        if what == "full" and step == 2:
            run.write_status("failed", step=step, steps=steps, message="[Errno 28] No space left on device")
            return "failed"
        step += 1
        run.log(step=step, loss=1 / step, learning_rate=1e-3)
        if what != "mute":
            run.write_status("running", step=step, steps=steps, loss=1 / step)
        say(f"step {step}")
        for name in run.requests() if what != "deaf" else ():
            say(f"took {name}")  # first: whoever sees that it was taken looks for this
            run.take(name)
            asked.append(name)
        if "stop" in asked and what != "deaf":
            break
        time.sleep(0.05)
    (run.path / "saved").write_text(str(step))
    state = "done" if step >= steps else "stopped"
    export = run.path / "exports" / "pixart.safetensors"
    if "output" not in config:
        export.touch()
    elif state == "done":
        Path(config["output"]).mkdir(exist_ok=True)
        (Path(config["output"]) / "dataset.json").write_text("{}")
    if what != "mute":
        run.write_status(state, step=step, steps=steps, export=str(export), pictures="20 of 20 pictures, 5 sizes")
    return state


if __name__ == "__main__":
    sys.exit(main())
