"""What started this process beside others: torchrun, `accelerate launch`, srun or an MPI. Standard library only.

torch and accelerate read torchrun's variables alone: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Whoever
starts processes in another way gives them other names, and each process would believe to be alone; so those names are
translated before anything reads them: in the environment of the training process, which is a program of its own and
never ComfyUI's, since torch and accelerate look nowhere else.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
import zlib
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import NoReturn

from .settings import ConfigError

Environment = MutableMapping[str, str]


@dataclass(frozen=True)
class _Names:
    """How a launcher calls things; the first variable that is set counts."""

    launcher: str
    rank: str
    world: str
    local_rank: str
    local_world: str


_COUNTS = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
_OTHERS = (
    _Names("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
    _Names("mpirun (Open MPI)", *(f"OMPI_COMM_WORLD_{name}" for name in _COUNTS)),
    _Names("mpirun (MVAPICH)", *(f"MV2_COMM_WORLD_{name}" for name in _COUNTS)),
    _Names("mpirun (MPICH, Intel MPI)", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
_SAME_FOR_ALL = ("SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_KVSNAME")
"""Variables that all processes of one start have alike, and those of another start otherwise."""


def adopt(environment: Environment = os.environ) -> int:
    """Say under the names that torch reads which process this is, whoever started it.

    Returns:
        How many processes share the work.

    Raises:
        ConfigError: if several were started or asked for, but where this one stands among them is not known.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return _of_torchrun(environment)
    for names in _OTHERS:
        if int(environment.get(names.world) or 1) > 1:
            return _translate(names, environment)
    if int(environment.get("SLURM_NTASKS") or 1) > 1:
        tasks = environment["SLURM_NTASKS"]
        raise ConfigError(
            f"Slurm gives this job {tasks} tasks, but srun did not start this process, so it would train alone: start "
            "it by `srun python training/train.py …`, or ask for one task (--ntasks=1, or unset SLURM_NTASKS)"
        )
    if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
        raise ConfigError(
            "`accelerate launch` was asked for several processes but started one, as it does where it sees no GPU: add "
            "--multi_gpu (which also starts processes that compute on the CPU), use torchrun, or ask for one process"
        )
    return 1


def take_the_one_device(environment: Environment = os.environ) -> None:
    """Use the only GPU there is: a cluster shows each process its own, whatever the process's number on the host."""
    environment["LOCAL_RANK"] = "0"


def leave(code: int) -> NoReturn:
    """End this process; where it was one of several, without taking Python apart.

    DDP keeps Gloo's threads alive to the end (torch 2.14), and one that still lets go of a tensor while Python is taken
    apart aborts the process: a launcher then calls a training failed that is done and saved.
    """
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):  # as text: what is no number was refused by name before
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def alone(environment: Environment) -> dict[str, str]:
    """An environment for a process that is to work alone, whatever started the one that starts it."""
    told = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS"}
    told |= {each for names in _OTHERS for each in (names.rank, names.world, names.local_rank, names.local_world)}
    return {name: value for name, value in environment.items() if name not in told}


def _of_torchrun(environment: Environment) -> int:
    wanted = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in wanted if not environment.get(name)]
    try:
        world = int(environment.get("WORLD_SIZE", 1))
    except ValueError:
        raise ConfigError(f"WORLD_SIZE is {environment['WORLD_SIZE']!r}: a whole number is wanted") from None
    if missing and (world > 1 or environment.get("RANK", "0") != "0"):
        raise ConfigError(
            f"RANK and WORLD_SIZE say that processes share the work, but {', '.join(missing)} is not set: start them "
            "by torchrun, `accelerate launch`, srun or mpirun, or set it for each"
        )
    return world


def _translate(names: _Names, environment: Environment) -> int:
    world = int(environment[names.world])
    rank, local = environment.get(names.rank), environment.get(names.local_rank)
    if rank is None:
        raise ConfigError(
            f"{names.launcher} started {world} processes ({names.world}), but {names.rank}, which of them this one is, "
            "is not set"
        )
    on_one_host = _on_one_host(names, environment, world)
    address = environment.get("MASTER_ADDR") or ("127.0.0.1" if on_one_host else _first_host(environment))
    if not address or (local is None and not on_one_host):
        missing = (
            f"{names.local_rank} (this process's number on its host)" if address else "MASTER_ADDR (the first host)"
        )
        raise ConfigError(f"{names.launcher} started {world} processes on several hosts: set {missing} for each")
    port = 20_000 + zlib.crc32(" ".join(environment.get(name, "") for name in _SAME_FOR_ALL).encode()) % 20_000
    environment.update(RANK=rank, WORLD_SIZE=str(world), LOCAL_RANK=local or rank, MASTER_ADDR=address)
    environment.setdefault("MASTER_PORT", str(port))
    return world


def _on_one_host(names: _Names, environment: Environment, world: int) -> bool:
    """Whether all processes are on this host, as far as the launcher tells it."""
    if names.launcher == "srun" and "SLURM_STEP_NUM_NODES" in environment:
        return environment["SLURM_STEP_NUM_NODES"] == "1"
    if names.local_world in environment:
        return int(environment[names.local_world]) == world
    return environment.get(names.local_rank, environment[names.rank]) == environment[names.rank]


def _first_host(environment: Environment) -> str:
    """The first of Slurm's hosts, which are listed as node[03-05,09],other1; empty where there is no list."""
    listed = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or ""
    found = re.match(r"([^,\[]+)(?:\[(\w+))?", listed)
    return f"{found[1]}{found[2] or ''}" if found else ""
