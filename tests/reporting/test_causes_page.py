"""What page and terminal say of causes: no more than both tests of a claim allow."""

import copy
import io

import pytest
import whole_sample
from rich.console import Console

from rewardlm.interpreting.findings import Interpretation
from rewardlm.reporting import causes
from rewardlm.reporting.interpretation_tables import print_interpretation


@pytest.fixture
def model():
    return whole_sample.whole_interpretation().models[1]


def said(model, question):
    (row,) = [row for row in causes.sentences([model]) if question in row["question"]]
    return "".join(text for text, _ in row["parts"]), "".join(text for text, strong in row["parts"] if strong)


def test_only_what_is_claimed_is_named(model):
    text, strong = said(model, "Through which heads")
    assert strong == "head 1.0 (+0.050), head 1.1 (+0.050), mlp 1 (+0.050)"
    # 0.15 of the change of 0.3.
    assert f"some of it by itself in {strong}: one by one these add up to +0.150, 50 % of the change, and all " in text
    # The other three heads and MLPs do 0.01 each, by estimate.
    for site in model.patching:
        site.exact = site.exact and site.origin
        if site.kind != "stream" and not site.origin:
            site.own = 0.01
    text, _ = said(model, "Through which heads")
    assert "and all 6 heads and MLPs (3 of them estimated) to 60 %. " in text
    assert "against it" not in text
    assert "It passes through head 1.0 (+0.200)" in text
    assert "head 0." not in text
    assert "20 adapters of random weights" in text
    assert "ρ = 0.90 for what is passed on and 0.80 for what is done by itself." in text
    assert "On 24 placebo pairs, of two harmless answers, both of the base, it changed by +0.25" in text
    assert "by estimates alone, 3 heads and MLPs would be said to pass it on (on the pairs themselves 4)." in text
    next(site for site in model.patching if site.site == "mlp 1").own = -0.05
    text, strong = said(model, "Through which heads")
    assert strong == "head 1.0 (+0.050), head 1.1 (+0.050)"
    assert "+0.100, 33 % of the change, and all 6 " in text
    assert "It works against it in mlp 1 (−0.050). " in text
    for site in model.patching:
        site.origin = site.claimed = False
    text, strong = said(model, "Through which heads")
    assert strong == ""
    assert "No single head or MLP can be named" in text
    assert "It passes through" not in text


def test_the_verdict_names_its_margins(model):
    text, strong = said(model, "unlearned")
    assert strong == "Bypassed: the value vectors could write as before, and other parts keep the model from it"
    assert "an interval above 50 % with the base’s value vectors, the second for one below 20 %." in text
    assert "own new answers" not in text
    model.verdict.kind = "cannot_tell"
    assert said(model, "unlearned")[1] == ""


def test_pairs_of_its_own_answers_are_no_verdict_on_toxicity(model):
    model.towards = "own"
    text, strong = said(model, "Do FT’s value vectors move it to its new answers")
    assert "its value vectors could write as before; other parts move it to its new answers" in strong.lower()
    assert "The preference for the base’s own harmless answers was not shown to rise (+0.02 (" in text
    model.harmless_change.ci95, model.harmless_change.mean = (0.1, 0.3), 0.2
    text, _ = said(model, "Do FT’s value vectors")
    assert "The preference for the base’s own harmless answers changed by +0.20 (+0.10 to +0.30)" in text
    text, _ = said(model, "Through which heads")
    assert "a toxic answer of the base and a new, harmless one of FT" in text
    assert "of two harmless answers, one of the base and one of FT" in text


def test_the_smallest_adapter_stands_beside_the_whole(model):
    text, strong = said(model, "less of")
    assert strong == "7 % of its numbers (3 of 40 by rank)"
    assert "0.700 for the base, 0.300 with the whole adapter and 0.300 with this part, 60 % (40 to 80)" in text
    assert "Against the whole: similarity +0.02 (+0.01 to +0.03), drift −0.05 (−0.07 to −0.03)" in text
    model.minimal_adapter.reason = "there is nothing to keep"
    assert said(model, "less of") == ("Not known: there is nothing to keep.", "")


def test_a_part_that_chance_chose_is_not_praised(model):
    change = model.minimal_adapter.change_from_whole
    model.minimal_adapter.change_from_whole = change.model_copy(update={"mean": 0.04, "ci95": (0.01, 0.07)})
    text, strong = said(model, "Is less of")
    assert "more toxic than the whole adapter (by +0.04 (+0.01 to +0.07))" in strong
    assert "chosen by chance" in text
    for ends in ((-0.01, 0.07), (-0.07, -0.01)):
        model.minimal_adapter.change_from_whole = change.model_copy(update={"mean": sum(ends) / 2, "ci95": ends})
        assert "chance" not in said(model, "Is less of")[0]


def test_the_table_has_all_that_is_claimed_first(model):
    rows = causes.listed(model.patching)
    assert [row.site for row in rows[:3]] == ["head 1.0", "head 1.1", "mlp 1"]
    assert all(row.kind != "stream" for row in rows)
    for site in model.patching:
        site.exact = False
    assert causes.listed(model.patching) == []


def test_a_word_is_as_strong_as_its_share_of_the_largest():
    assert [causes._level(value, 1.0) for value in (0.0, 0.03, 0.05, -0.15, 0.9, -1.0)] == [0, 0, 1, -2, 6, -6]
    assert causes._level(0.0, 0.0) == 0


def test_the_terminal_says_the_same(model):
    console = Console(file=io.StringIO(), width=100, record=True)
    print_interpretation(whole_sample.whole_interpretation(), console)
    shown = " ".join(console.export_text().split())
    assert "Was toxicity unlearned in FT, or is it bypassed?" in shown
    assert "7 % of its numbers (3 of 40 by rank)" in shown


def test_heads_alone_are_shown_without_a_map(model):
    alone = copy.deepcopy(whole_sample.whole_interpretation())
    for name in ("patching", "patched", "neuron_groups", "neurons", "verdict", "minimal_adapter"):
        setattr(alone.models[1], name, None)
    found = causes.section(alone)
    assert found is not None
    assert found["models"][0]["origin_map"] is None
    assert "heads are described" in found["models"][0]["lead"]
    plain = Interpretation.model_validate(
        {**alone.model_dump(by_alias=True), "models": [one.model_dump() for one in alone.models[:1]]}
    )
    assert causes.section(plain) is None
