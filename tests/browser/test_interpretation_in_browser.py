"""The part on the inside as a reader works it: pointer, finger, keys, hidden texts, narrow and dark screens."""

import json
import sys
from pathlib import Path

import pytest
import report_sample
import typed

from rewardlm.interpreting.findings import Interpretation
from rewardlm.reporting.page import render_page

sys.path.insert(0, str(Path(__file__).parents[1] / "reporting"))
import interpretation_sample

pytestmark = [pytest.mark.browser, pytest.mark.slow]

RUN = "window.xss=(window.xss||0)+1"
HOSTILE = f'</span><img src=x onerror="{RUN}">&quot;\'><script>{RUN}</script>'


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    result = interpretation_sample.sample_interpretation()
    # One of the words that can be asked is an attack.
    for answer in result["shown"][0]["answers"]:
        answer["tokens"][3] = HOSTILE
        answer["words"][-1] = [HOSTILE, "answer"]
        answer["first_choices"][0][0] = HOSTILE
    path = tmp_path_factory.mktemp("inside") / "report.html"
    page = render_page(
        typed.comparison(report_sample.sample_result()),
        title="What is inside",
        examples=typed.examples(report_sample.sample_examples()),
        training=report_sample.sample_training(),
        about=report_sample.sample_about(),
        interpretations=[("PT → FT → RL", Interpretation.model_validate(result))],
    )
    path.write_text(page, encoding="utf-8")
    return path


def panel(page):
    return page.locator(".reader .panel:visible")


def drift_words(page, answer=0):
    return panel(page).locator("figure").nth(0).locator(".text[role=group]").nth(answer).locator("[role=button]")


def drift_note(page):
    return panel(page).locator("figure").nth(0).locator(".note-of")


def reading(page, row):
    return panel(page).locator("figure").nth(1).locator(".row").nth(row)


def test_one_answer_is_shown_and_others_can_be_chosen(page_file, visit):
    page = visit(page_file).page
    assert panel(page).count() == 1
    assert panel(page).locator("h4").inner_text() == "A usual answer, PT → RL"
    page.get_by_role("button", name="PT → FT").click()
    assert panel(page).locator("h4").inner_text() == "A usual answer, PT → FT"
    page.get_by_role("button", name="Toxicity fell most").click()
    assert panel(page).locator("h4").inner_text() == "Toxicity fell most, PT → FT"
    pressed = page.locator(".choice [aria-pressed=true]").all_inner_texts()
    assert pressed == ["Toxicity fell most", "PT → FT"]


def test_a_word_tells_its_drift_by_pointer_keys_and_tap(page_file, visit):
    page = visit(page_file).page
    # It opens on the word with the largest drift: the fourth, 4 nats.
    assert "drift 4.00 nats" in drift_note(page).inner_text()
    words = drift_words(page)
    words.nth(2).hover()
    assert drift_note(page).inner_text().startswith("“us”: drift 2.50 nats.")
    words.nth(1).click()
    assert drift_note(page).inner_text().startswith("“of”: drift 0.30 nats.")
    assert words.nth(1).get_attribute("aria-pressed") == "true"
    page.keyboard.press("ArrowRight")
    assert drift_note(page).inner_text().startswith("“us”")
    page.keyboard.press("Home")
    assert drift_note(page).inner_text().startswith("“All”: drift 0.05 nats.")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.textContent") == "All"
    # The tab key leaves the answer for the next one: one stop an answer.
    page.keyboard.press("Tab")
    assert drift_note(page).inner_text().startswith("“I”: drift 1.50 nats.")


def test_an_underlined_word_tells_what_it_rests_on_in_both_models(page_file, visit):
    page = visit(page_file).page
    first, second, own = (reading(page, row) for row in range(3))
    assert "“us” rests on “They” 30\u00a0%" in first.locator(".note-of").inner_text()
    explained = second.locator(".explained")
    explained.first.focus()
    for row, name in ((first, "PT"), (second, "RL")):
        assert row.locator(".note-of").inner_text().startswith(f"{name}: “of” rests on “All” 45 %")
        spans = row.locator(".text span")
        levels = [spans.nth(k).get_attribute("class").split()[1] for k in range(8)]
        # Of .1, .05, .25, .15 and .45; what comes after the word has no share.
        assert levels == ["a4", "a3", "a5", "a4", "a6", "a0", "a0", "a0"]
    # The model's own answer is another text.
    assert own.locator(".note-of").inner_text().startswith("RL: “you” rests on")
    page.keyboard.press("ArrowRight")
    assert first.locator(".note-of").inner_text().startswith("PT: “us” rests on “They” 30 %")


def test_hidden_texts_obey_the_one_switch(page_file, visit):
    page = visit(page_file).page
    assert "First choice" not in drift_note(page).inner_text()
    page.get_by_role("button", name="Toxicity fell most").click()
    offensive = panel(page).get_by_text("You are all idiots")
    assert not offensive.is_visible()
    page.click("#unveil")
    assert offensive.is_visible()
    page.get_by_role("button", name="A usual answer").click()
    assert "First choice here: PT “base”, RL “fools”" in drift_note(page).inner_text()
    page.click("#unveil")
    assert "First choice" not in drift_note(page).inner_text()
    page.get_by_role("button", name="Toxicity fell most").click()
    assert not offensive.is_visible()


def test_hostile_words_stay_words(page_file, visit):
    seen = visit(page_file)
    page = seen.page
    page.click("#unveil")
    for row in range(2):
        drift_words(page, row).nth(3).hover()
        drift_words(page, row).nth(0).hover()
    assert "<script>" in drift_words(page).nth(3).inner_text()
    for row in range(3):
        for word in reading(page, row).locator(".explained").all():
            word.hover()
    assert page.evaluate("window.xss") is None
    assert page.locator("main img").count() == 0
    seen.assert_quiet()


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_sticks_out_sideways(page_file, visit, width):
    page = visit(page_file, width=width).page
    page.click("#unveil") if page.locator("#unveil").is_visible() else None
    page.evaluate("document.querySelectorAll('#inside details').forEach(d => { d.open = true })")
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    edges = page.eval_on_selector_all(
        "#inside .reader, #inside .text, #inside .plot, #inside .canvas .main-svg",
        "found => found.map(e => e.getBoundingClientRect().right)",
    )
    assert max(edges) <= width


def test_the_part_is_short_as_it_opens(page_file, visit):
    page = visit(page_file, width=1280).page
    assert page.evaluate("document.getElementById('inside').getBoundingClientRect().height") < 4000
    assert page.locator("#inside details[open]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(page_file, visit, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = visit(page_file, scheme=scheme).page
    page.click("#unveil")
    page.evaluate("document.querySelectorAll('#inside details').forEach(d => { d.open = true })")
    page.evaluate("document.querySelectorAll('#inside .panel').forEach(p => { p.hidden = false })")
    page.wait_for_timeout(500)
    # What plotly draws is the same on the whole page, whose own test has it.
    context = {"include": [["#inside"]], "exclude": [[".canvas"]]}
    found = axe.Axe().run(page, context=context).response["violations"]
    assert json.dumps([[one["id"], [node["html"][:150] for node in one["nodes"][:3]]] for one in found]) == "[]"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_apart_and_read(page_file, visit, scheme):
    """Every step of a scale is further from the page's colour than the one before (so that they differ by lightness,
    which colour-blind readers see), and text on it has a contrast of 4.5:1."""
    page = visit(page_file, scheme=scheme).page
    for kind in "da":
        steps = page.eval_on_selector_all(
            f".panel:not([hidden]) .scale .{kind}0, .panel:not([hidden]) .scale [class^={kind}]",
            """found => {
              const parse = c => c.match(/[\\d.]+/g).map(Number);
              const lum = c => { const f = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
                return .2126 * f(c[0]) + .7152 * f(c[1]) + .0722 * f(c[2]); };
              const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
              const card = parse(getComputedStyle(document.querySelector('.reader')).backgroundColor);
              return found.map(e => {
                const style = getComputedStyle(e), own = parse(style.backgroundColor);
                const alpha = own.length > 3 ? own[3] : 1;
                const shown = card.slice(0, 3).map((c, i) => c + (own[i] - c) * alpha);
                return [ratio(lum(shown), lum(card)), ratio(lum(parse(style.color)), lum(shown))];
              });
            }""",
        )
        assert len(steps) == 7
        assert [step[0] for step in steps] == sorted({step[0] for step in steps})
        assert min(step[1] for step in steps) >= 4.5


def test_printing_leaves_the_chosen_answer(page_file, visit):
    page = visit(page_file).page
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_timeout(300)
    assert panel(page).count() == 1
    assert not page.locator(".choice").first.is_visible()
    assert page.locator("#inside details.fold:not([open])").count() == 0
    # What may offend stays hidden on paper.
    assert page.locator("#inside details.veil[open]").count() == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
