"""`prepare`, from pictures to shards: what comes in, what is left out and said about it, who makes what, and again."""

import errno
import json
import shutil

import numpy as np
import pytest
import torch
from pixart_delta.pixart_core.hed import HED, detect
from pixart_delta.pixart_core.saving import save_weights
from pixart_delta.pixart_core.text import TextEncoder
from pixart_delta.pixart_core.vae import encode, load_vae, moments
from pixart_delta.training import cli
from pixart_delta.training.config import ConfigError, PrepareConfig
from pixart_delta.training.data import DataError, FeatureDataset, shards
from pixart_delta.training.machine import DiskError
from pixart_delta.training.nano.scene_folder import draw_folder
from pixart_delta.training.prepare import run
from pixart_delta.training.prepare.run import prepare
from pixart_delta.training.prepare.sources import CaptionError, read_sources

from tests.training.picture_fixture import draw_picture, make_pictures, shard_bytes
from tests.training.picture_fixture import prepare_settings as settings


def samples(folder, parts=("moments.npy", "caption.npy", "json")):
    """Every sample of a dataset by the name of its picture."""
    data = FeatureDataset(folder)
    stored = [data.location.open(info).read(row, parts) for info in data.shards for row in range(info.count)]
    return {each["json"]["source"]: each for each in stored}


def test_a_folder_becomes_what_the_networks_say_of_its_pictures(tmp_path, models, pictures):
    (pictures / "0001.txt").write_text('a red lake\n\n""\n', "utf-8")
    (pictures / "0002.txt").rename(pictures / "0002.caption")
    report = prepare(settings(tmp_path, models))
    assert (report.usable, report.wordings, report.left_out) == (9, 10, {})
    assert report.buckets == {"48x80": 2, "64x64": 5, "80x48": 2}
    made = samples(tmp_path / "out")
    assert len(made) == 9
    one = made["0001.png"]
    assert {name: one["json"][name] for name in ("height", "width", "bucket", "ratio", "captions")} == {
        "height": 72,
        "width": 120,
        "bucket": [48, 80],
        "ratio": 0.6,
        "captions": ["a red lake", ""],
    }
    embedding, mask = TextEncoder.from_pretrained(models, torch.float32).encode(["a red lake", ""])
    expected = torch.cat([embedding[row, : mask[row].sum()] for row in (0, 1)])
    assert one["json"]["tokens"] == mask.sum(1).tolist()
    assert one["caption.npy"].dtype == np.float16
    torch.testing.assert_close(torch.from_numpy(one["caption.npy"]).float(), expected, atol=2e-3, rtol=2e-3)
    vae = load_vae(models, torch.float32)
    image = torch.from_numpy(np.asarray(draw_picture(0, 64, 64)).copy()).float()[None] / 255
    stored = torch.from_numpy(made["0000.png"]["moments.npy"]).float()
    torch.testing.assert_close(stored, moments(vae, image)[0], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(stored[:4] * vae.config.scaling_factor, encode(vae, image)[0], atol=2e-3, rtol=2e-3)
    batch = next(FeatureDataset(tmp_path / "out").batches(2, 0))
    assert batch["latent"].shape[1] == 4 and batch["caption"].shape[2] == 16


def test_what_cannot_be_used_is_named_and_skipped(tmp_path, models, pictures, capsys):
    (pictures / "0000.png").write_bytes((pictures / "0000.png").read_bytes()[:200])
    (pictures / "0001.txt").unlink()
    (pictures / "0002.txt").write_text(" \n")
    shutil.copy(pictures / "0003.png", pictures / "9999.png")
    (pictures / "9999.txt").write_text("a copy")
    draw_picture(5, 20, 100).save(pictures / "0005.png")
    (pictures / "0006.txt").write_bytes(b"\xff\xfe\x00")
    report = prepare(settings(tmp_path, models))
    found = {problem: {name for name, _ in entries} for problem, entries in report.left_out.items()}
    assert found == {
        "unreadable": {"0000.png"},
        "caption": {"0001.png", "0002.png", "0006.png"},
        "elongated": {"0005.png"},
        "duplicate": {"9999.png"},
    }
    text = (tmp_path / "out/report.txt").read_text()
    assert text in capsys.readouterr().out
    for words in (
        "10 pictures",
        "4 can be used",
        "0000.png: ",
        "truncated",
        "0001.png: there is no 0001.txt or",
        "9999.png: as 0003.png",
        "5.0 times the other, more than 4",
        "0006.txt cannot be read as UTF-8",
    ):
        assert words in text, words
    assert json.loads((tmp_path / "out/report.json").read_text())["usable"] == 4
    assert set(samples(tmp_path / "out")) == {"0003.png", "0004.png", "0007.png", "0008.png"}
    again = prepare(settings(tmp_path, models, keep_duplicates=True, output=str(tmp_path / "both")))
    assert again.usable == 5


def test_nothing_to_prepare(tmp_path, models):
    with pytest.raises(DataError, match="does not exist"):
        prepare(settings(tmp_path, models))
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=r"holds no pictures \(\.apng, "):
        prepare(settings(tmp_path, models))
    assert not (tmp_path / "out").exists()
    (tmp_path / "pictures/a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"no picture of .* can be used: .*report.txt says why"):
        prepare(settings(tmp_path, models))
    assert "a.png: UnidentifiedImageError" in (tmp_path / "out/report.txt").read_text()


def test_lists_of_pictures(tmp_path):
    make_pictures(tmp_path / "a", 2)
    (tmp_path / "a/metadata.jsonl").write_text(
        '{"file_name": "0000.png", "text": "one"}\n{"file_name": "0001.png", "text": ["two", "deux"]}\n'
    )
    assert [source.captions() for source in read_sources(tmp_path / "a")] == [("one",), ("two", "deux")]
    (tmp_path / "a/metadata.jsonl").unlink()
    (tmp_path / "a/metadata.csv").write_text('file_name,style,caption\n0000.png,oil,"one, two"\n0001.png,ink,\n')
    first, second = read_sources(tmp_path / "a")
    assert first.captions() == ("one, two",) and first.path == tmp_path / "a/0000.png"
    with pytest.raises(CaptionError, match="no caption for it"):
        second.captions()
    assert read_sources(tmp_path / "a/metadata.csv", column="style")[1].captions() == ("ink",)
    with pytest.raises(DataError, match="entry 1: there is no prompt among file_name, style, caption"):
        read_sources(tmp_path / "a", column="prompt")

    partition = tmp_path / "InternData/partition"
    partition.mkdir(parents=True)
    make_pictures(tmp_path / "InternImgs/00", 1)
    entry = {"path": "00/0000.png", "height": 64, "width": 64, "ratio": 1.0}
    (partition / "data_info.json").write_text(json.dumps([{**entry, "prompt": "one"}, {**entry, "prompt": "two"}]))
    (source,) = read_sources(partition / "data_info.json")
    assert source.captions() == ("one", "two")
    assert source.size == (64, 64)
    assert source.path.is_file()
    (partition / "data_info.json").write_text('[{"prompt": "one"}]')
    with pytest.raises(DataError, match="data_info.json, entry 1: no picture is named"):
        read_sources(partition)
    (partition / "data_info.json").write_text("[{")
    with pytest.raises(DataError, match="data_info.json cannot be read"):
        read_sources(partition)


def test_nano_scenes_come_as_such_a_folder(tmp_path):
    draw_folder(tmp_path / "scenes", 24, seed=1)
    sources = read_sources(tmp_path / "scenes")
    wordings = [source.captions() for source in sources]
    assert len(sources) == 24 and all(len(each) == 3 for each in wordings)
    assert sum("" in each for each in wordings) == 3  # an empty prompt means any scene
    report = prepare(
        PrepareConfig(input=str(tmp_path / "scenes"), output=str(tmp_path / "out"), resolution=128, workers=0),
        dry_run=True,
    )
    assert report.buckets == {"96x160": 6, "128x128": 12, "160x96": 6} and report.usable == 24


def test_two_parts_make_what_one_makes(tmp_path, models, pictures, monkeypatch):
    prepare(settings(tmp_path, models))
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun and accelerate launch do
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert not (tmp_path / "two/dataset.json").exists()
        prepare(settings(tmp_path, models, output=str(tmp_path / "two"), workers=1))
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "two") and len(shard_bytes(tmp_path / "two")) == 6


def test_hosts_times_processes_are_the_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert run.which_part(PrepareConfig(input="a", output="b", part=1, parts=2)) == (7, 8)
    with pytest.raises(ConfigError, match="part is 2: with parts 2 it must be below 2"):
        PrepareConfig(input="a", output="b", part=2, parts=2)


def test_a_second_run_makes_only_what_is_missing_or_changed(tmp_path, models, pictures, monkeypatch):
    written = []
    monkeypatch.setattr(run, "write_shard", lambda *args: written.append(args[1]) or shards.write_shard(*args))
    prepare(settings(tmp_path, models))
    assert len(written) == 5
    whole = shard_bytes(tmp_path / "out")

    def made_again():
        written.clear()
        prepare(settings(tmp_path, models))
        return written

    assert made_again() == []
    with (tmp_path / "out/64x64_00001.tar").open("rb+") as file:
        file.truncate(5000)
    assert made_again() == ["64x64_00001.tar"] and shard_bytes(tmp_path / "out") == whole
    damaged = bytearray(whole["48x80_00000.tar"])
    damaged[3000] ^= 1
    (tmp_path / "out/48x80_00000.tar").write_bytes(damaged)
    assert made_again() == ["48x80_00000.tar"] and shard_bytes(tmp_path / "out") == whole
    (pictures / "0003.txt").write_text("a night sky")
    assert made_again() == ["80x48_00000.tar"]
    assert samples(tmp_path / "out")["0003.png"]["json"]["captions"] == ["a night sky"]
    for name in ("0001", "0005"):
        (pictures / f"{name}.png").unlink()
    assert made_again() == [] and not list((tmp_path / "out").glob("48x80*"))  # the shard of a bucket that is gone
    assert len(FeatureDataset(tmp_path / "out")) == 7


def test_a_run_that_breaks_off_leaves_whole_shards_only(tmp_path, models, pictures, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.64x64_00000.tar.1.tmp").write_text("of a process that was killed")

    def write_shard(folder, name, bucket, made):
        def until_the_disk_is_full():
            yield next(made)
            raise OSError(errno.ENOSPC, "No space left on device")

        return shards.write_shard(folder, name, bucket, until_the_disk_is_full() if name == "64x64_00001.tar" else made)

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_shard", write_shard)
        with pytest.raises(OSError, match="No space left"):
            prepare(settings(tmp_path, models))
    files = {file.name for file in (tmp_path / "out").iterdir() if file.suffix in (".tar", ".tmp")}
    assert files == {"48x80_00000.tar", "64x64_00000.tar"} and not (tmp_path / "out/dataset.json").exists()
    prepare(settings(tmp_path, models))
    assert len(FeatureDataset(tmp_path / "out")) == 9


def test_a_disk_that_is_too_small_is_noticed_before_the_start(tmp_path, models, pictures, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10_000))
    with pytest.raises(DiskError, match="the shards of .* need .* MB more, but only .* MB are free there: free some"):
        prepare(settings(tmp_path, models))
    assert not list((tmp_path / "out").glob("*.tar"))


def test_the_estimate_is_near_what_is_written(tmp_path, models, pictures):
    report = prepare(settings(tmp_path, models))
    written = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.tar"))
    assert 0.5 * written < report.bytes < 2 * written


def test_a_dry_run_only_reports(tmp_path, pictures, capsys):
    values = ["--set", f"input={tmp_path / 'pictures'}", "--set", f"output={tmp_path / 'out'}"]
    assert cli.main(["prepare", "--dry-run", *values]) == 0  # no models: nothing is encoded
    assert "9 pictures in" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"report.txt", "report.json", "survey"}
    assert cli.main(["prepare", *values]) == 1 and "models is not set" in capsys.readouterr().err


def test_a_picture_that_changes_meanwhile_is_named(tmp_path, models, pictures, monkeypatch):
    look = run.survey

    def survey(*arguments):
        found = look(*arguments)
        (pictures / "0004.png").write_bytes(b"")
        return found

    monkeypatch.setattr(run, "survey", survey)
    with pytest.raises(DataError, match="0004.png has changed since it was looked at"):
        prepare(settings(tmp_path, models))
    assert not (tmp_path / "out/dataset.json").exists()


def test_hed_hints(tmp_path, models, pictures):
    torch.manual_seed(0)
    network = HED((2, 2, 2, 2, 2)).eval()
    save_weights(network.state_dict(), tmp_path / "hed.safetensors")
    prepare(settings(tmp_path, models, hints="hed", hed=str(tmp_path / "hed.safetensors")))
    image = torch.from_numpy(np.asarray(draw_picture(0, 64, 64)).copy()).float()[None] / 255
    expected = moments(load_vae(models, torch.float32), detect(network, image).expand(-1, -1, -1, 3))[0]
    hint = samples(tmp_path / "out", ("hint.npy", "json"))["0000.png"]["hint.npy"]
    torch.testing.assert_close(torch.from_numpy(hint).float(), expected, atol=2e-3, rtol=2e-3)
    assert next(FeatureDataset(tmp_path / "out").batches(2, 0, hint=True))["hint"].shape[1] == 4
    with pytest.raises(ConfigError, match="hints=hed needs hed"):
        settings(tmp_path, models, hints="hed")


def test_hints_from_a_folder(tmp_path, models, pictures):
    hints = tmp_path / "hints"
    hints.mkdir()
    for file in pictures.glob("*.png"):
        size = run.InputReader(settings(tmp_path, models)).read(read_sources(pictures)[int(file.stem)]).size
        draw_picture(100, size[0] * 2, size[1] * 2).save(hints / f"{file.stem}.jpg", quality=95)
    (hints / "0000.jpg").unlink()
    draw_picture(100, 64, 32).save(hints / "0004.png")
    (hints / "0004.jpg").unlink()
    report = prepare(settings(tmp_path, models, hints="folder", hint_folder=str(hints)))
    assert dict(report.left_out["hint"]) == {
        "0000.png": f"there is no hint of this name in {hints}",
        "0004.png": "its hint is 64 x 32 px, of another shape than its 64 x 64 px",
    }
    made = samples(tmp_path / "out", ("hint.npy", "json"))
    assert len(made) == 7 and made["0001.png"]["hint.npy"].shape == (8, 6, 10)


def test_features_of_hints_of_another_size(tmp_path, models, pictures):
    """They are one bad hint each, not the end of the preparation."""
    hints = tmp_path / "hints"
    hints.mkdir()
    for file in pictures.glob("*.png"):
        height, width = {1: (6, 10), 3: (10, 6)}.get(int(file.stem) % 4, (8, 8))
        np.savez(hints / f"{file.stem}.npz", np.ones((8, height, width), np.float32))
    np.savez(hints / "0004.npz", np.ones((8, 16, 16), np.float32))
    report = prepare(settings(tmp_path, models, hints="folder", hint_folder=str(hints)))
    assert report.left_out == {"hint": [("0004.png", "its hint is prepared for 128 x 128 px, it for 64 x 64 px")]}
    made = samples(tmp_path / "out", ("hint.npy", "json"))
    assert len(made) == 8 and made["0001.png"]["hint.npy"].shape == (8, 6, 10)


def test_the_authors_caches(tmp_path):
    """T5, VAE and HED features as tools/extract_features.py and hed.py write them; no network, no picture is needed."""
    rng = np.random.default_rng(0)
    entries = []
    for folder in ("t5", "vae", "hed/00"):
        (tmp_path / folder).mkdir(parents=True)
    for number, (height, width) in enumerate([(8, 8), (8, 8), (6, 10)]):
        mask = np.zeros((1, 120), np.int64)
        mask[:, : 5 + number] = 1
        caption = rng.standard_normal((1, 120, 32)).astype(np.float32)
        np.savez_compressed(tmp_path / f"t5/00_{number}.npz", caption_feature=caption, attention_mask=mask)
        np.save(tmp_path / f"vae/00_{number}.npy", rng.standard_normal((8, height, width)).astype(np.float32))
        np.savez_compressed(tmp_path / f"hed/00/{number}.npz", rng.standard_normal((8, height, width)))
        entries.append({"path": f"00/{number}.png", "prompt": f"p{number}", "height": height * 20, "width": width * 20})
    entries.append({"path": "00/missing.png", "prompt": "none", "height": 64, "width": 64})
    (tmp_path / "data_info.json").write_text(json.dumps(entries))
    folders = {
        "embeddings": str(tmp_path / "t5"),
        "latents": str(tmp_path / "vae"),
        "hint_folder": str(tmp_path / "hed"),
        "hints": "folder",
    }
    report = prepare(settings(tmp_path, "", input=str(tmp_path / "data_info.json"), **folders))
    assert report.usable == 3 and "00/missing.png: there is no feature file" in report.text()
    made = samples(tmp_path / "out", ("moments.npy", "hint.npy", "caption.npy", "json"))
    for number in range(3):
        each = made[f"00/{number}.png"]
        stored = np.load(tmp_path / f"t5/00_{number}.npz")["caption_feature"][0, : 5 + number]
        assert np.array_equal(each["caption.npy"], stored.astype(np.float16))
        assert np.array_equal(each["moments.npy"], np.load(tmp_path / f"vae/00_{number}.npy").astype(np.float16))
        assert np.array_equal(each["hint.npy"], np.load(tmp_path / f"hed/00/{number}.npz")["arr_0"].astype(np.float16))
    assert made["00/2.png"]["json"]["height"] == 120 and made["00/2.png"]["json"]["bucket"] == [48, 80]
    description = FeatureDataset(tmp_path / "out").description
    assert (description["scaling_factor"], description["caption_channels"]) == (0.18215, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_streamed_text_encoder_gives_the_same_and_holds_no_matrices(models, dtype):
    plain, streamed = (TextEncoder.from_pretrained(models, dtype, streamed=each) for each in (False, True))
    prompts = ["a sky over a lake", "stars"]
    assert all(map(torch.equal, plain.encode(prompts), streamed.encode(prompts)))
    assert plain.identity == streamed.identity
    held = [sum(each.numel() for each in encoder.load().parameters()) for encoder in (plain, streamed)]
    assert held[1] < 0.5 * held[0]
