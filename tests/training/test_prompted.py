"""A dataset from prompts alone: what the base draws for them, as exactly kept and made once as pictures are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pixart_delta.pixart_core.checkpoint import load_pixart, save_pixart
from pixart_delta.pixart_core.vae import load_vae
from pixart_delta.training.config import PrepareConfig, make_config
from pixart_delta.training.data import DataError, FeatureDataset
from pixart_delta.training.nano.checker import attributes_right
from pixart_delta.training.nano.evaluate import held_out_prompts
from pixart_delta.training.prepare.run import prepare
from pixart_delta.training.sampling import pictures
from pixart_delta.training.settings import ConfigError

from tests.fixtures_nano import nano_config, random_pixart
from tests.training.picture_fixture import shard_bytes

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
BASE = NANO / "base" / "pixart_nano_base.safetensors"
PROMPTS = ["a lake below blue mountains at night, the moon on the left", "a desert, red mountains, at sunset"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A base that draws nothing to look at, quickly."""
    return str(save_pixart(random_pixart(nano_config(depth=1)), tmp_path_factory.mktemp("base") / "base.safetensors"))


def settings(folder: Path, prompts=PROMPTS, **changes) -> PrepareConfig:
    """Prompts to shards of two, drawn in two steps, in folder/out."""
    folder.mkdir(exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(["", *prompts, "  "]))
    values = {"prompts": str(folder / "prompts.txt"), "output": str(folder / "out"), "models": str(NANO)}
    values |= {"base": str(BASE), "resolution": 128, "shapes": ["1:1"], "draw_steps": 2, "max_tokens": 40}
    return PrepareConfig(**values | {"shard_size": 2, "batch_size": 2, "workers": 0, "device": "cpu"} | changes)


def latents(folder: Path) -> dict[str, np.ndarray]:
    """Of a dataset, by the names of its pictures."""
    data = FeatureDataset(folder)
    every = [
        data.location.open(info).read(row, ["json", "moments.npy"]) for info in data.shards for row in range(info.count)
    ]
    return {each["json"]["source"]: each["moments.npy"].astype(np.float32) for each in every}


def test_what_is_drawn_is_what_the_prompts_say(tmp_path):
    """As the base is used: 14 steps with guidance, each in its size; and a training reads it as any dataset."""
    scenes = [scene for scene in held_out_prompts(40) if scene[2] == (128, 128)][:1]
    scenes += [scene for scene in held_out_prompts(40) if scene[2] == (160, 96)][:1]
    shapes = ["1:1", "2:3"]
    prepare(settings(tmp_path, [text for _, text, _ in scenes], shapes=shapes, draw_steps=14, batch_size=1))
    data, vae, right = FeatureDataset(tmp_path / "out"), load_vae(NANO), 0
    assert data.buckets == {(128, 128): 1, (160, 96): 1} and data.description["scaling_factor"] == 1.0
    for number, (_, batch) in zip((0, 1), data.some([0, 1], 1), strict=True):
        (picture,) = pictures(vae, batch["latent"])
        right += sum(attributes_right(picture, scenes[number][0]).values())
    assert right >= 9, "of 10 attributes"
    batch = next(data.batches(2, seed=0))
    assert batch["caption"].shape[2] == 64 and batch["image_size"][0].tolist() in ([128, 128], [160, 96])


def test_each_is_a_function_of_seed_and_number(small, tmp_path):
    """Not of what it is drawn together with; more prompts at the end leave those before as they are."""
    prepare(settings(tmp_path, draws=2, base=small))
    first = latents(tmp_path / "out")
    assert list(first) == ["00000000", "00000001", "00000002", "00000003"]
    assert np.abs(first["00000000"] - first["00000001"]).max() > 0.1, "each draw of a prompt has other noise"
    prepare(settings(tmp_path / "alone", [*PROMPTS, "more"], draws=2, base=small, batch_size=1))
    alone = latents(tmp_path / "alone" / "out")
    assert len(alone) == 6
    for name, each in first.items():  # other batches round otherwise, and these are kept in half precision
        assert np.abs(alone[name] - each).max() < 0.01 * np.abs(each).max()
    prepare(settings(tmp_path / "seed", draws=2, base=small, seed=1))
    assert np.abs(latents(tmp_path / "seed" / "out")["00000000"] - first["00000000"]).max() > 0.1


@pytest.mark.parametrize(
    "change", [{"guidance": 2.0}, {"draw_steps": 3}, {"lora": str(NANO / "style_lora")}, {"trigger": "night"}]
)
def test_every_setting_changes_what_is_drawn(change, tmp_path):
    prepare(settings(tmp_path))
    before = latents(tmp_path / "out")
    prepare(settings(tmp_path, **change))  # the shards of other settings are made anew
    after = latents(tmp_path / "out")
    assert all(np.abs(after[name] - before[name]).max() > 0.01 for name in before)
    if "lora" in change:
        prepare(settings(tmp_path, **change, lora_strength=0.0))
        assert all((latents(tmp_path / "out")[name] == before[name]).all() for name in before)


def test_parts_and_a_second_run_make_the_same_shards(small, tmp_path):
    prepare(settings(tmp_path / "whole", draws=3, base=small))
    for part in (1, 0):
        prepare(settings(tmp_path / "parts", draws=3, base=small, parts=2, part=part))
    whole = shard_bytes(tmp_path / "whole" / "out")
    assert len(whole) == 4 and shard_bytes(tmp_path / "parts" / "out") == whole
    before = {name: (tmp_path / "whole/out" / name).stat().st_mtime_ns for name in whole if name.endswith(".tar")}
    prepare(settings(tmp_path / "whole", draws=3, base=small))
    assert before == {name: (tmp_path / "whole/out" / name).stat().st_mtime_ns for name in before}


@pytest.mark.parametrize(
    "change,problem",
    [
        ({"base": str(NANO / "hed" / "hed.safetensors")}, "not a PixArt-α/δ transformer but a HED edge detector"),
        ({"base": str(NANO / "transformer")}, "is a distilled model"),
        ({"lora": str(BASE)}, "is not a LoRA but"),
        ({"max_tokens": 200}, "set max_tokens=120"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is(change, problem, tmp_path):
    with pytest.raises((ValueError, OSError), match=problem):
        prepare(settings(tmp_path, **change))
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_base_that_does_not_fit_is_refused(tmp_path):
    model = load_pixart(BASE, torch.float32)
    model.y_embedder.y_embedding = None
    with pytest.raises(ConfigError, match="no learned null caption"):
        prepare(settings(tmp_path, base=str(save_pixart(model, tmp_path / "null.safetensors"))))
    other = save_pixart(random_pixart(nano_config(caption_channels=32)), tmp_path / "narrow.safetensors")
    with pytest.raises(ConfigError, match="makes text embeddings of 64 channels, and .* reads 32"):
        prepare(settings(tmp_path, base=str(other)))
    with pytest.raises(DataError, match="holds no prompt"):
        prepare(settings(tmp_path, [" "]))
    with pytest.raises(DataError, match="prompts /nowhere does not exist"):
        prepare(PrepareConfig(**{**settings(tmp_path).to_dict(), "prompts": "/nowhere"}))


@pytest.mark.parametrize(
    "change,problem",
    [
        ({"input": "pictures"}, "give either input"),
        ({"prompts": ""}, "give either input"),
        ({"base": ""}, "need each other"),
        ({"flip": True}, "flip is set, and with prompts there are no pictures"),
        ({"hints": "canny"}, "hints is set"),
        ({"embeddings": "folder"}, "embeddings is set"),
        ({"models": ""}, "models is not set"),
        ({"shapes": ["1x1"]}, "shapes is"),
        ({"shapes": ["1:5"]}, "more than 4 times the other"),
        ({"shapes": []}, "shapes is"),
    ],
)
def test_settings_that_contradict_each_other(change, problem):
    values = {"prompts": "p.txt", "base": "b", "models": "m", "output": "o"}
    with pytest.raises(ConfigError, match=problem):
        make_config("prepare", {**values, **change})


def test_the_report_counts_what_will_be_drawn(tmp_path, capsys):
    report = prepare(settings(tmp_path, shapes=["1:1", "3:2"], draws=2), dry_run=True)
    assert report.buckets == {"96x160": 2, "128x128": 2} and report.usable == 4
    assert json.loads((tmp_path / "out" / "report.json").read_text())["shards"] == 2
    assert "4 pictures in" in capsys.readouterr().out
