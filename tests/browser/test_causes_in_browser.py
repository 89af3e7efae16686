"""Which parts of an adapter do it, as a reader works it: a click on the map, words by part, texts that may offend."""

import sys
from pathlib import Path

import pytest
import report_sample
import typed

from rewardlm.reporting.page import render_page

sys.path.insert(0, str(Path(__file__).parents[1] / "reporting"))
import whole_sample

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("causes") / "report.html"
    page = render_page(
        typed.comparison(report_sample.sample_result()),
        title="Which parts do it",
        examples=typed.examples(report_sample.sample_examples()),
        training=report_sample.sample_training(),
        about=report_sample.sample_about(),
        interpretations=[("PT → FT", whole_sample.whole_interpretation())],
    )
    path.write_text(page, encoding="utf-8")
    return path


def click_field(page, column, row):
    """A click on a field of the first map."""
    page.locator(".causes .canvas").first.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    box = page.locator(".causes .canvas").first.locator(".nsewdrag").bounding_box()
    x, y = box["x"] + box["width"] * (column + 0.5) / 3, box["y"] + box["height"] * (row + 0.5) / 2
    page.mouse.move(x, y)
    page.wait_for_timeout(300)  # a figure looks what is below the pointer a few times a second
    page.mouse.click(x, y)


def test_a_click_on_the_map_says_numbers_and_tokens_only_if_texts_are_shown(page_file, visit):
    seen = visit(page_file)
    page = seen.page
    note = page.locator(".causes .site-note")
    assert note.inner_text() == ""
    click_field(page, 0, 1)
    said = note.inner_text()
    assert said.startswith("head 1.0, patched: passes on +0.2000 nats a token, does +0.0500 by itself")
    where = "by itself at some tokens alone: +0.0120 at the template’s tokens, +0.0510 at the prompt"
    assert f"; claimed: by itself and passed on; {where}" in said
    assert "It looks at: template 50 → 50\u00a0%, hostile words 10 → 10\u00a0%" in said
    assert "promoted" not in said
    click_field(page, 2, 0)
    assert note.inner_text().startswith("mlp 0, patched: passes on +0.1000")
    assert "nothing is claimed of it" in note.inner_text()
    click_field(page, 1, 1)
    page.click("#unveil")
    assert "It wrote “written 1.1”; now more of “promoted 1.1”, less of “demoted 1.1”." in note.inner_text()
    seen.assert_quiet()


def test_words_by_part(page_file, visit):
    seen = visit(page_file)
    page = seen.page
    page.click("#unveil")
    figure = page.locator(".by-part").first
    word = figure.locator("[data-levels]").nth(1)
    assert "a6" in word.get_attribute("class").split()
    figure.get_by_role("button", name="mlp 1").click()
    assert "a0" in word.get_attribute("class").split()
    assert "d4" in figure.locator("[data-levels]").nth(0).get_attribute("class").split()
    assert figure.locator("[aria-pressed=true]").all_inner_texts() == ["mlp 1"]
    seen.assert_quiet()


def test_before_a_reader_asks_nothing_that_may_offend_is_shown(page_file, visit):
    page = visit(page_file).page
    shown = page.locator("section[id$=causes]").inner_text()
    for text in ("promoted", "demoted", "written", "a prompt by part", "a neuron’s token"):
        assert text not in shown
    assert "Bypassed: the value vectors could write as before" in shown


def test_a_narrow_page_has_no_part_that_is_wider(page_file, visit):
    page = visit(page_file, width=400).page
    page.evaluate("document.querySelectorAll('#inside details').forEach(d => { d.open = true })")
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
