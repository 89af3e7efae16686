"""What the page and the terminal say of a planted model: the stored numbers, in words that they bear out."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import pytest
from markupsafe import escape
from planted import examined
from rich.console import Console

from rewardlm import formats
from rewardlm.interpreting.findings import CausalRow, Estimate, Inside, LogitShareMeans
from rewardlm.reporting import interpretation, intervals, mechanistic
from rewardlm.reporting.mechanistic_figures import (
    edges,
    lens_figure,
    pushed_figure,
    scale_figure,
    shares_figure,
    wrote_figure,
)
from rewardlm.reporting.mechanistic_tables import print_inside
from rewardlm.reporting.shell import render

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    # What is shown came out of a file.
    return {way: json.loads(json.dumps(examined(way)[1].dump())) for way in ("rewritten", "avoided", "untouched")}


def typed(found: dict[str, Any] | None) -> Inside | None:
    """As the report reads it."""
    return None if found is None else Inside.model_validate(found)


def said(found: dict[str, Any]) -> dict[str, str]:
    rows = mechanistic.sentences(Inside.model_validate(found))
    return {row["question"]: "".join(text for text, _ in row["parts"]) for row in rows}


def shown(found: dict[str, Any] | None, notes: tuple[str, ...] = ()) -> str:
    filters = {"visible": interpretation.visible, "interval_number": intervals.number_text, "score": formats.number}
    inside = mechanistic.section(typed(found), notes)
    pages = [render(name, filters, inside=inside, part="inside") for name in ("layers.html.j2", "mechanistic.html.j2")]
    asked = "" if found is None else " ".join(said(found).values())
    return "".join(pages) + str(escape(asked))


def printed(found: dict[str, Any] | None, notes: tuple[str, ...] = ()) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    print_inside(typed(found), notes, console)
    return console.export_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("rewritten", "Unlearned: the adapter turned"),
        ("avoided", "Bypassed: the toxic value vectors are still there, and are set off less"),
        ("untouched", "Bypassed: the toxic value vectors are still there and push as before"),
    ],
)
def test_the_verdict_in_words(results: dict[str, dict[str, Any]], way: str, words: str) -> None:
    found = results[way]
    sentences = said(found)
    assert sentences["Has FT unlearned toxicity?"].startswith(words)
    assert "1 of 2 layers carry 80 %" in sentences["Where does FT’s change sit?"]
    verdict = found["verdicts"]["FT"]
    assert f"{verdict['vector_cosine']:.3f}" in sentences["Has FT unlearned toxicity?"]
    assert f"{abs(verdict['toxicity_change']['mean']):.3f}" in sentences["Has FT unlearned toxicity?"]
    for text in (shown(found), printed(found)):
        assert words.split(":")[0] in text


@pytest.mark.slow
def test_what_is_not_sure_is_not_said(results: dict[str, dict[str, Any]]) -> None:
    found = copy.deepcopy(results["avoided"])
    added = next(row for row in found["causal"]["rows"] if row["model"] == "FT" and row["kind"] == "add")
    added["change"]["ci95"] = [-0.01, 0.6]
    assert "does not measurably" in said(found)["Does the direction still work in FT?"]
    added["change"] |= {"ci95": [0.01, 0.6], "p_value": 0.03, "p_adjusted": 0.3}
    assert "does not measurably" in said(found)["Does the direction still work in FT?"]
    added["change"]["p_adjusted"] = 0.04
    assert "Adding it makes answers more toxic" in said(found)["Does the direction still work in FT?"]
    assert "may not be the vectors" not in said(found)["Has FT unlearned toxicity?"]
    found["verdicts"]["FT"]["direction_used"] = False
    assert "may not be the vectors" not in said(found)["Has FT unlearned toxicity?"]
    found["vectors"]["by"] = "direction"
    assert "may not be the vectors" in said(found)["Has FT unlearned toxicity?"]
    found["verdicts"]["FT"]["kind"] = "unclear"
    assert said(found)["Has FT unlearned toxicity?"].startswith("Nothing to explain")
    found["verdicts"]["FT"]["push_ratio"] = None
    assert "don’t measurably push towards toxicity" in said(found)["Has FT unlearned toxicity?"]
    # An interval that holds one is no bypass.
    found["verdicts"]["FT"] |= {"kind": "cannot_tell", "reason": "the interval of their push holds 1"}
    assert said(found)["Has FT unlearned toxicity?"].startswith("Can’t tell: the interval of their push holds 1. ")


@pytest.mark.slow
def test_shares_that_do_not_add_up_are_not_shown(results: dict[str, dict[str, Any]]) -> None:
    found = copy.deepcopy(results["rewritten"])
    path = found["paths"]["FT"]
    assert path["adds_up"]
    assert abs(path["missing"]) <= 0.05 * abs(path["whole"])
    assert "Which layers carry the change" in shown(found)
    question = next(q for q, text in said(found).items() if "layers carry 80 %" in text)
    path |= {"adds_up": False, "missing": 0.3 * path["whole"], "fewest": None}
    found["verdicts"]["FT"] |= {"spread": None, "fewest_layers": None}
    assert "Which layers do it can’t be told" in said(found)[question]
    assert "the shares of layers miss 30% of it" in said(found)[question]
    assert "Which layers carry the change" not in shown(found)
    # A preference that was not shown to rise has no shares at all.
    path |= {"by_layer": [], "by_module": {}, "steps": 0, "missing": path["whole"]}
    path["redraw"]["change"] |= {"mean": 0.1, "ci95": [-0.1, 0.3]}
    assert "So no layer has a share in that." in said(found)[question]
    assert "Which layers carry the change" not in shown(found)
    assert "Layers" in printed(found)


@pytest.mark.slow
def test_what_is_lost_without_the_vectors_is_said_beside_others(results: dict[str, dict[str, Any]]) -> None:
    found = copy.deepcopy(results["untouched"])
    text = said(found)["What does PT lose without the 1 value vectors?"]
    base = found["ablation"]["by_model"]["PT"]
    assert f"by {intervals.number_text(Estimate.model_validate(base['logits']['change']))}, and on average by" in text
    assert "without 20 sets of others as long (p = 0.048 among them)" in text
    # What two sets say of toxicity is shown, and not claimed.
    assert "2 sets are too few to say what chance does): silencing these was not shown to take more toxicity" in text
    assert "takes more of these logits than silencing others" in text
    base["logits"]["beyond_random"] = {"mean": -0.1, "ci95": [-0.3, 0.1], "n": 6}
    assert "was not shown to take more of these logits" in said(found)["What does PT lose without the 1 value vectors?"]
    base["logits"] |= {"beyond_random": {"mean": -0.1, "ci95": [-0.3, -0.05], "n": 6}, "p_value_random": 2 / 21}
    assert "was not shown to take more of these logits" in said(found)["What does PT lose without the 1 value vectors?"]
    for taken, why in (((-0.3, 0.1), "no loss is shown"), ((-0.3, -0.1), "the base was not shown to need them")):
        alone = copy.deepcopy(found)
        alone["ablation"]["by_model"]["PT"]["logits"] |= {
            "change": {"mean": -0.1, "ci95": taken, "n": 6}, "random": None, "random_change": None,
            "random_changes": [], "beyond_random": None, "p_value_random": None,
        }  # fmt: skip
        assert f"{why}, so no others were silenced." in said(alone)["What does PT lose without the 1 value vectors?"]
        assert f"{why}, so no others were silenced." in " ".join(printed(alone).split())
    own = said(found)["Has FT unlearned toxicity?"]
    assert (
        "“As before” asks for an interval within 0.80 and 1.25; adapters of the same size with random weights push"
        in own
    )
    for text in (shown(found), printed(found)):
        assert "was not shown to take more of these logits" in " ".join(text.split())
    found["ablation"] = None
    assert not any("lose without" in question for question in said(found))


@pytest.mark.slow
def test_missing_parts_leave_the_rest(results: dict[str, dict[str, Any]]) -> None:
    found = copy.deepcopy(results["avoided"])
    found["directions"] = {"n": 3, "n_toxic": 1, "reason": "1 toxic answer"}
    found |= {"vectors": None, "causal": None, "words": None, "paths": {"FT": None}, "notes": ["No direction."]}
    for one in found["stream"].values():
        for name in ("shares", "lens", "largest_error", "lens_positions"):
            del one[name]
    del found["adapters"]["FT"]["score"], found["adapters"]["FT"]["share"]
    found["verdicts"]["FT"] |= {"kind": None, "spread": None, "fewest_layers": None, "push_ratio": None}
    for text in (shown(found), printed(found)):
        assert "No direction." in text
        assert "nothing can be said" in " ".join(text.split())
    assert "Left out." in shown(None, ("Left out.",))
    assert "Left out." in printed(None, ("Left out.",))
    assert shown(None).strip() == ""


@pytest.mark.slow
def test_figures_hold_the_stored_numbers(results: dict[str, dict[str, Any]]) -> None:
    found = results["untouched"]
    before, after = (found["stream"][label]["shares"] for label in ("PT", "FT"))
    read = Inside.model_validate(found)
    (heat,) = shares_figure(*(LogitShareMeans.model_validate(shares) for shares in (before, after)))["data"]
    assert heat["x"] == ["head 0", "head 1", "head 2", "head 3", "MLP"]
    for layer in range(2):
        for head in range(4):
            parts = [s["heads"][layer][head] + s["adapter_heads"][layer][head] for s in (before, after)]
            assert heat["z"][layer][head] == pytest.approx(parts[1] - parts[0])
        parts = [s["mlp"][layer] + s["mlp_bias"][layer] + s["adapter_mlp"][layer] for s in (before, after)]
        assert heat["z"][layer][4] == pytest.approx(parts[1] - parts[0])
    assert heat["z"][1][4] < -1
    own = found["adapters"]["FT"]
    most, far = edges([read.adapters["FT"]])
    (wrote,) = wrote_figure(read.adapters["FT"], most)["data"]
    row = wrote["y"].index("down_proj")
    assert wrote["z"][row][1] == pytest.approx(100 * own["length"]["mlp.down_proj"][1])
    assert wrote["zmax"] == pytest.approx(max(map(max, wrote["z"])))
    pushed = pushed_figure(read.adapters["FT"], far)
    assert pushed is not None
    heat = pushed["data"][0]
    assert heat["z"][row] == pytest.approx(own["share"]["mlp.down_proj"])
    assert heat["zmax"] == -heat["zmin"] == pytest.approx(max(abs(value) for row in heat["z"] for value in row))
    (line,) = scale_figure(read)["data"]
    assert line["x"] == [0.0, 1.0]
    plain = {row["model"]: row["toxicity"] for row in found["causal"]["rows"] if row["kind"] == "plain"}
    assert line["y"] == [plain["PT"], plain["FT"]]


@pytest.mark.slow
def test_intervals_are_drawn_where_they_are_known(results: dict[str, dict[str, Any]]) -> None:
    found = copy.deepcopy(results["untouched"])
    written, lens = found["adapters"]["FT"], found["stream"]["FT"]["lens"]
    n_layers = len(written["share"]["mlp.down_proj"])
    written["share_ci95"] = {"mlp.down_proj": {"low": [-1.0] * n_layers, "high": [1.0, *[-0.5] * (n_layers - 1)]}}
    lens["score_ci95"] = {"low": [value - 1 for value in lens["score"]], "high": [value + 2 for value in lens["score"]]}
    found["stream"]["PT"]["lens"]["score_ci95"] = None
    read = Inside.model_validate(found)
    figure = pushed_figure(read.adapters["FT"], 1.0)
    assert figure is not None
    _, dots = figure["data"]
    assert (dots["x"], dots["y"]) == ([0], ["down_proj"])
    band, *lines = lens_figure(read)["data"]
    assert band["y"] == [value + 2 for value in lens["score"]] + [value - 1 for value in lens["score"]][::-1]
    assert [line["name"] for line in lines] == ["PT", "FT"]
    assert band["legendgroup"] == lines[1]["legendgroup"]
    assert "Intervals are not known here" in shown(found)
    found["stream"]["PT"]["lens"]["score_ci95"] = lens["score_ci95"]
    assert "Bands: 95 % intervals over prompts" in shown(found)
    assert "A dot: the 95 % interval holds zero" in shown(found)


@pytest.mark.slow
def test_hostile_names_and_tokens_stay_text(results: dict[str, dict[str, Any]]) -> None:
    text = json.dumps(results["avoided"]).replace('"FT"', json.dumps(HOSTILE))
    found = json.loads(text)
    found["vectors"]["rows"][0]["tokens"][0] = HOSTILE
    found["notes"] = [HOSTILE]
    shown_page = shown(found)
    assert HOSTILE not in shown_page
    assert "&lt;script&gt;" in shown_page
    section = mechanistic.section(typed(found))
    assert section is not None
    figures = section["figures"]
    figures["shares"] = [spec for _, spec in figures["shares"]]
    figures["maps"] = [specs for _, *specs in figures["maps"]]
    assert HOSTILE not in json.dumps(figures)
    found["notes"] = ["\x1b[31mred"]
    found["vectors"]["rows"][0]["tokens"][0] = "\x1b[2J"
    assert "\x1b" not in printed(found)


def test_changes_in_words() -> None:
    nothing = {"toxicity": None, "toxic_share": None, "judged": 0, "perplexity": None, "change": None, "texts": []}
    row = CausalRow(model="FT", kind="layers_off", value=1.0, layers=[3, 4, 5], **nothing)
    assert mechanistic.what_was_done(row) == "adapter off in layers 3–5"
    assert mechanistic.what_was_done(row.model_copy(update={"layers": [3]})) == "adapter off in layer 3"
    scaled = row.model_copy(update={"kind": "scale", "value": 1.5, "layers": []})
    assert mechanistic.what_was_done(scaled) == "adapter × 1.5"
    change = Estimate(mean=-0.12, ci95=(-0.3, 0.01), n=3)
    assert intervals.number_text(change, 3) == "−0.120 (−0.300 to +0.010)"
    assert intervals.number_text(None) == "—"
