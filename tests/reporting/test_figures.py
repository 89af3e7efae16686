import json
import math

import plotly.graph_objects as go
import pytest
import report_sample
import typed

from rewardlm.reporting import figures, flows


def flow_figure(change):
    return figures.flow_figure(change.from_, change.to, flows.counts(change))


def all_figures():
    result = typed.comparison(report_sample.sample_result())
    yield figures.confidence_figure(result.models, "lexical2", 40)
    for change in result.comparisons:
        yield flow_figure(change)
    for records in report_sample.sample_training().values():
        for _, _, figure in figures.training_figures(records):
            yield figure


def test_plotly_accepts_every_figure():
    for figure in all_figures():
        go.Figure(figure)
        json.dumps(figure, allow_nan=False)


def test_shares_and_intervals_are_those_of_the_table():
    models = report_sample.sample_result()["models"]
    everything, toxic = figures.confidence_figure(typed.models(models), "lexical2", 40)["data"]
    assert everything["x"] == pytest.approx([100 * 91 / 700, 100 * 82 / 700, 100 * 61 / 676])
    ends = models[2]["scorers"]["lexical2"]["toxic_prompts"]["toxic_fraction_ci95"]
    assert toxic["x"][2] - toxic["error_x"]["arrayminus"][2] == pytest.approx(100 * ends[0])
    assert toxic["x"][2] + toxic["error_x"]["array"][2] == pytest.approx(100 * ends[1])


def test_a_model_without_scores_has_no_mark():
    models = report_sample.sample_result()["models"]
    models[1]["scorers"]["lexical2"]["all"] = report_sample.EMPTY
    del models[2]["scorers"]["lexical2"]
    everything, toxic = figures.confidence_figure(typed.models(models), "lexical2", 40)["data"]
    assert [len(everything["x"]), len(toxic["x"])] == [1, 2]


def test_flow_keeps_every_pair():
    comparison = {"from": "A", "to": "B", "flow": [[5, 0, 1], [0, 0, 0], [3, 2, 0]], "flow_unscored": 4}
    (sankey,) = flow_figure(typed.change(comparison))["data"]
    links, nodes = sankey["link"], sankey["node"]
    moved = {
        (nodes["label"][source], nodes["label"][target], value)
        for source, target, value in zip(links["source"], links["target"], links["value"], strict=True)
    }
    assert moved == {
        ("low 6", "low 8", 5),
        ("low 6", "high 1", 1),
        ("high 5", "low 8", 3),
        ("high 5", "medium 2", 2),
        ("unscored 4", "unscored 4", 4),
    }
    assert all(0 < place < 1 for place in nodes["x"] + nodes["y"])
    # From top to bottom: low, medium, high, unscored.
    left = [y for x, y in zip(nodes["x"], nodes["y"], strict=True) if x < 0.5]
    assert left == sorted(left)


def test_flow_shows_what_went_to_the_unscored_and_came_from_there():
    comparison = {
        "from": "A", "to": "B", "flow": [[5, 0, 0], [0, 0, 0], [0, 0, 1]], "flow_unscored": 9,
        "flow_to_unscored": [0, 1, 4], "flow_from_unscored": [2, 0, 0],
    }  # fmt: skip
    (sankey,) = flow_figure(typed.change(comparison))["data"]
    moved = dict(zip(sankey["link"]["customdata"], sankey["link"]["value"], strict=True))
    assert moved == {
        "low → low": 5, "high → high": 1, "medium → unscored": 1, "high → unscored": 4, "unscored → low": 2,
        "unscored → unscored": 2,
    }  # fmt: skip
    assert set(sankey["node"]["label"]) == {
        "low 5", "medium 1", "high 5", "unscored 4", "low 7", "high 1", "unscored 7",
    }  # fmt: skip


def test_buckets_have_one_colour_everywhere():
    comparison = {"from": "A", "to": "B", "flow": [[1, 1, 1]] * 3, "flow_unscored": 0}
    (sankey,) = flow_figure(typed.change(comparison))["data"]
    for label, colour in zip(sankey["node"]["label"], sankey["node"]["color"], strict=True):
        assert colour == figures.COLOURS[label.split()[0]]


@pytest.mark.parametrize("colour", figures.COLOURS.values())
@pytest.mark.parametrize("background", ["#ffffff", "#1a1f28"])
def test_colours_stand_out_on_both_schemes(colour, background):
    # WCAG 2.1: relative luminance, 3:1 for graphical objects.
    def luminance(code):
        channels = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    lighter, darker = sorted((luminance(colour), luminance(background)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 3


def test_curves_of_the_keys_that_exist():
    records = [{"step": 1, "loss": 2.0, "seconds": 3.0}, {"step": 2, "eval_loss": 1.5}, {"step": 3, "loss": math.nan}]
    ((heading, _, figure),) = figures.training_figures(records)
    assert heading == "Loss"
    assert [(trace["x"], trace["y"]) for trace in figure["data"]] == [([1], [2.0]), ([2], [1.5])]
    assert figures.training_figures([{"step": 1, "kl": None, "warnings": []}]) == []


def test_long_runs_are_thinned_and_keep_their_last_step():
    records = [{"step": step, "kl": float(step)} for step in range(10_001)]
    ((_, _, figure),) = figures.training_figures(records)
    assert len(figure["data"][0]["x"]) <= 1500
    assert figure["data"][0]["x"][-1] == 10_000


def test_labels_are_literal_and_short():
    assert figures.plain("<b>x</b> & y") == "&lt;b&gt;x&lt;/b&gt; &amp; y"
    assert figures.plain("a\x00b\nc") == "a b c"
    assert len(figures.plain("x" * 300)) == 28


def test_judges_and_witnesses_share_a_figure_and_hostile_names_are_text():
    records = [
        {
            "step": step,
            "toxicity_mean": 0.5 - step / 10,
            "toxicity_by_witness": {"<b>w</b>": 0.4},
            "terms": {"length": 1.0},
        }
        for step in (1, 2)
    ]
    records[1]["toxicity_by_witness"] = {"<b>w</b>": None, "late": 0.3}
    found = {heading: figure["data"] for heading, _, figure in figures.training_figures(records)}
    assert {trace["name"]: list(zip(trace["x"], trace["y"], strict=True)) for trace in found["Judged toxicity"]} == {
        "the reward": [(1, 0.4), (2, 0.3)],
        "&lt;b&gt;w&lt;/b&gt;": [(1, 0.4)],
        "late": [(2, 0.3)],
    }
    assert [trace["name"] for trace in found["Extra terms"]] == ["length"]
