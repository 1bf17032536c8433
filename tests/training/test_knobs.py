"""What a dataset can be told of its pictures, and that it does what it says: trigger word, repeats, flip, masks."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from pixart_delta.pixart_core.schedule import add_noise
from pixart_delta.training.data import DataError, FeatureDataset
from pixart_delta.training.data.contents import identify
from pixart_delta.training.distill import distance
from pixart_delta.training.finetune import epsilon_loss
from pixart_delta.training.prepare.run import prepare
from pixart_delta.training.settings import ConfigError
from pixart_delta.training.task import mask_weight

from tests.training.picture_fixture import draw_picture, make_pictures, prepare_settings, shard_bytes
from tests.training.shards_fixture import take
from tests.training.test_tasks import COMMANDS, batch, draws, make

SIDE = 64


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    import pixart_core as pc
    from tests.fixtures_nano import random_pixart
    from tests.training.test_tasks import CONFIG

    return pc.save_pixart(random_pixart(CONFIG), tmp_path_factory.mktemp("base") / "base.safetensors")


def squares(folder, count=4):
    """Square pictures with captions."""
    folder.mkdir(parents=True)
    for number in range(count):
        draw_picture(number, SIDE, SIDE).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(f"a lake, number {number}")
    return folder


def made(folder, models, name="out", **changes):
    """A dataset, and its samples by name of the picture."""
    prepare(prepare_settings(folder, models, output=str(folder / name), batch_size=8, shard_size=8, **changes))
    data = FeatureDataset(folder / name)
    return data, samples(data)


def samples(data):
    parts = ["json", "caption.npy", "moments.npy"]
    parts += ["moments_flipped.npy"] * bool(data.description.get("flip"))
    parts += ["mask.npy"] * bool(data.description.get("masks"))
    every = [data.location.open(info).read(row, parts) for info in data.shards for row in range(info.count)]
    return {sample["json"]["source"]: sample for sample in every}


def test_a_trigger_word_is_before_every_caption(models, tmp_path):
    squares(tmp_path / "pictures")
    (tmp_path / "pictures" / "0001.txt").write_text('one\n""\n')
    _, plain = made(tmp_path, models, "plain")
    _, with_it = made(tmp_path, models, trigger="sks lake")
    assert with_it["0001.png"]["json"]["captions"] == ["sks lake, one", "sks lake"]
    assert plain["0001.png"]["json"]["captions"] == ["one", ""]
    for file in (tmp_path / "pictures").glob("*.txt"):
        file.write_text(f"sks lake, {file.read_text()}" if file.stem != "0001" else "sks lake, one\nsks lake")
    made(tmp_path, models, "by_hand")
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "by_hand")
    with pytest.raises(ConfigError, match="trigger needs captions to put it before"):
        prepare_settings(tmp_path, models, trigger="x", embeddings=str(tmp_path))


@pytest.mark.parametrize("world", [1, 2])
def test_folders_are_repeated_in_each_epoch(world, models, tmp_path):
    squares(tmp_path / "pictures" / "cats")
    squares(tmp_path / "pictures" / "dogs" / "small", 2)
    data, _ = made(tmp_path, models, keep_duplicates=True, repeats={"cats": 3, "dogs": 2, "dogs/small": 1})
    assert data.rows == {(SIDE, SIDE): 14} and data.buckets == {(SIDE, SIDE): 6}
    count = data.batches_per_epoch(4 * world)
    for epoch in (0, 1):
        seen = Counter()
        for rank in range(world):
            for each in take(data.location.address, count, start=epoch * count, rank=rank, world=world):
                seen.update(each["keys"])
        expected = {f"cats/{number:04d}.png": 3 for number in range(4)}
        assert seen == expected | {f"dogs/small/{number:04d}.png": 1 for number in range(2)}
    before, known = shard_bytes(tmp_path / "out"), identify("data", str(tmp_path / "out"))
    data, _ = made(tmp_path, models, keep_duplicates=True)
    after = shard_bytes(tmp_path / "out")
    assert before.pop("dataset.json") != after.pop("dataset.json") and before == after
    assert data.rows == data.buckets and identify("data", str(tmp_path / "out")) != known


def test_repeats_of_a_folder_that_is_not_there(models, tmp_path):
    squares(tmp_path / "pictures")
    with pytest.raises(DataError, match="repeats names cats, and no picture that can be used is in such a folder"):
        made(tmp_path, models, repeats={"cats": 3})
    with pytest.raises(ConfigError, match="for each folder how often, 1 to 1000"):
        prepare_settings(tmp_path, models, repeats={"cats": 0})


def test_a_picture_and_its_mirror_are_both_seen(models, tmp_path):
    squares(tmp_path / "pictures")
    data, both = made(tmp_path, models, flip=True, masks="alpha")
    plain, single = made(tmp_path, models, "plain")
    for file in (tmp_path / "pictures").glob("*.png"):
        ImageOps.mirror(Image.open(file)).save(file)
    _, mirrored = made(tmp_path, models, "mirrored")
    for name, sample in both.items():
        assert np.array_equal(sample["moments.npy"], single[name]["moments.npy"])
        assert np.array_equal(sample["moments_flipped.npy"], mirrored[name]["moments.npy"])
    means = {name: [both[name][part][:4] for part in ("moments.npy", "moments_flipped.npy")] for name in both}
    seen = Counter()
    for each in take(data.location.address, 12):
        for name, latent in zip(each["keys"], each["latent"], strict=True):
            distances = [
                np.abs(latent.numpy() / data.description["scaling_factor"] - mean).mean() for mean in means[name]
            ]
            seen[name, int(np.argmin(distances))] += 1
    assert len(seen) == 8 and min(seen.values()) >= 2
    assert "flip" not in plain.description


def half_covered(folder, alpha):
    """Pictures of which the right half counts: the left one is transparent, or black in a mask's file."""
    squares(folder / "pictures", 3)
    (folder / "masks").mkdir()
    for file in sorted((folder / "pictures").glob("*.png"))[:2]:
        mask = Image.new("L", (SIDE, SIDE), 255)
        mask.paste(0, (0, 0, SIDE // 2, SIDE))
        picture = Image.open(file)
        if alpha:
            picture.putalpha(mask)
            picture.save(file)
        else:
            mask.resize((SIDE // 2, SIDE // 2)).save(folder / "masks" / file.name)


@pytest.mark.parametrize("kind", ["alpha", "folder"])
def test_masks_are_in_the_shards_and_in_batches(kind, models, tmp_path):
    half_covered(tmp_path, kind == "alpha")
    changes = {"masks": kind} | ({"mask_folder": str(tmp_path / "masks")} if kind == "folder" else {})
    data, every = made(tmp_path, models, flip=True, **changes)
    right = np.zeros((1, 8, 8), np.float16)
    right[:, :, 4:] = 1
    assert np.allclose(every["0000.png"]["mask.npy"], right, atol=0.2)
    assert np.allclose(every["0000.png"]["mask.npy"][:, :, [0, 1, 2, 5, 6, 7]], right[:, :, [0, 1, 2, 5, 6, 7]])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    if kind == "alpha":  # nothing of it is transparent
        assert (every["0002.png"]["mask.npy"] == 1).all()
    else:
        assert [name for name, _ in report["left_out"]["mask"]] == ["0002.png"]
    sides = set()
    for each in take(data.location.address, 8, batch_size=3):
        assert each["mask"].shape == (len(each["keys"]), 1, 8, 8) and each["mask"].dtype == torch.float32
        sides |= {
            int(mask[0, 0, 0] > 0.5) for mask, name in zip(each["mask"], each["keys"], strict=True) if name < "0002"
        }
    assert sides == {0, 1}  # mirrored with its picture


def test_masks_that_cannot_be_used_are_reported(models, tmp_path):
    half_covered(tmp_path, alpha=False)
    Image.new("L", (SIDE, SIDE), 0).save(tmp_path / "masks" / "0000.png")
    Image.new("L", (SIDE, 2 * SIDE), 255).save(tmp_path / "masks" / "0001.png")
    Image.new("L", (SIDE, SIDE), 255).save(tmp_path / "masks" / "0002.png")
    made(tmp_path, models, masks="folder", mask_folder=str(tmp_path / "masks"))
    why = dict(json.loads((tmp_path / "out" / "report.json").read_text())["left_out"]["mask"])
    assert why["0000.png"] == "its mask leaves nothing of it to train on" and "of another shape" in why["0001.png"]
    with pytest.raises(ConfigError, match="masks=folder and mask_folder, .* need each other"):
        prepare_settings(tmp_path, models, masks="folder")
    with pytest.raises(ConfigError, match="flip and masks=alpha need the pictures"):
        prepare_settings(tmp_path, models, flip=True, latents=str(tmp_path))


def test_a_masked_loss_is_the_mean_over_what_counts():
    x = batch(2)
    mask = torch.zeros(2, 1, 6, 10)
    mask[0, :, :3], mask[1, :, :, :1] = 1, 1  # a half, and a tenth: both pictures count the same
    noise = torch.randn(2, 4, 6, 10)
    timestep = torch.tensor([100, 900])
    error = noise.square()
    expected = (error[0, :, :3].mean() + error[1, :, :, :1].mean()) / 2
    loss = epsilon_loss(lambda noisy, *_rest, **_options: torch.zeros_like(noisy), {**x, "mask": mask}, noise, timestep)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    weight = mask_weight({"mask": mask})
    for kind, value in (("l2", noise.square()), ("huber", (noise.square() + 1e-6).sqrt() - 1e-3)):
        expected = (value[0, :, :3].mean() + value[1, :, :, :1].mean()) / 2
        assert distance(noise, torch.zeros_like(noise), kind, weight=weight).item() == pytest.approx(
            expected.item(), rel=1e-5
        )
    assert add_noise(x["latent"], noise, timestep).shape == noise.shape


@pytest.mark.parametrize("command", COMMANDS)
def test_every_training_heeds_masks(command, base):
    task, x = make(command, base), batch()
    mask = torch.ones(3, 1, 6, 10)
    plain = task.loss(task.model, x, draws()).item()
    assert task.loss(task.model, {**x, "mask": mask}, draws()).item() == plain
    mask[:, :, :3] = 0
    assert task.loss(task.model, {**x, "mask": mask}, draws()).item() != plain


def test_datasets_without_knobs_are_as_ever(models, tmp_path):
    make_pictures(tmp_path / "pictures", 3)
    data, _ = made(tmp_path, models)
    assert not {"flip", "masks", "repeats"} & data.description.keys()
    assert "mask" not in take(data.location.address, 1, batch_size=1)[0]
