"""Checks of the nodes of background jobs, in ComfyUI's own interpreter: `python inside_jobs.py COMFYUI FOLDER CHECK…`.

Started by test_training.py; prints as inside.py does. Those of datasets are in checks_datasets.py.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from pathlib import Path
from unittest import mock

import checks_datasets
from inside_process import main
from setup_jobs import DESCRIPTION, WEIGHTS, Setup, raises

NEWEST = "bundled/nano 256"
"""The bundled family that lists offer first."""


def check_memory_is_freed_when_a_training_is_queued_and_only_then(setup):
    with mock.patch.object(setup.jobs, "free_memory") as freed:
        first, _ = setup.train("freed", free=True)
        again, _ = setup.train("freed", free=True)
        assert first == again and freed.call_count == 1, freed.call_count
        setup.put(first, "failed")
        setup.train("freed", free=True)
        assert freed.call_count == 2 and setup.jobs.queue().job(first).state == "queued"


def check_too_little_memory_or_room_is_refused(setup):
    """With the job's own message; an estimate says it below its table. A job that was queued before stays as it is."""
    little_memory = mock.patch.object(setup.estimate.memory, "get_total_memory", return_value=1e6)
    full = mock.patch("shutil.disk_usage", return_value=(100, 90, 10))
    busy = mock.patch.object(setup.jobs, "running_on", return_value=mock.Mock())
    for short, problem in ((little_memory, "out of memory with batch_size=16"), (full, "only 0.0 MB are free")):
        with short, raises(problem):
            setup.train("small")
        with short, busy:
            _, text = setup.train("small", estimate_only=True)
        assert "together" in text and problem in text.splitlines()[-2], text
        assert not setup.jobs.queue().jobs() or "small" not in [job.name for job in setup.jobs.queue().jobs()]
    _, text = setup.train("small")
    assert "cannot be trained" not in text and "together" in text
    assert "17 of 17 pictures, 1 size, 8 to 9 in a batch" in text, text
    with little_memory:
        assert setup.train("small")[1].startswith("small: queued")


def check_a_base_of_another_kind_is_refused(setup):
    """Whatever it is, and though the dataset is still to come; the message is that of the training."""
    waiting = setup.prepare("to come").folder
    student = setup.files.BUNDLE / "nano" / "transformer"
    for base, command, problem in (
        ("nano/controlnet", "lcm-lora", "not a PixArt-α/δ transformer but a PixArt ControlNet without its base model"),
        ("nano/hed/hed.safetensors", "finetune", "transformer but a HED edge detector"),
        ("nano/lcm_lora", "lcd", "transformer but a LoRA"),
    ):
        for data in ("data", str(waiting)):
            with raises(problem):
                setup.train("wrong", command, base=str(setup.files.BUNDLE / base), data=data)
    plain = setup.output / "without_null_caption.safetensors"
    from safetensors.torch import load_file, save_file

    state = load_file(setup.files.BUNDLE / "nano" / "base" / "pixart_nano_base.safetensors")
    config = json.loads((student / "config.json").read_text())
    about = {"config": setup.identify.inspect_file(student).config.to_dict()} if config else {}
    save_file(
        {name: each for name, each in state.items() if name != "y_embedder.y_embedding"},
        plain,
        {"pixart_delta": json.dumps(about)},
    )
    with raises("has no learned null caption"):
        setup.train("wrong", base=str(plain))
    setup.train("right", "finetune", base=str(plain), more="caption_drop=0")
    assert "wrong" not in [job.name for job in setup.jobs.queue().jobs()]


def check_a_dataset_that_does_not_fit_is_refused(setup):
    """Without hints for a ControlNet, prepared or promised; of another text encoder; or none at all."""
    promised = setup.prepare("no hints").folder
    for data in ("data", str(promised)):
        with raises("was prepared without hints: run `prepare` again"):
            setup.train("wrong", "controlnet", data=data, more="copy_blocks=1")
    other = setup.output / "other"
    other.mkdir()
    (other / "dataset.json").write_text(json.dumps({**DESCRIPTION, "caption_channels": 4096, "hints": "hed"}))
    with raises("holds text embeddings of 4096 channels"):
        setup.train("wrong", "controlnet", data="other", more="copy_blocks=1")
    (other / "dataset.json").unlink()
    with raises("dataset.json"):
        setup.train("wrong", data="other")
    with raises("copy_blocks=13, wiring=transformer"):
        setup.train("wrong", "controlnet")
    assert "wrong" not in [job.name for job in setup.jobs.queue().jobs()]


def check_a_recipe_counts_where_nothing_was_changed(setup):
    """Of a released base that which fits the device; what somebody wrote wins; the same settings are the same job."""
    values = {"learning_rate": 5e-4, "batch_size": 4, "recipe": "auto"}
    found, text = setup.train("by recipe", "lcm-lora", more="guidance=5", **values)
    seen = setup.jobs.queue().job(found).settings
    assert (seen["lora_rank"], seen["steps"], seen["precision"]) == (4, 3, "fp32")
    (line,) = (line for line in text.splitlines() if line.startswith("recipe nano: "))
    named = {part.split()[0] for part in line.removeprefix("recipe nano: ").split(", ")}
    assert "lora_rank" in named and named.isdisjoint({"steps", "guidance", "learning_rate", "batch_size"}), line
    assert (seen["learning_rate"], seen["batch_size"], seen["guidance"]) == (5e-4, 4, 5.0)
    assert setup.train("by recipe", "lcm-lora", more="guidance=5", **values)[0] == found
    with raises("Train an LCM-LoRA instead"):
        setup.train("too large", recipe="8gb")
    _, text = setup.train("by recipe", "lcm-lora", recipe="12gb", more="workers=0")
    assert "recipe 12gb: " in text
    assert "batch_size 8" in text
    assert "together" in text


def check_missing_packages_are_named(setup):
    for command, package, more in (("lcm-lora", "peft", ""), ("lcd", "bitsandbytes", "optimizer=adamw8bit")):
        with mock.patch.dict(sys.modules, {package: None}), raises(f"{package} is not installed"):
            setup.train("wrong", command, more=more)
    with mock.patch.dict(sys.modules, {"peft": None}):
        setup.train("needs no peft")


def check_the_first_choice_of_every_list_works(setup):
    """Beside files of other kinds, of which some are called as if they were none, in the folders of every list."""
    import folder_paths

    bundle, names = setup.files.BUNDLE / "nano", setup.files
    models = setup.output.parent / "models"
    for kind in ("diffusion_models", "checkpoints", "text_encoders", "vae", "loras", "controlnet", "pixart_delta"):
        folder = models / kind
        folder.mkdir(parents=True)
        (folder / "a_pixart.safetensors").symlink_to(bundle / "hed" / "hed.safetensors")
        (folder / "b.safetensors").write_bytes(b"damaged")
        folder_paths.folder_names_and_paths[kind] = ([str(folder)], folder_paths.supported_pt_extensions)
    (models / "diffusion_models" / "c.safetensors").symlink_to(bundle / "controlnet" / WEIGHTS)
    (models / "diffusion_models" / "d.safetensors").symlink_to(bundle / "base" / "pixart_nano_base.safetensors")
    (models / "loras" / "c.safetensors").symlink_to(bundle / "lcm_lora" / "pytorch_lora_weights.safetensors")
    assert names.first_usable("model", "training") == names.first_usable("model") == "d.safetensors"
    assert names.first_usable("lora") == "c.safetensors" and names.first_usable("pipeline") == NEWEST
    (models / "diffusion_models" / "d.safetensors").unlink()
    assert names.first_usable("model", "training") == f"{NEWEST} (base)"
    for kind, first in (("text_encoder", NEWEST), ("vae", NEWEST), ("hed", "a_pixart.safetensors")):
        assert names.first_usable(kind) == first, (kind, names.first_usable(kind))
    assert names.first_usable("controlnet") == f"{NEWEST} (HED ControlNet)"
    (setup.input / "3d").mkdir()
    assert setup.dataset.first_folder() == "pictures"


def check_no_step_is_tried_beside_a_job_of_the_same_device(setup):
    busy, _ = setup.train("busy")
    setup.put(busy, "running")
    with mock.patch.object(setup.training, "_dry_run", return_value="one step") as tried:
        _, text = setup.train("tried", estimate_only=True)
        assert "busy has the device now: run this again" in text
        assert "together" in text
        assert not tried.called
        setup.put(busy, "paused")
        assert setup.train("tried", estimate_only=True) == ("", "one step")


def check_a_queued_job_says_what_it_waits_for(setup):
    busy, _ = setup.train("holder")
    setup.put(busy, "running")
    waiting, text = setup.train("waiting")
    assert text.startswith("waiting: queued, waits for holder\n"), text
    seen = json.loads(setup.jobs.view_texts(setup.jobs.queue().jobs())[waiting])
    assert (seen["reason"], seen["text"]) == ("waits for holder", "waiting: queued, waits for holder")
    setup.put(busy, "paused")


def check_a_job_says_that_it_waits_or_gets_little_of_the_processor(setup):
    slow, _ = setup.train("slow")
    setup.put(slow, "running", pid=os.getpid())
    queue = setup.jobs.queue()
    run = queue.run_dir(queue.job(slow))
    little = "gets 7% of the processor time that it could use: other programs keep this machine busy"
    store = "waiting for the data's store, for 0:01:00: s3://data/dataset.json cannot be read. The store refuses access"
    for said, shown in (({}, ""), ({"notice": little}, little), ({"notice": little, "waiting": store}, store)):
        run.write_status("running", step=1, steps=3, **said)
        _, text = setup.train("slow")
        assert text.splitlines()[0] == ", ".join(filter(None, ["slow: running", shown, "step 1 of 3"])), text
        assert json.loads(setup.jobs.view_texts(queue.jobs())[slow])["reason"] == shown
    setup.put(slow, "paused")


def check_an_empty_id_means_the_newest_training_and_no_dataset(setup):
    trained, _ = setup.train("older than the dataset")
    made = setup.prepare("newer than the training")
    assert setup.result.find_job(" ").id == trained
    assert setup.result.find_job(made.job).id == made.job


def check_progress_is_shown_while_a_node_waits(setup):
    setup.pictures(setup.input / "shown")
    with mock.patch.object(setup.dataset, "show_progress") as show:
        setup.prepare("shown", "shown")
    assert show.call_args_list[0].args[0].startswith("shown: queued")


def check_a_free_text_is_no_path(setup):
    values = {"input": "pictures", "models": "bundled/nano", "resolution": 128}
    made = setup.dataset.prepare_dataset("encoded", values, "encoding=cp1252\ncaption_column=text", 16)
    settings = setup.jobs.queue().job(made.job).settings
    assert (settings["encoding"], settings["caption_column"]) == ("cp1252", "text")


def check_what_could_not_be_told_is_told_again(setup):
    watcher = setup.jobs.Watcher()
    with mock.patch.object(setup.jobs, "PromptServer") as server:
        server.instance.send_sync.side_effect = [OSError("no"), None]
        with contextlib.suppress(OSError):
            watcher._tell({"a": '{"id": "a"}'})
        watcher._tell({"a": '{"id": "a"}'})
        assert server.instance.send_sync.call_args.args == ("pixart_delta.jobs", {"jobs": [{"id": "a"}], "deleted": []})


if __name__ == "__main__":
    checks = globals() | vars(checks_datasets)
    main(checks, functools.cache(lambda part, folder: Setup(part, Path(folder))), contextlib.nullcontext)
