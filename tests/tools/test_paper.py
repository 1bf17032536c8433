"""tools/paper: a figure's trainings are settings that train.py takes; what is said of marks; the page; the check."""

import json

import pytest
from pixart_delta.training.config import make_config

from tools.paper import __main__ as paper
from tools.paper import page, plots
from tools.paper.figures import FIGURES, apart, beside, follows
from tools.paper.work import Workshop


def marks(*values, half=1.0):
    """As of a distillation: the marks of all numbers of steps are the same, distance a hundredth, at once a half."""
    points = []
    for i, v in enumerate(values):
        one = {"attributes": [v, half], "at once": [v / 2, half / 2], "distance": [v / 100, 0.01]}
        points.append({"step": 10 * i, "marks": dict.fromkeys("124", one)})
    return {"points": points}


@pytest.mark.parametrize("name", FIGURES)
def test_the_trainings_of_a_figure_are_settings_that_exist(name, tmp_path):
    figure, paths = FIGURES[name], {"run": "r", "data": "d", "base": "b"}
    made = [Workshop(tmp_path).values(figure, changed) for changed in figure.variants.values()]
    for values in made:
        make_config(figure.command, values | paths)
    assert len({json.dumps(values, sort_keys=True) for values in made}) == len(made), "two variants are the same"


def test_intervals_that_overlap_tell_nothing_apart():
    assert apart((80, 1), (83, 1)) and not apart((80, 2), (83, 1))
    assert "nothing can be told apart" in beside({"one": marks(50, 80, half=2), "other": marks(50, 83, half=2)})
    assert beside({"one": marks(50, 80), "other": marks(50, 83)}).endswith("other is better.")
    assert beside({"one": marks(50, 80), "other": marks(50, 83)}, measure="distance").endswith("one is better.")
    assert beside({"one": marks(50, 80), "other": marks(50, 84)}, 4, "at once").startswith("other: 42 ± 0.5 %")


def test_the_steepest_rise_of_control_is_named():
    points = [{"step": step, "f1": f1} for step, f1 in ((100, 0.42), (200, 0.44), (300, 0.64), (400, 0.66))]
    assert "steepest from step 200 to 300: +0.20" in follows({"one": {"points": points, "without": 0.41}})


def test_plots_and_page_are_written(tmp_path):
    place = tmp_path / "paper"
    place.mkdir()
    plots.plot({"one": marks(50, 80), "other": marks(50, 83)}, place / "3.png")
    control = {"points": [{"step": 1, "f1": 0.4}, {"step": 2, "f1": 0.5}], "without": 0.4}
    plots.plot({"one": control}, place / "6.png")
    plots.plot_schedules(place / "3_schedules.png")
    plots.strip([("step_00000001", place / "3.png"), ("step_00000002", place / "6.png")], place / "strip.png")
    for name in ("loss", "3"):
        figure = {"paper": "that", "verdict": "this.", "pictures": ["3.png"], "trained_seconds": {"one": 7}}
        (place / f"{name}.json").write_text(json.dumps(figure))
    page.write(place)
    text = (tmp_path / "paper.md").read_text(encoding="utf-8")
    assert text.index("## Figure 3") < text.index("## Loss")
    assert "![Figure 3](paper/3.png)" in text and "Trained in 7 s." in text


def test_a_training_that_begins_otherwise_is_found(tmp_path, monkeypatch, capsys):
    shop, place = Workshop(tmp_path), tmp_path
    losses = {label: [1.0, 0.9] for label in FIGURES["loss"].variants}
    (place / "loss.json").write_text(json.dumps({"first_losses": losses}))
    monkeypatch.setattr(shop, "run", lambda figure, changed, steps: changed)
    monkeypatch.setattr(shop, "losses", lambda changed: [1.0, 0.95 if changed else 0.901])
    assert paper.check(shop, place, ["loss"]) == 1
    out = capsys.readouterr().out
    assert "loss, Huber: differs by 0.00111, 0.02 allowed: ok" in out
    assert "loss, L2: differs by 0.0556, 0.02 allowed: WRONG" in out
    assert paper.check(shop, place, ["average"]) == 0 and "never drawn" in capsys.readouterr().out
