"""Every command once, as typed, on the bundled models: what `make test-versions` runs with other packages."""

import re
import warnings

import pytest
from pixart_delta.training.cli import main
from pixart_delta.training.run_dir import RunDir

import pixart_core as pc
from pixart_core.lora import load_lora
from tests.conftest import ROOT
from tests.training.picture_fixture import make_pictures

NANO = ROOT / "models" / "nano"
NOISE = r"float32: \[\]|Deprecat|FutureWarning|has been deprecated|is deprecated"
"""What libraries say about their own insides; nobody who trains can do anything about it."""
UNSEEN = (DeprecationWarning, PendingDeprecationWarning)
"""Python shows these to whoever runs the library itself."""


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    make_pictures(folder / "pictures", 4)
    hints = {"hints": "hed", "hed": NANO / "hed" / "hed.safetensors"}
    run("prepare", input=folder / "pictures", output=folder / "features", models=NANO, resolution=64, **hints)
    return folder / "features"


def run(command, *positional, **settings):
    assert main([command, *positional, *(f"--set={name}={value}" for name, value in settings.items())]) == 0


def test_a_recipe_by_name(features, tmp_path, capfd):
    """auto is nano for a bundled base; what is said beside it wins."""
    base = NANO / "base" / "pixart_nano_base.safetensors"
    values = [
        f"--set={pair}" for pair in (f"run={tmp_path / 'run'}", f"data={features}", f"base={base}", "batch_size=1")
    ]
    assert main(["lcm-lora", "--recipe", "auto", *values, "--set=steps=1"]) == 0
    assert "recipe nano" in capfd.readouterr().out
    config = RunDir(tmp_path / "run").read_config()["config"]
    assert (config["lora_rank"], config["steps"], config["batch_size"]) == (4, 1, 1)
    assert main(["lcd", "--recipe", "8gb", *values]) == 1
    assert "Train an LCM-LoRA instead" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["finetune", "lcd", "lcm-lora", "controlnet"])
def test_a_training_its_resume_samples_and_export(command, features, tmp_path, capfd):
    folder, made = str(tmp_path / "run"), tmp_path / "made.safetensors"
    base = NANO / "base" / "pixart_nano_base.safetensors"
    changes = {"copy_blocks": 2} if command == "controlnet" else {}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for steps in (1, 2):  # the second goes on where the first ended
            run(command, data=features, run=folder, base=base, batch_size=2, steps=steps, **changes)
        run("sample", folder, models=NANO, prompts='["a lake at dawn"]')
        run("export", folder, output=made)
        run("status", folder)
    output = "".join(capfd.readouterr())
    assert "step: 2 of 2" in output and not re.search(NOISE, output), output
    seen = [warning for warning in warned if not issubclass(warning.category, UNSEEN)]
    assert not [str(warning) for warning in seen if re.search(NOISE, str(warning))]
    load = {"controlnet": pc.load_controlnet, "lcm-lora": load_lora}.get(command, pc.load_pixart)
    assert load(made)
