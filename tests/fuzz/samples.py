"""What the fuzzer starts from: a small good file or folder of every kind that is read, and what reads it.

Each reader does what a user would do next, so that damage which loading lets pass shows: it runs the model, applies the
LoRA, saves in the other layout, draws a batch.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests import conftest  # noqa: F401  registers the root folder as pixart_delta

# isort: split
from pixart_delta import pixart_core as pc
from pixart_delta.pixart_core import convert
from pixart_delta.pixart_core.checkpoint import load_controlnet, save_controlnet
from pixart_delta.pixart_core.delta import apply_lora
from pixart_delta.pixart_core.hed import HED, load_hed
from pixart_delta.pixart_core.lora import load_lora
from pixart_delta.pixart_core.text import TextEncoder
from pixart_delta.pixart_core.vae import decode, load_vae
from pixart_delta.pixart_core.weightfile import CheckpointError
from pixart_delta.training.config import load_config
from pixart_delta.training.data import FeatureDataset
from pixart_delta.training.data.shards import DataError
from pixart_delta.training.jobs import Queue
from pixart_delta.training.jobs.job import Job, JobError, write_job
from pixart_delta.training.prepare.sources import read_sources
from pixart_delta.training.run_dir import RunDir, RunDirError
from pixart_delta.training.settings import ConfigError

from tests.core.checkpoint_fixture import randomized
from tests.fixtures_nano import make_text_encoder, make_vae
from tests.training.shards_fixture import make_features

CONFIG = pc.PixArtConfig(
    input_size=8, hidden_size=24, depth=2, num_heads=2, caption_channels=8, model_max_length=4, interpolation_scale=1.0
)


@dataclass(frozen=True)
class Sample:
    """A good input and its reader."""

    make: Callable[[Path], None]
    """Writes it into an empty folder."""
    read: Callable[[Path], object]
    """Reads it from there; may end in `errors`, and in nothing else."""
    errors: tuple[type[Exception], ...] = (CheckpointError,)
    only: str = "*"
    """Which of its files are mutated."""
    names_file: bool = True
    """Whether errors have to name the file; those of settings name the setting."""


def model():
    return randomized(pc.PixArt(CONFIG))


def run(network) -> None:
    size = min(network.config.input_size, 16)
    channels = network.config.caption_channels
    with torch.no_grad():
        network(torch.zeros(1, network.config.in_channels, size, size), torch.tensor([9]), torch.zeros(1, 2, channels))


def read_model(path: Path, config=None) -> None:
    pc.inspect_file(path)
    network = pc.load_pixart(path, dtype=torch.float32, config=config)
    run(network)
    folder = path.parent / "saved"
    pc.save_pixart(network, folder, layout="diffusers")
    pc.load_pixart(folder)


def read_control(path: Path) -> None:
    pc.inspect_file(path)
    load_controlnet(path, config=CONFIG)


def read_lora(path: Path) -> None:
    lora = load_lora(path)
    apply_lora(model(), lora, 0.5)
    lora.to_state_dict()


def read_vae(folder: Path) -> None:
    try:
        decode(load_vae(folder), torch.zeros(1, 4, 2, 2))
    except ValueError as error:  # of damaged weights the first picture tells
        if "NaN" not in str(error):
            raise


def read_text(folder: Path) -> None:
    try:
        TextEncoder.from_pretrained(folder, dtype=torch.float32).encode(["a house", "", "日本 <extra_id_0>"])
    except ValueError as error:
        if "NaN" not in str(error):
            raise


def read_run(folder: Path) -> None:
    run = RunDir(folder)
    run.read_config(), run.read_status(), run.metrics()


def read_features(folder: Path) -> None:
    data = FeatureDataset(folder)
    data.examples(2, hint=True)
    list(itertools.islice(data.batches(3, seed=1, hint=True), 3))


def training_file(state: dict, path: Path, zipped: bool = True) -> None:
    """As the authors' trainer saves it."""
    more = {"epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]}}
    torch.save({"state_dict": state, **more}, path, _use_new_zipfile_serialization=zipped)


def lora_state(prefix: str = "transformer.", ends=(".lora_A.weight", ".lora_B.weight"), join: str = ".") -> dict:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for module in ("attn1.to_q", "attn1.to_k", "attn2.to_v", "ff.net.2"):
        stem = prefix + f"transformer_blocks.1.{module}".replace(".", join)
        columns = 96 if module.startswith("ff") else 24
        state[stem + ends[0]] = torch.randn(2, columns, generator=generator)
        state[stem + ends[1]] = torch.randn(24, 2, generator=generator)
    return state


def make_peft(folder: Path) -> None:
    save_file(lora_state("base_model.model."), folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"to_q": 8}, "use_rslora": False}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": False, "target_modules": ["to_q"]}))


def make_kohya(folder: Path) -> None:
    state = lora_state("lora_transformer_", (".lora_down.weight", ".lora_up.weight"), "_")
    alphas = {name.replace(".lora_down.weight", ".alpha"): torch.tensor(2.0) for name in state if "down" in name}
    save_file(state | alphas, folder / "lora.safetensors", {"ss_network_dim": "2"})


def make_diffusers_lora(folder: Path) -> None:
    about = {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 4})}
    save_file(lora_state(), folder / "lora.safetensors", about)


def make_sharded(folder: Path) -> None:
    pc.save_pixart(model(), folder, layout="diffusers", max_shard_size=40_000)


def make_pipeline(folder: Path) -> None:
    pc.save_pixart(model(), folder / "transformer", layout="diffusers")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline"}))


def make_diffusers(folder: Path) -> None:
    """As diffusers saves it: only config.json describes it."""
    pc.save_pixart(model(), folder, layout="diffusers")
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file), file)


def control():
    return randomized(pc.ControlNetTransformer(CONFIG, 1))


def make_joint(folder: Path) -> None:
    state = {f"base_model.{name}": value for name, value in model().state_dict().items()}
    training_file(state | dict(control().state_dict()), folder / "joint.pth")


def make_example_control(folder: Path) -> None:
    state = convert.authors_to_diffusers(control().state_dict())
    save_file({name: value.clone() for name, value in state.items()}, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "PixArtControlNetAdapterModel", "num_layers": 1}))


def make_old_text_encoder(folder: Path) -> None:
    """Weights as a pickle, the tokenizer as a SentencePiece model."""
    make_text_encoder(folder, width=16)
    file = folder / "text_encoder" / "model.safetensors"
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    for other in (folder / "tokenizer").glob("*.json"):
        other.unlink()


def make_kl(folder: Path) -> None:
    make_vae(folder, kind="kl")


def make_features_here(folder: Path) -> None:
    make_features(folder / "new", buckets={(16, 16): 4, (16, 32): 3}, width=4, tokens=(3,), shard_size=3)
    for file in (folder / "new").iterdir():
        shutil.move(file, folder)
    (folder / "new").rmdir()


def make_recipe(folder: Path) -> None:
    values = {"run": "r", "data": "d", "base": "b", "steps": 5, "learning_rate": 1e-4, "loss": "huber"}
    (folder / "recipe.json").write_text(json.dumps(values | {"w_embedding": True, "compile": False, "w_min": 3.0}))


def make_run(folder: Path) -> None:
    run = RunDir(folder / "run")
    run.create().write_config("lcd", {"run": "r", "data": "d", "base": "b"})
    run.write_status("running", step=3, steps=9, loss=0.5)
    for step in range(4):
        run.log(step=step, loss=0.5, learning_rate=1e-4)


def make_job(folder: Path) -> None:
    asked = {"run": "r", "data": "d", "base": "b", "learning_rate": 1e-4, "steps": 9}
    result = {"state": "stopped", "step": 3, "steps": 9, "loss": 0.5}
    job = Job("job", "lcd", asked, "cpu", "a night", "paused", "paused at step 3", 1.0, 1e9, result=result, attempt=1)
    (folder / "records" / "job").mkdir(parents=True)
    write_job(folder / "records" / "job", job)


def read_jobs(folder: Path) -> None:
    """Listed as the panel does, where a damaged one is seen with the reason, and checked as before a start."""
    queue = Queue(folder / "jobs", folder / "records")
    for job in queue.jobs():
        json.dumps([dataclasses.asdict(job), queue.actions(job), queue.status(job)], allow_nan=False)
        if "cannot be read" in job.reason:
            raise JobError(job.reason)
        queue.checked(job)


def make_list(folder: Path, name: str) -> None:
    rows = [{"file_name": f"{index}.png", "text": f"picture, {index}"} for index in range(3)]
    if name.endswith("csv"):
        text = "file_name,text\n" + "".join(f'{row["file_name"]},"{row["text"]}"\n' for row in rows)
    elif name.endswith("jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        text = json.dumps([{"path": row["file_name"], "prompt": row["text"], "height": 8, "width": 8} for row in rows])
    (folder / name).write_text(text)


def in_file(write: Callable, name: str) -> Callable[[Path], None]:
    return lambda folder: write(folder / name)


LISTS = ("metadata.jsonl", "metadata.csv", "data_info.json")
SAMPLES: dict[str, Sample] = {
    "model": Sample(
        in_file(lambda path: pc.save_pixart(model(), path), "m.safetensors"), lambda f: read_model(f / "m.safetensors")
    ),
    "model.pth": Sample(
        in_file(lambda path: training_file(model().state_dict(), path), "m.pth"),
        lambda f: read_model(f / "m.pth", CONFIG),
    ),
    "model.pth before 1.6": Sample(
        in_file(lambda path: training_file(model().state_dict(), path, zipped=False), "m.pth"),
        lambda f: read_model(f / "m.pth", CONFIG),
    ),
    "diffusers folder": Sample(make_diffusers, read_model),
    "shards": Sample(make_sharded, read_model),
    "pipeline folder": Sample(make_pipeline, read_model),
    "control": Sample(
        in_file(lambda path: save_controlnet(control(), path), "c.safetensors"),
        lambda f: load_controlnet(f / "c.safetensors"),
    ),
    "joint control": Sample(make_joint, lambda f: read_control(f / "joint.pth")),
    "example control": Sample(make_example_control, read_control),
    "lora": Sample(make_diffusers_lora, lambda f: read_lora(f / "lora.safetensors")),
    "lora of kohya": Sample(make_kohya, lambda f: read_lora(f / "lora.safetensors")),
    "lora of peft": Sample(make_peft, read_lora),
    "lora.pth": Sample(in_file(lambda p: torch.save(lora_state(), p), "lora.pth"), lambda f: read_lora(f / "lora.pth")),
    "tiny autoencoder": Sample(make_vae, read_vae),
    "autoencoder": Sample(make_kl, read_vae),
    "text encoder": Sample(lambda f: make_text_encoder(f, width=16), read_text),
    "text encoder, old": Sample(make_old_text_encoder, read_text),
    "tokenizer": Sample(lambda f: make_text_encoder(f, width=16), read_text, only="tokenizer/*"),
    "hed": Sample(
        in_file(lambda p: torch.save(randomized(HED((4, 4, 4, 4, 4))).state_dict(), p), "hed.pth"),
        lambda f: load_hed(f / "hed.pth"),
    ),
    "recipe": Sample(
        make_recipe, lambda f: load_config("lcd", str(f / "recipe.json"), []), (ConfigError,), names_file=False
    ),
    "run": Sample(make_run, lambda f: read_run(f / "run"), (RunDirError,), only="run/*.json*"),
    "job": Sample(make_job, read_jobs, (JobError, ConfigError), names_file=False),
    "features": Sample(make_features_here, read_features, (DataError,)),
    **{
        name: Sample(lambda f, name=name: make_list(f, name), lambda f, name=name: read_sources(f / name), (DataError,))
        for name in LISTS
    },
}
