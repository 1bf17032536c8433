"""A run's networks as a checkpoint has them, without optimiser or data: to draw samples with and to export."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..pixart_core.convert import summary
from ..pixart_core.weightfile import CheckpointError
from .checkpoint import newest_readable, read_facts
from .config import make_config
from .contents import place_now
from .run_dir import RunDir
from .task import Task, fingerprint
from .tasks import TASKS


def restore(path: str, base: str = "") -> tuple[Task, RunDir, int]:
    """The task of a run, the run, and the step that its weights are of.

    Args:
        path: folder of the run, for its newest checkpoint, or one of its checkpoints.
        base: where the run's base is, if it was moved elsewhere than the run.

    Raises:
        ConfigError: if the base is not where it was.
        RunDirError: if there is no run.
        CheckpointError: if there is no checkpoint yet, or it is damaged or of other weights.
    """
    file = Path(path) if Path(path).is_file() else None
    run = RunDir(Path(path) if file is None else file.resolve().parents[1])
    about = run.read_config()
    if file is None:
        newest = newest_readable(run, print)
        if newest is None:
            raise CheckpointError(f"{run.path} has no checkpoint yet: wait for one, or ask for it (`save`)")
        file = newest.path
    settings = about["config"] | {"base": place_now("base", about["config"], run.path, base)}
    task = TASKS[about["command"]](make_config(about["command"], settings))
    return task, run, _fill(task, file)


def _fill(task: Task, file: Path) -> int:
    try:
        with safe_open(file, "pt") as opened:
            facts = read_facts(opened, file)
            if facts["frozen"] != fingerprint(task):
                raise ValueError(f"the weights it was trained on are not those of base {task.config.base}")
            for part, network in (("model.", task.model), ("ema.", task.ema)):
                if network is not None:
                    names = [name for name in opened.keys() if name.startswith(part)]
                    state = {name.removeprefix(part): opened.get_tensor(name) for name in names}
                    _load(network, state)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file} cannot be read as a checkpoint of this run: {error}") from error
    return facts["step"]


def _load(network, state) -> None:
    found = network.load_state_dict(state, strict=False)
    frozen = {name for name, each in network.named_parameters() if not each.requires_grad}
    wrong = [name for name in found.missing_keys if name not in frozen] + found.unexpected_keys
    if wrong:
        raise ValueError(f"its weights are others: {summary(wrong)}")
