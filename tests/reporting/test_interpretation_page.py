"""What the page and the terminal say of an interpretation: its numbers, and no more than its intervals allow."""

import io
import json

import interpretation_sample
import pytest
from rich.console import Console

from rewardlm.errors import RunError
from rewardlm.interpreting.findings import Interpretation
from rewardlm.reporting import interpretation
from rewardlm.reporting.interpretation_tables import print_interpretation
from rewardlm.reporting.page import build_report
from rewardlm.runs import Run


@pytest.fixture
def result():
    return interpretation_sample.sample_interpretation()


def typed(result):
    """As the report reads it."""
    return Interpretation.model_validate(result)


def on_page(parts, result):
    return parts | {"interpretations": [("PT → FT → RL", typed(result))]}


@pytest.fixture
def shown(parts, render, result):
    return render(on_page(parts, result))


def said(result, model, question):
    rows = interpretation.sentences(typed(result))
    (row,) = [row for row in rows if row["model"] == model and question in row["question"]]
    return "".join(text for text, _ in row["parts"]), "".join(text for text, strong in row["parts"] if strong)


def test_sentences_call_a_change_only_what_its_interval_allows(result):
    text, strong = said(result, "FT", "read the prompt")
    # An interval that holds zero shows no change, nor that there is none.
    assert "it was not shown to rest more or less on the prompt’s words" in strong
    assert "+1.2 points (−1.0 to +3.4)" in text
    assert "about their prompts: similarity above the shuffled null +0.27 (+0.24 to +0.30), more than PT" in text
    text, strong = said(result, "RL", "read the prompt")
    assert "rests less on the prompt’s words" in strong
    # 0.08 own, 0.06 null: the interval of what is above the null includes zero.
    assert "were not shown to be closer to their prompts than to others" in strong
    assert "less than PT’s (−0.18 (−0.22 to −0.14))" in strong
    text, strong = said(result, "FT", "unlearned")
    assert "lost more than its others: toxic text is what changed most" in strong
    assert "by −0.80 (−0.90 to −0.70) nats (n = 11), one of another by −0.30 (−0.40 to −0.20) (n = 19)" in text
    _, strong = said(result, "RL", "unlearned")
    assert "were not shown to lose more than its others" in strong
    text, strong = said(result, "RL", "part from PT")
    assert "at token 3 (median of the 27 of 30 that part)" in strong
    assert "first choice first differs never" in text


def test_a_method_that_is_no_better_than_chance_is_not_believed(result, parts, render):
    text, _ = said(result, "RL", "read the prompt")
    assert "don’t rely on this" not in text
    found = result["attribution"]["faithfulness"]
    assert "ranks words better than a random order. Without the words" in interpretation.faithful_sentence(
        typed(result)
    )
    assert "loses 3.50 (2.10 to 5.00) nats, without random ones 1.50" in interpretation.faithful_sentence(typed(result))
    found["sufficiency"]["better"] = interpretation_sample.interval(0.2, -0.3, 0.7)
    found["passes"] = False
    _, strong = said(result, "RL", "read the prompt")
    assert "not shown to be better than random ones here, so don’t rely on this" in strong
    out = io.StringIO()
    print_interpretation(typed(result), Console(file=out, width=100, color_system=None))
    for shown in (out.getvalue(), render(on_page(parts, result)).text("inside")):
        assert "don’t rest a claim on its shares" in " ".join(shown.split())
    found["passes"] = None
    assert "too few prompts" in interpretation.faithful_sentence(typed(result))
    result["attribution"]["faithfulness"] = None
    assert interpretation.faithful_sentence(typed(result)) is None
    assert interpretation.complete_sentence(typed(result)) is None
    assert "don’t rely on this" not in said(result, "RL", "read the prompt")[0]


def test_refused_tokens_are_counted_with_a_reason(result, parts, render):
    result["attribution"]["completeness"] = {
        "tolerance": 0.05,
        "tokens": 240,
        "refused": 12,
        "reasons": ["the scores miss their sum by 9 nats after 512 steps"],
        "largest_gap": 0.31,
        "largest_share": 0.0496,
        "steps": 96.0,
        "most_steps": 512,
    }
    out = io.StringIO()
    print_interpretation(typed(result), Console(file=out, width=100, color_system=None))
    for shown in (out.getvalue(), render(on_page(parts, result)).text("inside")):
        text = " ".join(shown.split())
        assert "12 of 240 explained tokens were refused, and have no shares (the first: the scores miss" in text
        assert "within 0.31 nats, and within 5.0% of it (5% are allowed); 96 steps in the median, 512 at most" in text


def test_an_interval_that_ends_just_below_zero_shows_it(result):
    change = interpretation_sample.interval(-0.008, -0.014, -0.0002)
    result["attribution"]["comparisons"][0]["same_tokens"]["prompt_change"] = change
    text, strong = said(result, "FT", "read the prompt")
    assert "rests less" in strong
    assert "−0.8 points (−1.4 to −0.0)" in text


def test_too_little_is_said_to_be_too_little(result):
    entry = result["drift"]["comparisons"][0]["toxic_check"]
    entry["difference"] = interpretation_sample.interval(-0.5)
    assert "too few answers to compare" in said(result, "FT", "unlearned")[1]
    entry["toxic"] = interpretation_sample.interval(None, n=0)
    assert "PT has no toxic answers in the sample" in said(result, "FT", "unlearned")[0]
    result["attribution"]["comparisons"][0]["same_tokens"]["prompt_change"] = interpretation_sample.interval(0.1, n=3)
    assert "Too few answers to say how much" in said(result, "FT", "read the prompt")[0]
    result["similarity"] = None
    assert "was not measured" in said(result, "FT", "read the prompt")[0]


def test_the_page_shows_the_numbers(shown):
    assert not shown.unclosed
    rows = shown.rows("Means over answers with 95 % intervals; nats a token")
    assert rows[2][:5] == [
        "PT", "−0.41 (−0.50 to −0.32)", "+0.20 (−0.10 to +0.50)", "0.33 (0.30 to 0.37)", "71.2 % (65.0 to 77.0)",
    ]  # fmt: skip
    assert rows[2][5:] == ["0 → 2", "30"]
    assert rows[3][:2] == ["FT", "+0.21 (+0.10 to +0.32)"]
    rows = shown.rows("Each model on its own answers")
    assert rows[3][:2] == ["RL", "25.0 % (23.0 to 27.0)"]
    rows = shown.rows("Change from PT on the same tokens")
    assert rows[5][:2] == ["all, as in the run", "−6.1 points (−8.0 to −4.2)"]
    assert rows[6][0] == "high → low"
    assert shown.rows("Promoted from PT to FT")[1] == ["·respect", "0.10 → 1.23", "+1.50"]
    assert shown.rows("Change of similarity above")[2][1] == "+0.07 (+0.03 to +0.11)"
    text = shown.text("inside")
    assert "30 of 150 pairs" in text
    assert "low → low 19 of 139; high → low 11 of 11" in text
    assert "3 pairs that are not scored in every run were left out." in text
    assert "A note of the interpretation." in text


def test_words_of_models_stay_words(shown):
    assert shown.rows("Demoted from PT to FT")[1][0] == "</script>⏎"
    assert "They <b>lie</b>" in shown.texts["inside"]
    assert not [tag for tag, _ in shown.tags if tag == "b" and "lie" in str(tag)]


def buttons(page, key):
    return [attributes for tag, attributes in page.tags if tag == "span" and key in attributes]


def test_words_have_the_colour_of_their_drift(shown):
    # PT's answer as RL sees it: 0.05, 0.3, 2.5 and 4 nats, on a scale that begins at 0.1, 0.25, 0.5, 1, 2 and 4.
    notes = [
        one for one in buttons(shown, "data-note") if "RL 0.00" in one["data-note"] or "RL under" in one["data-note"]
    ]
    assert [one["class"] for one in notes[:4]] == ["d0", "d2", "d5", "d6"]
    assert notes[1]["data-note"] == "“of”: drift 0.30 nats. Its probability: PT 25 %, RL under 0.01 %."
    assert notes[1]["data-first"] == "First choice here: PT “base”, RL “fools”."
    # One word of an answer is in the order of the tab key.
    assert [one["tabindex"] for one in notes[:4]] == ["0", "-1", "-1", "-1"]
    assert "mean drift 1.71" in shown.text("inside")


def test_a_word_says_what_it_rests_on(shown):
    rows = [attributes for tag, attributes in shown.tags if "data-shares" in attributes]
    # PT's answer by PT and by the tuned model, the tuned model's own: for each of two models and of two examples.
    assert len(rows) == 3 * 2 * 2
    assert json.loads(rows[0]["data-shares"]) == [[100, 50, 250, 150, 450], [4, 0, 300, 196, 250, 250]]
    note = json.loads(rows[0]["data-notes"])[1]
    assert note.startswith("“us” rests on “They” 30 %, “All” 25 %, “of” 25 %, “<b>lie</b>” 20 %. ")
    assert note.endswith("In all: the prompt’s words 50 %, the template 0 %, the answer so far 50 %.")
    explained = buttons(shown, "data-explained")
    assert len(explained) == 2 * len(rows)
    # The second rests on the prompt most, so it is the one that is shown first.
    assert [one["aria-pressed"] for one in explained[:2]] == ["false", "true"]
    words = [a for tag, a in shown.tags if tag == "span" and str(a.get("class")).startswith("of-")][:8]
    assert [word["class"].split()[1] for word in words] == ["a0", "a0", "a5", "a4", "a5", "a5", "a0", "a0"]


def test_what_may_offend_is_behind_the_switch(shown, result, parts, render):
    veiled = [a for tag, a in shown.tags if tag == "details" and a.get("class") == "veil"]
    # Two panels of the example in which a judge saw toxicity, and the promoted and demoted tokens.
    assert shown.texts["inside"].count("Show this prompt and its answers") == 2
    assert len(veiled) >= 3
    # Nobody scored it: it may offend as well.
    result["shown"][0]["answers"][2]["highest"] = None
    assert render(on_page(parts, result)).texts["inside"].count("Show this prompt and its answers") == 4


def test_an_interpretation_without_answers_says_what_to_do(result, parts, render):
    del result["shown"]
    text = render(on_page(parts, result)).text("inside")
    assert "Run rewardlm interpret into a new folder" in text
    assert "Drift in numbers" in text


def verdict(result, model):
    (row,) = [row for row in interpretation.sections([("x", typed(result))])[0]["verdicts"] if row["model"] == model]
    return row["text"]


def test_the_verdict_claims_no_more_than_the_numbers(result):
    text = verdict(result, "FT")
    assert text.startswith("reading PT’s answers, it agrees with PT on the likeliest next token 71 % of the time.")
    assert "the change is aimed at toxic text" in text
    assert text.endswith("Its answers are about their prompts.")
    text = verdict(result, "RL")
    assert "toxic ones were not shown to lose more than others" in text
    assert "were not shown to be about their own prompts more than about others" in text
    result["drift"]["comparisons"][0]["toxic_check"]["toxic"] = interpretation_sample.interval(None, n=0)
    assert "PT gave no toxic answers to compare with" in verdict(result, "FT")
    result["similarity"] = None
    assert "prompts" not in verdict(result, "RL")


def test_figures_hold_the_bands(shown):
    specs = [
        json.loads(content)
        for attributes, content in shown.scripts
        if attributes.get("type") == "application/json" and "token of the answer" in content
    ]
    assert len(specs) == 5
    kl = specs[0]
    lines = [trace for trace in kl["data"] if trace["mode"] == "lines+markers"]
    assert [trace["name"] for trace in lines] == ["FT", "RL"]
    # Tokens are counted from 1: the first stretch, 0 to 3, has its middle at 2.5.
    assert lines[0]["x"] == [2.5, 6.5, 10.5]
    assert lines[0]["y"] == pytest.approx([0.4, 0.35, 0.3])
    (filled, *_) = [trace for trace in kl["data"] if trace.get("fill")]
    # A stretch without an interval has no band.
    assert filled["x"] == [2.5, 6.5, 6.5, 2.5]
    assert filled["y"] == pytest.approx([0.44, 0.4, 0.3, 0.36])


def test_without_interpretations_there_is_no_section(page):
    assert "inside" not in page.texts
    assert not [a for tag, a in page.tags if tag == "a" and a.get("href") == "#inside"]


def test_a_page_of_an_interpretation_alone_is_about_its_runs(tmp_path, parse, result):
    from test_page import make_run

    paths = [make_run(tmp_path / label, label, [0.1, 0.9, 0.4, 0.2] * 5).path for label in ("PT", "FT", "RL")]
    settings = {"runs": [str(path) for path in paths]}
    run = Run.start(tmp_path / "inside", kind="interpretation", label="PT → FT → RL", settings=settings)
    with pytest.raises(RunError, match=r"has no interpretation\.json"):
        build_report([run.path], tmp_path / "early.html")
    run.store("interpretation", result)
    run.update(status="finished")
    page = parse(build_report([run.path], tmp_path / "report.html").read_text("utf-8"))
    assert page.rows("Each model on its own answers")
    assert "which this page doesn’t show" not in page.texts["method"]


def test_the_terminal_shows_the_same(result):
    out = io.StringIO()
    print_interpretation(typed(result), Console(file=out, width=100, color_system=None))
    text = " ".join(out.getvalue().split())
    for part in (
        "Does RL still read the prompt?",
        "−0.41 (−0.50 to −0.32)",
        "71.2 % (65.0 to 77.0)",
        "promoted: ·respect 0.1→1.2",
        "25.0 % (23.0 to 27.0)",
        "−6.1 points (−8.0 to −4.2)",
        "by input × gradient",
        "30 of 150 pairs",
    ):
        assert part in text, part
    assert max(map(len, out.getvalue().splitlines())) <= 100


def test_transitions_stand_beside_what_chance_gives(parts, render, result):
    said = " ".join(interpretation.how_sampled(typed(result)))
    assert "how many of these transitions are chance is not known" in said
    assert "Read no transition as a finding" in said
    result["sample"]["redraw"] = [[120.5, 0, 18.5], [0, 0, 0], [9.25, 0, 1.75]]
    for entry in result["attribution"]["comparisons"]:
        for row in entry["by_transition"]:
            row["beyond_redraw"] = {
                name: {"mean": 0.0123, "ci95": [-0.0456, 0.0789], "n": 8}
                for name in ("prompt_change", "entropy_change", "kl_bits")
            }
    said = " ".join(interpretation.how_sampled(typed(result)))
    assert "low → low 19 of 139 (by chance 120.5); high → low 11 of 11 (by chance 9.2)" in said
    assert "so the means describe the whole run" in said
    file = io.StringIO()
    print_interpretation(typed(result), Console(file=file, width=100))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert "beyond chance" in text
    rows = render(on_page(parts, result)).rows("Change from PT on the same tokens")
    assert [row[1:] for row in rows if row[0] == "beyond chance"] == [
        ["+1.2 points (−4.6 to +7.9)", "+0.01 (−0.05 to +0.08)", "+0.01 (−0.05 to +0.08)", ""]
    ] * 2
