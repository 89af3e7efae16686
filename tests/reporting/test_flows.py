"""A move between buckets is claimed only against a second draw of the same model."""

from __future__ import annotations

import io
from typing import Any

import report_sample
import typed
from rich.console import Console

from rewardlm.measuring.comparison import Change, Comparison
from rewardlm.reporting import flows
from rewardlm.reporting.page import render_page
from rewardlm.reporting.tables import print_comparison


def cell(delta: float, low: float | None, high: float | None, p: float | None, prompts: int = 40) -> dict[str, Any]:
    return {"delta": delta, "ci95": None if low is None else [low, high], "p_value": p, "prompts": prompts}


def entry(high_to_low: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    still = cell(0.0, -0.01, 0.01, 0.9)
    return {
        "from": "PT", "to": "RL", "scorer": "judge", "split": "all",
        "flow": [[478, 14, 13], [50, 8, 1], [71, 22, 17]], "flow_unscored": 0,
        "flow_redraw": [[480.25, 14.5, 10.25], [49, 9, 1], [66.5, 20.5, 23]],
        "flow_excess": [[still] * 3, [still] * 3, [high_to_low, still, still]],
        **more,
    }  # fmt: skip


def comparison(high_to_low: dict[str, Any] | None, **more: Any) -> Change:
    return typed.change(entry(high_to_low, **more))


def strong(found: Change) -> list[str]:
    return [text for text, emphasised in flows.parts(found) if emphasised]


def test_a_move_is_claimed_where_it_differs_from_a_second_draw() -> None:
    found = comparison(cell(0.041, 0.012, 0.07, 0.004))
    assert strong(found) == ["RL moves them more often than chance does"]
    said = flows.text(found)
    assert "Of 110 answers of PT that were high, 71 (64.5 %) are low in RL" in said
    assert "a second draw of PT itself makes 66.5 (60.5 %) low" in said
    assert "(+4.1 points, +1.2 to +7.0; p = 0.004)" in said
    assert "Of 505 answers of PT that were low, 13 (2.6 %) are high in RL" in said
    assert strong(comparison(cell(-0.2, -0.3, -0.1, 0.001))) == ["RL moves them less often than chance does"]


def test_what_chance_does_as_well_is_no_finding() -> None:
    assert strong(comparison(cell(0.041, -0.02, 0.1, 0.2))) == [
        "RL was not shown to move them more or less often than chance does"
    ]
    few = comparison(cell(0.4, None, None, None, prompts=3))
    assert strong(few) == []
    assert "Too few prompts (3)" in flows.text(few)


def test_a_move_is_claimed_only_corrected_for_the_other_models_and_judges() -> None:
    found = comparison({**cell(0.041, 0.012, 0.07, 0.03), "p_adjusted": 0.18})
    assert strong(found) == ["RL was not shown to move them more or less often than chance does"]
    assert "p = 0.030, adjusted p = 0.180" in flows.text(found)
    sure = comparison({**cell(0.041, 0.012, 0.07, 0.004), "p_adjusted": 0.024})
    assert strong(sure) == ["RL moves them more often than chance does"]


def test_common_random_numbers_allow_no_claim_of_fewer_moves() -> None:
    """With them fewer answers move, whatever the model learnt."""
    less = comparison(cell(-0.2, -0.3, -0.1, 0.001), common_draws=0.3)
    assert strong(less) == ["Whether RL moves them less often than chance does can’t be told"]
    assert "30.0 % of the answers begin alike" in flows.text(less)
    more = comparison(cell(0.2, 0.1, 0.3, 0.001), common_draws=0.3)
    assert strong(more) == ["RL moves them more often than chance does"]
    assert strong(comparison(cell(-0.2, -0.3, -0.1, 0.001), common_draws=0.02)) == [
        "RL moves them less often than chance does"
    ]


def test_a_second_draw_that_is_not_known_is_not_printed_as_none() -> None:
    found = comparison(None, flow_redraw=[[480.25, 14.5, 10.25], [49, 9, 1], None])
    assert strong(found) == []
    assert "71 (64.5 %) are low in RL; what a second draw does is not known" in flows.text(found)
    assert [cell["redraw"] for cell in flows.rows(found)[2]["cells"]] == [None] * 3
    assert flows.redrawn_counts(found) is None
    page = render_page(
        result_with(flow_redraw=found.flow_redraw, flow_excess=found.flow_excess),
        title="T", examples=[], training={}, about={},
    )  # fmt: skip
    assert "what a second draw does is not known" in page


def test_without_a_second_draw_nothing_is_claimed_and_it_is_said_what_to_do() -> None:
    found = comparison(None, flow_redraw=None, flow_excess=None)
    assert strong(found) == ["How much of that is chance is not known"]
    assert "71 went from high to low" in flows.text(found)
    assert "--redraw" in flows.text(found)
    assert flows.redrawn_counts(found) is None
    assert "No answer of PT was high" in flows.text(
        comparison(None, flow=[[5, 0, 0]] * 2 + [[0, 0, 0]], flow_redraw=[[5, 0, 0]] * 2 + [[0, 0, 0]])
    )


def result_with(**more: Any) -> Comparison:
    result = report_sample.sample_result()
    for one in result["comparisons"]:
        if one["to"] == "RL" and one["split"] == "all":
            one |= {key: value for key, value in entry(cell(0.04, -0.02, 0.1, 0.2), **more).items()
                    if key.startswith("flow_")}  # fmt: skip
    return typed.comparison(result)


def test_page_and_terminal_show_it_beside_the_flow() -> None:
    result = result_with()
    page = render_page(result, title="T", examples=[], training={}, about={})
    # Two judges; FT's flows have no second draw.
    assert page.count("RL was not shown to move them more or less often than chance does") == 2
    assert page.count("How much of that is chance is not known") == 2
    assert page.count("PT, drawn again") == 2
    assert "66.5" in page
    file = io.StringIO()
    print_comparison(result, Console(file=file, width=100))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    words = " ".join(text.split())
    assert "RL was not shown to move them more or less often than chance does" in words
    assert "again: what a second draw of PT gives" in words
    (row,) = [line for line in text.splitlines() if line.split()[:2] == ["high", "71"]]
    assert row.split() == ["high", "71", "66.5", "22", "20.5", "17", "23"]
