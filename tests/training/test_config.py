"""Settings: from file and command line, checked, described once, with the paper's values as defaults."""

import json
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
from pixart_delta.training.cli import main
from pixart_delta.training.config import COMMANDS, TRAININGS, ConfigError, load_config, make_config
from pixart_delta.training.recipes import RECIPES as RECIPES_BY_NAME
from pixart_delta.training.recipes import recipe_values

NEEDED = {"run": "r", "data": "d", "base": "b"}
RECIPES = sorted((Path(__file__).resolve().parents[2] / "training/recipes").glob("*.json"))


def make(command="lcd", **values):
    return make_config(command, {**NEEDED, **values})


def test_every_text_without_choices_is_declared_a_path_or_known_to_be_none():
    """Paths that a browser sends are checked: one that is not declared with `path` would not be."""
    found = set()
    for kind in COMMANDS.values():
        types = get_type_hints(kind)
        texts = (each for each in fields(kind) if types[each.name] is str and "choices" not in each.metadata)
        found |= {each.name for each in texts if not each.metadata.get("path")}
    assert found == {"caption_column", "device", "encoding", "image_column", "trigger"}


def test_the_papers_values_are_the_defaults():
    lcd = make("lcd")
    assert (lcd.guidance, lcd.huber_c, lcd.loss, lcd.ema_decay, lcd.w_embedding) == (4.5, 0.001, "huber", 0.95, False)
    assert (lcd.learning_rate, lcd.adam_epsilon, lcd.clip_norm, lcd.warmup_steps) == (2e-5, 1e-10, 0.01, 100)
    assert (lcd.weight_decay, lcd.accumulation, lcd.beta_schedule, lcd.caption_drop) == (0.0, 1, "linear", 0.0)
    control = make("controlnet")
    assert (control.copy_blocks, control.accumulation, control.weight_decay) == (13, 4, 3e-2)
    assert (control.wiring, control.warmup_steps, control.clip_norm) == ("transformer", 0, 0.01)
    lora = make("lcm-lora")
    assert (lora.lora_rank, lora.lora_alpha, lora.guidance) == (32, 8.0, 4.5)


def test_what_is_said_wins_over_a_recipe(tmp_path):
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"accumulation": 7, "steps": 70}))
    config = load_config("lcd", str(file), ["run=r", "data=d", "base=b", "steps=3"], recipe_values("lcd", "16gb"))
    assert (config.batch_size, config.accumulation, config.steps) == (4, 7, 3)
    for command in TRAININGS:
        for name in RECIPES_BY_NAME[1:]:
            make(command, **recipe_values(command, name))
    with pytest.raises(ConfigError, match="choose one of 8gb"):
        recipe_values("lcd", "9gb")


def test_no_rule_changes_the_learning_rate_behind_ones_back():
    """The authors' base configuration scaled it by the root of the batch size, unseen."""
    from pixart_delta.training.engine import learning_rate

    for batch_size, accumulation in ((1, 1), (16, 4)):
        config = make(batch_size=batch_size, accumulation=accumulation)
        rate = learning_rate(config)
        assert rate(99) == rate(5000) == config.learning_rate == 2e-5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_is_described_and_shown(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    for each in fields(COMMANDS[command]):
        assert each.metadata["help"]
        assert each.metadata["help"] in shown
        assert f"  {each.name}=" in shown
    assert COMMANDS[command].describe() in shown


@pytest.mark.parametrize("command", TRAININGS)
def test_settings_survive_a_file(command, tmp_path):
    config = make(command, steps=7, precision="fp16", learning_rate=3e-4)
    (tmp_path / "c.json").write_text(json.dumps(config.to_dict()))
    assert load_config(command, str(tmp_path / "c.json"), []) == config


def test_the_command_line_wins_and_knows_the_types(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({**NEEDED, "steps": 5, "learning_rate": 1}))
    values = ["steps=9", "compile=True", "learning_rate=1e-3", "run=1e3", "loss=l2"]
    config = load_config("lcd", str(tmp_path / "c.json"), values)
    assert (config.steps, config.compile, config.learning_rate, config.run, config.loss) == (9, True, 1e-3, "1e3", "l2")
    assert load_config("sample", None, ["run=r", 'prompts=["a, b"]']).prompts == ["a, b"]


@pytest.mark.parametrize(
    "name,meant",
    [
        ("lerning_rate", "learning_rate"),
        ("batchsize", "batch_size"),
        ("huber", "huber_c"),
        ("gradient_checkpoint", "gradient_checkpointing"),
        ("EMA_decay", "ema_decay"),
        ("omega", None),
    ],
)
def test_a_misspelt_setting_gets_a_suggestion(name, meant):
    with pytest.raises(ConfigError, match=f"no setting {name}: " + (f"did you mean {meant}" if meant else "it has")):
        make(**{name: 1})


def test_a_misspelt_setting_gets_a_suggestion_on_the_command_line_whatever_its_value(capsys):
    for given in ("precison=fp32", "precison=1", "precison="):
        assert main(["lcd", "--set", given]) == 1
        assert capsys.readouterr().err == "error: lcd has no setting precison: did you mean precision?\n"
    assert main(["lcd", "--set", "required=run"]) == 1 and "has no setting required" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_a_number_that_is_none_is_refused_from_everywhere(text, tmp_path):
    pairs = [f"{name}={value}" for name, value in NEEDED.items()]
    with pytest.raises(ConfigError, match="learning_rate is -?(nan|inf): a finite number is wanted"):
        load_config("lcd", None, [*pairs, f"learning_rate={text}"])
    json_text = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(text, text)
    (tmp_path / "c.json").write_text(f'{{"learning_rate": {json_text}}}')
    with pytest.raises(ConfigError, match="learning_rate is"):
        load_config("lcd", str(tmp_path / "c.json"), pairs)


@pytest.mark.parametrize(
    "values,message",
    [
        ({"steps": 0}, "steps is 0: it must be between 1 and"),
        ({"steps": 1.5}, "steps is 1.5: a whole number is wanted"),
        ({"steps": True}, "steps is True: a whole number is wanted"),
        ({"learning_rate": "2e-5"}, "learning_rate is '2e-5': a number is wanted"),
        ({"compile": 1}, "compile is 1: true or false is wanted"),
        ({"run": 3}, "run is 3: text is wanted"),
        ({"loss": "l1"}, "loss is 'l1': choose one of huber, l2"),
        ({"precision": "fp8"}, "choose one of auto, fp32, bf16, fp16"),
        ({"caption_drop": 1.5}, "caption_drop is 1.5: it must be between 0.0 and 1.0"),
        ({"data": ""}, "data is not set: folder or URL of prepared features"),
        ({"base": ""}, "base is not set: the teacher, as which the student begins"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        make(**values)


def test_files_and_texts_that_are_none_are_named(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.json").write_text('{"steps": ')
    for file, message in (("list", "not a JSON object"), ("broken", "cannot read"), ("missing", "cannot read")):
        with pytest.raises(ConfigError, match=message):
            load_config("lcd", str(tmp_path / f"{file}.json"), [])
    with pytest.raises(ConfigError, match="--set takes key=value, got 'steps'"):
        load_config("lcd", None, ["steps"])
    with pytest.raises(ConfigError, match="steps=many: not a int"):
        load_config("lcd", None, ["steps=many"])
    with pytest.raises(ConfigError, match="give either base"):
        make("finetune", model={"depth": 2})
    with pytest.raises(ConfigError, match="lora_rank needs base"):
        make("finetune", base="", model={"depth": 2}, lora_rank=4)


def test_no_setting_does_nothing():
    for given in (0.0, 0.9995):  # none wanted, and none said
        assert make("finetune", lora_rank=4, ema_decay=given).ema_decay == 0.0
    lora = make("finetune", lora_rank=4)
    assert make_config("finetune", lora.to_dict()) == lora and make("finetune").ema_decay == 0.9995
    with pytest.raises(
        ConfigError, match=r"ema_decay is 0.9: a LoRA \(lora_rank\) has no averaged weights, leave it out"
    ):
        make("finetune", lora_rank=4, ema_decay=0.9)
    with pytest.raises(ConfigError, match="lcm-lora has no setting ema_decay"):
        make("lcm-lora", ema_decay=0.0)


NO_PATHS = {"caption_column", "device", "encoding", "image_column", "trigger"}


@pytest.mark.parametrize("command", COMMANDS)
def test_paths_mean_the_same_from_any_directory(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    texts = [each.name for each in fields(COMMANDS[command]) if each.type == "str" and "choices" not in each.metadata]
    paths = sorted(set(texts) - NO_PATHS)
    given = {}
    if command == "prepare":  # it is of pictures, or of prompts
        given, own = {"hints": "folder", "masks": "folder"}, {"prompts", "base", "lora"}
        at = make_config(command, {name: name for name in own | {"models", "output"}}).located()
        assert {getattr(at, name) for name in own} == {str(tmp_path / name) for name in own}
        paths = sorted(set(paths) - own)
    config = make_config(command, {name: f"a/../{name}" for name in paths} | given).located()
    assert [getattr(config, name) for name in paths] == [str(tmp_path / name) for name in paths]
    assert config.located() == config
    away = make_config(command, {name: "s3://bucket/../x" for name in paths} | given)
    assert away.located() == away
    at_home = make_config(command, {name: "~/x" for name in paths} | given).located()
    assert {getattr(at_home, name) for name in paths} == {str(tmp_path / "home/x")}


@pytest.mark.parametrize(
    "earlier,now",
    [("", ("none", "")), ("hed", ("hed", "")), ("a/folder", ("folder", "a/folder")), (None, ("none", ""))],
)
def test_hints_of_earlier_versions_are_read(earlier, now, tmp_path):
    """They were one setting: hed, a folder, or empty."""
    values = {"input": "i", "output": "o", "hed": "h"} | ({} if earlier is None else {"hints": earlier})
    config = make_config("prepare", values)
    assert (config.hints, config.hint_folder) == now and make_config("prepare", config.to_dict()) == config
    (tmp_path / "c.json").write_text(json.dumps(values))
    assert load_config("prepare", str(tmp_path / "c.json"), []) == config
    assert load_config("prepare", str(tmp_path / "c.json"), ["hints=hed"]).hints == "hed"
    texts = [f"{name}={value}" for name, value in values.items()]
    assert load_config("prepare", None, texts) == config
    located = config.located()
    assert located.hint_folder == (str(Path("a/folder").absolute()) if now[1] else "") and located.hints == now[0]


def test_hints_and_their_folder_belong_together():
    given = {"input": "i", "output": "o", "hint_folder": "f"}
    with pytest.raises(ConfigError, match="hint_folder is set, but hints is none: set hints=folder"):
        make_config("prepare", given)
    with pytest.raises(ConfigError, match="hints is 'hedd': choose one of none, hed, folder"):
        make_config("prepare", given | {"hints": "hedd"})
    with pytest.raises(ConfigError, match="hints=folder needs hint_folder"):
        make_config("prepare", {"input": "i", "output": "o", "hints": "folder"})


def test_the_hints_of_edges_are_no_path():
    assert make_config("prepare", {"input": "i", "output": "o", "hints": "hed", "hed": "h"}).located().hints == "hed"


COMMAND_OF = {
    "lcd": "lcd",
    "finetune": "finetune",
    "nano_finetune": "finetune",
    "lcm_lora": "lcm-lora",
    "controlnet": "controlnet",
    "nano_student": "lcd",
    "nano_teacher": "finetune",
    "nano_lcm_lora": "lcm-lora",
    "nano_controlnet": "controlnet",
}
"""The beginning of a recipe's name tells its command."""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(recipe):
    command = next(command for start, command in COMMAND_OF.items() if recipe.stem.startswith(start))
    needed = {**NEEDED, **({"base": ""} if "model" in json.loads(recipe.read_text()) else {})}
    config = load_config(command, str(recipe), [f"{name}={value}" for name, value in needed.items()])
    if not recipe.stem.startswith("nano"):
        assert config.gradient_checkpointing and f"`{recipe.stem}`" in recipe.with_name("README.md").read_text()


def test_every_number_has_bounds():
    for kind in COMMANDS.values():
        hints = get_type_hints(kind)
        for each in fields(kind):
            if hints[each.name] in (int, float):
                assert {"low", "high"} <= set(each.metadata), each.name


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("steps", 10**400, "a number of about 400 digits: a finite number"),
        ("steps", 10**10, "between 1 and 1000000000"),
        ("steps", -(10**4000), "finite"),
        ("learning_rate", 10**400, "finite"),
        ("learning_rate", float("nan"), "finite"),
        ("model", {"depth": float("nan")}, "model holds nan"),
        ("model", {"depth": 10**400}, "model holds a number of about 400 digits"),
        ("model", {"depth": [[[[[1]]]]]}, "nested"),
        ("model", {"depth": "x" * 5000}, "model holds"),
        ("model", {str(i): i for i in range(20_000)}, "more than"),
        ("base", "a\0b", "without NUL"),
        ("base", "x" * 5000, "at most 4096"),
    ],
)
def test_values_that_no_run_can_have(name, value, problem):
    with pytest.raises(ConfigError, match=problem):
        make_config("finetune", {"run": "r", "data": "d", **({} if name == "model" else {"base": "b"}), name: value})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_form_has_every_setting_with_a_default_that_the_command_takes(command):
    kind = COMMANDS[command]
    rows = kind.form()
    assert [row["name"] for row in rows] == kind.names()
    json.dumps(rows, allow_nan=False)
    types = {"int": int, "float": (int, float), "bool": bool, "str": str, "list": list, "dict": dict}
    for row in rows:
        assert isinstance(row["default"], types[row["type"]]) and row["help"], row
        if row["required"]:
            assert row["path"], "what has to be given names a file"
