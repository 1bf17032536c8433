"""The family by one command: what its plan asks for, that parts are skipped and go on, and which part failed."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from pixart_delta.training.config import COMMANDS, TRAININGS, ConfigError
from pixart_delta.training.nano import family
from pixart_delta.training.nano.family import Maker, has_room
from pixart_delta.training.nano.plan import FamilySettings, Plan


def plan(tmp_path, has_room=False, **values) -> Plan:
    return Plan(FamilySettings.make({"output": str(tmp_path / "nano"), "resolution": 128, **values}), has_room)


def test_without_a_word_it_is_the_family_that_the_demo_shows(tmp_path):
    settings = FamilySettings.make({"output": str(tmp_path / "nano")})
    assert (settings.resolution, settings.world) == (256, 2) and settings.folder().name == "256"


@pytest.mark.parametrize("values", [{}, {"resolution": 256, "precision": "bf16"}, {"scale": 0.01}, {"world": 2}])
def test_every_training_of_a_plan_has_settings_that_exist(tmp_path, values):
    seen = []
    for part in plan(tmp_path, **values).parts:
        for command, *rest in part.commands:
            if command in COMMANDS:
                file = rest[rest.index("--config") + 1] if "--config" in rest else None
                given = [text for mark, text in itertools.pairwise(rest) if mark == "--set"]
                config = COMMANDS[command].load(file, given)
                seen.append(command)
                if command == "finetune" and part.name == "base":
                    assert config.model["input_size"] * 8 == values.get("resolution", 128)
                    assert config.data.endswith("features_half" if values.get("resolution") == 256 else "features")
                if command in TRAININGS:
                    assert config.precision == values.get("precision", "fp32")
                if "scale" in values and command not in ("prepare", "export"):
                    assert config.steps <= 65 and config.warmup_steps <= config.steps
    more = 1 + (values.get("resolution") == 256)  # at half the side first
    assert seen == ["prepare"] * more + ["finetune"] * (1 + more) + [
        "lcd",
        "lcm-lora",
        "controlnet",
        "export",
        "export",
    ]


def test_a_plan_has_one_world_and_every_other_a_folder_of_its_own(tmp_path):
    for values, world in (({}, "1"), ({"resolution": 256}, "2"), ({"resolution": 256, "world": 1}, "1")):
        commands = [command for part in plan(tmp_path, **values).parts for command in part.commands]
        told = [command[command.index("--world") + 1] for command in commands if "--world" in command]
        assert told == [world] * (7 if "resolution" in values else 6)  # the decoder once more
    assert plan(tmp_path, world=2).work.name == "128_world_2" and plan(tmp_path).work.name == "128"
    assert plan(tmp_path, resolution=256, scale=0.5).work.name == "256_0.5"


def test_a_plan_says_that_more_pixels_and_blocks_take_longer(tmp_path):
    small, large = (
        {part.name: part.seconds[0] for part in plan(tmp_path, resolution=resolution).parts}
        for resolution in (128, 256)
    )
    assert large["student"] > 5 * small["student"]  # four times the tokens in eight blocks instead of six
    assert large["base"] < 2 * small["base"]  # it learns at half the side, and then grows
    assert large["half"] == pytest.approx(small["features"]) and large["grown"] > small["base"]
    assert large["features"] == pytest.approx(4 * small["features"], rel=0.1)


def test_a_gpu_takes_large_batches_and_minutes_for_each_part(tmp_path):
    plain, large = (plan(tmp_path, has_room, resolution=256) for has_room in (False, True))
    differing = [
        one.name for one, other in zip(plain.parts, large.parts, strict=True) if one.commands != other.commands
    ]
    assert differing == ["scenes", "detail", "student"]
    assert max(part.seconds[1] for part in large.parts) < 420
    told = {part.name: part.commands[0] for part in large.parts}
    config = COMMANDS["finetune"].load(None, [text for text in told["detail"] if "=" in text])
    assert (config.batch_size, config.precision, config.cuda_graph, config.snr_weight_cap) == (256, "bf16", True, 5)
    assert plan(tmp_path, resolution=256, large="yes").parts == large.parts
    assert plan(tmp_path, True, resolution=256, large="no").parts == plain.parts
    assert plan(tmp_path, True).parts == plan(tmp_path).parts


@pytest.mark.parametrize(
    "precision, expected", [("auto", ["bf16", "fp32"]), ("fp32", ["fp32"] * 2), ("bf16", ["bf16"] * 2)]
)
def test_a_precision_that_is_asked_for_is_taken(precision, expected, tmp_path):
    parts = {part.name: part for part in plan(tmp_path, True, resolution=256, precision=precision).parts}
    commands = {name: parts[name].commands[0] for name in ("detail", "student")}
    taken = [
        COMMANDS[command[0]].load(command[2], [text for text in command if "=" in text]).precision
        for command in commands.values()
    ]
    assert taken == expected
    slower = plan(tmp_path, True, resolution=256, precision="fp32").parts
    seconds = next(part.seconds[0] for part in slower if part.name == "detail")
    assert (parts["detail"].seconds[0] < seconds) == (expected[0] == "bf16")


@pytest.mark.parametrize(
    "memory, capability, triton, expected",
    [(80e9, 9, True, True), (6e9, 8, True, False), (16e9, 7, True, False), (24e9, 8, False, False)],
)
def test_large_batches_are_for_gpus_that_have_room(memory, capability, triton, expected, monkeypatch):
    about = SimpleNamespace(total_memory=memory, major=capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(family.importlib.util, "find_spec", lambda name: triton or None)
    assert has_room(torch.device("cuda")) is expected and not has_room(torch.device("cpu"))


def test_a_resolution_that_no_family_has_is_refused():
    with pytest.raises(ConfigError, match="choose one of 128, 256"):
        FamilySettings.make({"output": "x", "resolution": 192})


class Commands:
    """Stands for the processes: notes what is run, and fails at one part."""

    def __init__(self, failing: str = ""):
        self.failing, self.ran = failing, []

    def run(self, command, stdout, stderr):
        self.ran.append(command[2:])
        stdout.write("this is what went wrong\n" if self.failing in command else "")
        return type("Done", (), {"returncode": int(self.failing in command)})


def test_what_is_done_is_skipped_and_what_failed_is_named(tmp_path, monkeypatch):
    made = plan(tmp_path, scale=0.01)
    monkeypatch.setattr(family, "subprocess", Commands(failing="lcd"))
    with pytest.raises(RuntimeError, match=r"student failed; [\s\S]*this is what went wrong"):
        Maker(made, has_gpu=False).run()
    monkeypatch.setattr(family, "subprocess", commands := Commands(failing="never"))
    again = Maker(made, has_gpu=False)
    assert again.describe().count("done in") == 7
    again.run()
    assert commands.ran[0][0] == "lcd" and len(commands.ran) == sum(len(part.commands) for part in made.parts[7:])
    assert Maker(made, has_gpu=False).describe().count("done in") == len(made.parts)
    # Another length of a training is another part.
    state = json.loads((made.work / "parts.json").read_text())
    state["student"]["commands"][0][-1] = "steps=7"
    (made.work / "parts.json").write_text(json.dumps(state))
    assert "student      about" in Maker(made, has_gpu=False).describe()


def test_a_gpu_makes_what_it_can_side_by_side(tmp_path):
    made = plan(tmp_path)
    alone, beside = Maker(made, has_gpu=False), Maker(made, has_gpu=True)
    assert "beside others" not in alone.describe()
    names = [line.split()[0] for line in beside.describe().splitlines() if "beside others" in line]
    assert names == ["autoencoder", "text", "hed", "student", "lora", "control"]
