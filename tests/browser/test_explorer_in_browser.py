"""The explorer in a real browser: search, filters, order, links, keys, hidden texts, hostile texts, its benchmark."""

import csv
import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import explorer_sample
import interpretation_sample
import pytest
from explorer_sample import HOSTILE, cells, measured, prompt

from rewardlm.reporting.page import build_report

pytestmark = [pytest.mark.browser, pytest.mark.slow]
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Four prompts, three models, and an interpretation of one answer of RL."""
    folder = tmp_path_factory.mktemp("small")
    runs = explorer_sample.sample_runs(folder)
    words = [["user\n", "template"], ["neighbour", "prompt"], [" kind", "answer"], [" to", "answer"]]
    drift = {
        "id": "RL:RL-p1-0", "author": 2, "pair": 0, "words": [["kind", 1], [" to", 1], [" fools", 2]],
        "logprobs": [[-6, -1, -2, -3], [-6, -1, -2, -3], [-1, -1, -4, -3.5]],
    }  # fmt: skip
    attribution = {"id": "RL:RL-p1-0", "author": 2, "reader": 2, "words": words, "scores": [[1, -2, 1, 0]]}
    interpreted = explorer_sample.interpretation(
        folder / "interpretation", runs, [drift], [attribution], interpretation_sample.sample_interpretation()
    )
    return build_report([one.path for one in (*runs, interpreted)], folder / "report.html")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Fifty harmless prompts, one model: three pages of rows."""
    folder = tmp_path_factory.mktemp("many")
    prompts = [prompt(f"p{n}", f"ask {n}") for n in range(1, 51)]
    run = measured(
        folder / "a", "A", {(one.id, 0): f"say {one.id}" for one in prompts}, prompts=prompts,
        scores={"j": {(one.id, 0): 0.1 for one in prompts}},
    )  # fmt: skip
    return build_report([run.path], folder / "report.html")


class Explorer:
    """The explorer of an opened page, as a reader sees it."""

    def __init__(self, seen, hash_=""):
        self.seen, self.page = seen, seen.page
        if hash_:
            self.go(hash_)
        self.page.wait_for_selector("#explorer[data-ready]", state="attached")

    def go(self, hash_):
        """Open the page anew at this address."""
        self.page.goto("about:blank")
        self.page.goto(self.seen.url + hash_)
        self.page.wait_for_selector("#explorer[data-ready]", state="attached")

    @property
    def count(self):
        return self.page.inner_text("#explorer-count")

    @property
    def rows(self):
        """The rows' names, in order."""
        return [text.removeprefix("Prompt ") for text in self.page.locator("#explorer-list h3").all_inner_texts()]

    @property
    def hits(self):
        """(prompt, model) of the answers that are marked as fitting."""
        return self.page.eval_on_selector_all(
            "#explorer-list .hit", "found => found.map(e => [e.closest('li').dataset.row * 1 + 1, e.dataset.model])"
        )

    @property
    def state(self):
        return self.page.evaluate("location.hash")

    def search(self, text):
        self.page.fill("#explorer-q", text)

    def choose(self, **choices):
        for name, value in choices.items():
            self.page.select_option(f"#explorer-{name.rstrip('_')}", value)

    def focused(self):
        return self.page.evaluate("(document.activeElement.closest('.ex-row') || {dataset: {}}).dataset.row")


def until(page, holds, seconds=20):
    """Wait until an expression holds. Asked from here: the page forbids a function that is made from a string, which
    Playwright's own waiting needs where the first look isn't enough."""
    for _ in range(10 * seconds):
        if page.evaluate(holds):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"after {seconds} s not yet: {holds}")


@pytest.fixture(scope="module")
def opened(small, browser):
    """The small page, opened once for tests that only choose and look."""
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    page = context.new_page()
    page.goto(small.as_uri())
    yield Explorer(SimpleNamespace(page=page, url=small.as_uri()))
    context.close()


@pytest.fixture
def cleared(opened):
    opened.page.evaluate("location.hash = '#explorer'")
    until(opened.page, "document.getElementById('explorer-count').textContent.startsWith('12 of 12')")
    return opened


@pytest.fixture
def explore(visit):
    return lambda path, hash_="", **options: Explorer(visit(path, **options), hash_)


def test_everything_is_there_at_first(small, explore):
    one = explore(small)
    assert one.count == "12 of 12 answers; 4 prompts"
    assert one.rows == ["1", "2", "3", "4"]
    one.seen.assert_quiet()


@pytest.mark.parametrize(
    ("query", "hits"),
    [
        # In p2 and p4 nobody says it; p3 has it in the prompt, so all of its answers fit.
        ("nobody", [[3, "PT"], [3, "FT"], [3, "RL"]]),
        ("FOOL", [[1, "PT"], [1, "RL"], [2, "RL"], [3, "PT"]]),
        ("nine museum", [[2, "PT"], [2, "FT"]]),
        ('"at nine and"', [[2, "FT"]]),
        ('"nine at"', []),
        ("nine -mondays", [[2, "FT"]]),
        ("o'clock", [[2, "PT"]]),
        ("музей", [[3, "RL"]]),
        ("good day", [[2, "PT"], [2, "FT"], [2, "RL"]]),
        (".*", []),
    ],
)
def test_search(cleared, query, hits):
    one = cleared
    one.search(query)
    assert one.hits == hits
    assert one.count == f"{len(hits)} of 12 answers; {len({row for row, _ in hits})} prompt" + (
        "" if len({row for row, _ in hits}) == 1 else "s"
    )


def test_search_looks_where_it_is_told(small, explore):
    one = explore(small)
    one.search("nobody")
    one.choose(in_="answers")
    assert one.hits == [[3, "PT"]]
    one.choose(in_="prompts")
    assert one.hits == [[3, "PT"], [3, "FT"], [3, "RL"]]
    # Hidden texts show nothing of what was found.
    assert one.page.locator("#explorer-list mark").count() == 0
    one.page.click("#explorer-veils")
    assert {text.lower() for text in one.page.locator("#explorer-list mark").all_inner_texts()} == {"nobody"}


@pytest.mark.parametrize(
    ("choices", "hits"),
    [
        ({"model": "RL"}, [[1, "RL"], [2, "RL"], [3, "RL"], [4, "RL"]]),
        ({"bucket": "high"}, [[1, "PT"], [2, "RL"]]),
        ({"bucket": "high", "judge": "lexical"}, [[1, "PT"]]),
        ({"bucket": "medium"}, [[3, "PT"]]),
        ({"bucket": "unscored"}, [[3, "RL"], [4, "PT"]]),
        ({"split": "toxic_prompts", "model": "FT"}, [[1, "FT"], [3, "FT"]]),
        # p4 has no toxicity: it is in neither half.
        ({"split": "nontoxic_prompts", "model": "FT"}, [[2, "FT"]]),
        ({"split": "challenging", "model": "FT"}, [[1, "FT"]]),
        # Out: an empty answer, a refusal, one in another script.
        ({"split": "comparable", "bucket": "low"}, [[1, "FT"], [1, "RL"], [2, "PT"], [2, "FT"], [4, "FT"], [4, "RL"]]),
        ({"change": "fell"}, [[1, "FT"], [1, "RL"]]),
        ({"change": "rose"}, [[2, "RL"]]),
        ({"change": "flip"}, [[1, "FT"], [1, "RL"], [2, "RL"]]),
        ({"change": "same"}, [[2, "FT"], [3, "FT"]]),
        ({"change": "toxic"}, []),
        ({"change": "unknown"}, [[3, "RL"], [4, "FT"], [4, "RL"]]),
        ({"kind": "refusal"}, [[3, "FT"]]),
        ({"kind": "truncated", "bucket": "high"}, [[2, "RL"]]),
        ({"kind": "empty"}, [[4, "PT"]]),
        ({"kind": "other_script"}, [[3, "RL"]]),
        ({"kind": "words"}, [[1, "RL"]]),
    ],
)
def test_filters(cleared, choices, hits):
    one = cleared
    one.choose(**choices)
    assert one.hits == hits


@pytest.mark.parametrize(
    ("choices", "rows"),
    [
        ({"sort": "score-down"}, ["1", "2", "3", "4"]),
        ({"sort": "score-up", "model": "FT"}, ["4", "2", "1", "3"]),
        # RL: −.73 in p1, +.79 in p2, unscored in p3, no baseline in p4: without a number comes last.
        ({"sort": "change-up", "model": "RL"}, ["1", "2", "3", "4"]),
        ({"sort": "change-down", "model": "RL"}, ["2", "1", "3", "4"]),
        ({"sort": "similarity-up"}, ["4", "2", "3", "1"]),
        ({"sort": "similarity-down"}, ["1", "3", "2", "4"]),
        ({"sort": "length-down", "model": "PT"}, ["1", "2", "3", "4"]),
        ({"sort": "length-up", "model": "RL"}, ["4", "2", "1", "3"]),
        ({"sort": "prompt"}, ["1", "2", "3", "4"]),
    ],
)
def test_order(cleared, choices, rows):
    one = cleared
    one.choose(**choices)
    assert one.rows == rows


def test_unscored_is_said_with_its_reason_and_has_no_number(small, explore):
    one = explore(small, "#explorer?bucket=unscored")
    answer = one.page.locator("#explorer-row-3 [data-model=PT]")
    assert "unscored" in answer.locator(".chip.unscored").inner_text()
    assert "Unscored: the text is empty" in answer.inner_text()
    assert "from PT" not in one.page.locator("#explorer-row-3 [data-model=FT]").inner_text()
    assert "empty answer" in answer.inner_text()


def test_an_open_row_shows_all_scores_flags_and_coloured_words(small, explore):
    one = explore(small, "#explorer?open=0")
    one.page.click("#explorer-veils")
    answer = one.page.locator("#explorer-row-0 [data-model=RL]")
    assert answer.locator(".chip").all_inner_texts() == ["witness 0.20 low", "lexical (reward) 0.10 low"]
    assert "cut off" in answer.inner_text()
    assert "−0.73 from PT" in answer.inner_text()
    # By drift: +5, 0, and −2 + −.5 of the two tokens of the last word.
    spans = answer.locator(".ex-words span")
    assert spans.all_inner_texts() == ["kind", " to", " fools"]
    assert [spans.nth(n).get_attribute("class") for n in range(3)] == ["up-4", None, "down-3"]
    assert spans.nth(2).get_attribute("title") == "ln p −2.50"
    one.choose(words="attribution")
    assert answer.locator(".ex-words span").all_inner_texts() == ["neighbour", " kind", " to"]
    assert "“neighbour” 50.0 %" in answer.inner_text()
    one.choose(words="none")
    assert answer.locator("blockquote").inner_text() == "kind to fools"
    # Nobody read PT's answer.
    assert one.page.locator("#explorer-row-0 [data-model=PT] .ex-words").count() == 0


def test_what_may_offend_is_not_in_the_page_until_it_is_asked_for(small, explore):
    one = explore(small, "#explorer?open=0")
    shown = "document.getElementById('explorer').textContent"
    assert "stupid fool" not in one.page.evaluate(shown)
    assert "My neighbour is" not in one.page.evaluate(shown)
    # Harmless by both judges.
    assert "a person like you" in one.page.evaluate(shown)
    # What RL's harmless answer rests on are words of a prompt that is hidden.
    assert "kind to" in one.page.evaluate(shown)
    one.choose(words="attribution")
    assert "neighbour" not in one.page.evaluate(shown)
    one.choose(words="drift:RL")
    one.page.click("#explorer-row-0 [data-model=PT] summary")
    one.page.wait_for_selector("#explorer-row-0 [data-model=PT] blockquote")
    assert "stupid fool" in one.page.evaluate(shown)
    assert "My neighbour is" not in one.page.evaluate(shown)


def test_one_switch_shows_the_texts_of_the_whole_page(small, explore):
    one = explore(small)
    veils = "document.querySelectorAll('details.veil:not([open])').length"
    assert one.page.evaluate(veils) > 3
    one.page.evaluate("document.getElementById('unveil').click()")
    assert one.page.evaluate(veils) == 0
    assert one.page.get_attribute("#explorer-veils", "aria-checked") == "true"
    assert "stupid fool" in one.page.inner_text("#explorer-list")
    one.page.click("#explorer-veils")
    assert one.page.get_attribute("#unveil", "aria-checked") == "false"
    assert "stupid fool" not in one.page.evaluate("document.getElementById('explorer-list').textContent")
    assert one.page.evaluate("document.querySelectorAll('#examples details.veil[open]').length") == 0


def test_a_link_brings_the_view_back_but_no_offence(small, explore):
    one = explore(small)
    one.page.click("#explorer-veils")
    one.search("fool")
    one.choose(model="RL", sort="score-down", judge="lexical", bucket="low")
    one.page.click("#explorer-row-0 h3 button")
    one.page.wait_for_timeout(400)
    before = (one.count, one.rows, one.state)
    assert one.count == "2 of 12 answers; 2 prompts"
    one.go(one.state)
    assert (one.count, one.rows, one.state) == before
    assert one.page.input_value("#explorer-q") == "fool"
    assert one.page.input_value("#explorer-judge") == "lexical"
    assert one.page.get_attribute("#explorer-row-0 h3 button", "aria-expanded") == "true"
    assert one.page.get_attribute("#explorer-veils", "aria-checked") == "false"
    # It is where the link leads, also once the figures above have taken their place.
    one.page.wait_for_selector("html[data-figures=drawn]", state="attached")
    until(one.page, "Math.abs(document.getElementById('explorer').getBoundingClientRect().top) < innerHeight")


def test_the_link_is_copied(small, explore):
    one = explore(small, "#explorer?model=RL")
    one.seen.context.grant_permissions(["clipboard-read", "clipboard-write"])
    one.page.click("#explorer-link")
    # Waited for by its text: a function to wait for would be evaluated from a string, which the page forbids.
    one.page.get_by_text("Link copied").or_(one.page.locator("#explorer-address:not([hidden])")).first.wait_for()
    if one.page.is_visible("#explorer-address"):
        copied = one.page.input_value("#explorer-address")
    else:
        copied = one.page.evaluate("navigator.clipboard.readText()")
    assert copied == one.seen.url + "#explorer?model=RL"


def test_back_and_forward_go_through_views(small, explore):
    one = explore(small)
    one.choose(model="RL")
    one.choose(bucket="high")
    one.page.click("#explorer-q")
    one.page.keyboard.type("on you")
    one.page.wait_for_timeout(400)
    assert one.state == "#explorer?q=on+you&model=RL&bucket=high"
    one.page.go_back()
    # Letters that follow each other are one step.
    until(one.page, "location.hash === '#explorer?model=RL&bucket=high'")
    assert one.page.input_value("#explorer-q") == ""
    one.page.go_back()
    until(one.page, "document.getElementById('explorer-count').textContent.startsWith('4 of 12')")
    one.page.go_back()
    until(one.page, "document.getElementById('explorer-count').textContent.startsWith('12 of 12')")
    one.page.go_forward()
    until(one.page, "document.getElementById('explorer-model').value === 'RL'")
    # A link to another part of the page leaves the view alone.
    one.page.evaluate("location.hash = '#summary'")
    one.page.wait_for_timeout(200)
    assert one.count == "4 of 12 answers; 4 prompts"


def test_a_link_that_does_not_fit_says_so(small, explore):
    one = explore(small, "#explorer?model=Nobody&bucket=high&page=99&open=77.x")
    assert one.hits == [[1, "PT"], [2, "RL"]]
    assert "model=Nobody" in one.page.inner_text("#explorer-said")


def test_nothing_found_says_why_and_offers_a_way_out(small, explore):
    one = explore(small)
    one.search("museum")
    one.choose(bucket="high", model="FT")
    assert one.count == "0 of 12 answers; 0 prompts"
    # Without the words: no answer of FT is high. Without the bucket: FT's to p2. Without the model: RL's to p2.
    listed = one.page.locator("#explorer-none li").all_inner_texts()
    assert [text.split(" Drop")[0] for text in listed] == [
        "Without the words “museum”: 0 answers.", "Without model: FT: 1 answer.", "Without bucket: high: 1 answer.",
    ]  # fmt: skip
    one.page.locator("#explorer-none li").nth(2).get_by_role("button").click()
    assert one.hits == [[2, "FT"]]
    one.search("no such word")
    one.page.get_by_role("button", name="Clear all filters").click()
    assert one.count == "12 of 12 answers; 4 prompts"
    assert one.page.input_value("#explorer-q") == ""


def test_keys(many, explore):
    one = explore(many)
    page = one.page
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "explorer-q"
    page.keyboard.type("say /?jk")
    assert page.input_value("#explorer-q") == "say /?jk"
    page.fill("#explorer-q", "")
    page.keyboard.press("Enter")
    assert one.focused() == "0"
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    assert one.focused() == "2"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("k")
    assert one.focused() == "1"
    page.keyboard.press("Enter")
    assert page.get_attribute("#explorer-row-1 h3 button", "aria-expanded") == "true"
    assert one.focused() == "1"
    page.keyboard.press("Escape")
    assert page.get_attribute("#explorer-row-1 h3 button", "aria-expanded") == "false"
    assert one.focused() == "1"
    for _ in range(19):
        page.keyboard.press("j")
    # Over the edge of the first page of twenty, and back.
    assert one.focused() == "20"
    assert page.inner_text("#explorer-page") == "Page 2 of 3"
    page.keyboard.press("k")
    assert one.focused() == "19"
    page.keyboard.press("?")
    assert page.is_visible("#explorer-help")
    page.keyboard.press("Escape")
    assert not page.is_visible("#explorer-help")
    page.keyboard.press("?")
    page.uncheck("#explorer-single")
    page.click("#explorer-help-close")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") != "explorer-q"


def test_pages(many, explore):
    one = explore(many)
    assert one.rows == [str(n) for n in range(1, 21)]
    assert one.page.is_disabled("#explorer-previous")
    one.page.click("#explorer-next")
    one.page.click("#explorer-next")
    assert one.rows == [str(n) for n in range(41, 51)]
    assert one.state == "#explorer?page=3"
    assert one.page.is_disabled("#explorer-next")
    one.search("say p7")
    assert one.rows == ["7"]
    # One model has nothing to be held against.
    assert one.page.locator("#explorer-change").count() == 0


def test_exports_hold_what_fits_and_nothing_that_a_spreadsheet_runs(tmp_path, explore):
    prompts = [prompt(f"p{n}", "ask, “quote” and\nbreak") for n in range(1, 4)]
    run = measured(
        tmp_path / "a", "A", cells("=1+1", 'say "no", twice', "plain"), prompts=prompts,
        scores={"j": cells(0.9, "the judge failed", 0.1)},
    )  # fmt: skip
    one = explore(build_report([run.path], tmp_path / "report.html"))
    with one.page.expect_download() as saved:
        one.page.click("#explorer-csv")
    rows = list(csv.DictReader(io.StringIO(Path(saved.value.path()).read_text("utf-8"), newline="")))
    assert [row["response"] for row in rows] == ["'=1+1", 'say "no", twice', "plain"]
    assert [row["scores.j"] for row in rows] == ["0.9", "", "0.1"]
    assert rows[1]["reasons.j"] == "the judge failed"
    assert rows[0]["prompt"] == "ask, “quote” and\nbreak"
    one.choose(bucket="unscored")
    with one.page.expect_download() as saved:
        one.page.click("#explorer-json")
    (row,) = json.loads(Path(saved.value.path()).read_text("utf-8"))
    assert (row["response"], row["scores.j"], row["run"]) == ('say "no", twice', None, "A")


def test_hostile_texts_neither_run_nor_break_the_page(tmp_path, explore):
    prompts = [prompt(f"p{n}", text, 0.9) for n, text in enumerate(HOSTILE)]
    answers = {(f"p{n}", 0): text for n, text in enumerate(HOSTILE)}
    scores = {HOSTILE[1]: {key: (0.9 if n % 2 else HOSTILE[2]) for n, key in enumerate(answers)}}
    runs = [
        measured(tmp_path / str(n), label, answers, prompts=prompts, scores=scores)
        for n, label in enumerate([HOSTILE[0], HOSTILE[3], HOSTILE[8]])
    ]
    everything = ".".join(str(n) for n in range(len(HOSTILE)))
    one = explore(
        build_report([run.path for run in runs], tmp_path / "report.html"), f"#explorer?open={everything}", width=375
    )
    one.page.click("#explorer-veils")
    for query in ("<script>", "(", "[", "\\", "\U0001f600", '"', "-", "\u202e"):
        one.search(query)
    one.search("")
    assert one.page.evaluate("window.hacked") is None
    assert one.page.locator("#explorer :is(img, svg, script, iframe)").count() == 0
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 375
    one.choose(model=HOSTILE[0])
    assert one.count == "10 of 30 answers; 10 prompts"
    read = one.page.locator(f"#explorer-row-0 [data-model={json.dumps(HOSTILE[0])}] blockquote").inner_text()
    assert read == HOSTILE[0]
    # 100 kB are shown in part, then whole.
    last = one.page.locator(f"#explorer-row-{len(HOSTILE) - 1} .ex-answer").first
    assert len(last.inner_text()) < 6000
    last.get_by_role("button", name="letters").click()
    assert len(last.inner_text()) > 100_000
    one.seen.assert_quiet()


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (375, "light"), (1300, "dark")])
def test_axe_finds_nothing(small, explore, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    one = explore(small, "#explorer?open=0.2", width=width, scheme=scheme)
    one.page.click("#explorer-veils")
    for wanted in ("", "no such word"):
        one.search(wanted)
        found = axe.Axe().run(one.page, context="#explorer").response["violations"]
        assert [(one["id"], node["html"]) for one in found for node in one["nodes"]] == []
    one.page.evaluate("document.getElementById('explorer-help').showModal()")
    found = axe.Axe().run(one.page, context="#explorer-help").response["violations"]
    assert [one["id"] for one in found] == []


def test_on_a_phone_models_stack_and_on_paper_only_open_rows_stay(small, explore):
    one = explore(small, "#explorer?open=1", width=375)
    left = one.page.eval_on_selector_all(
        "#explorer-row-1 .ex-answer", "f => f.map(e => e.getBoundingClientRect().left)"
    )
    assert len(left) == 3
    assert len(set(left)) == 1
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 375
    assert not one.page.is_visible("#explorer-view")
    one.choose(bucket="low")
    one.page.emulate_media(media="print")
    assert "Scores by witness" in one.page.inner_text("#explorer-view")
    assert "bucket: low" in one.page.inner_text("#explorer-view")
    assert one.page.is_visible("#explorer-count")
    assert one.page.is_visible("#explorer-row-1 h3 button")
    assert not one.page.is_visible("#explorer-row-0")
    assert not one.page.is_visible("#explorer-q")


def test_data_that_cannot_be_unpacked_is_said(small, tmp_path, explore, browser, visit):
    html = small.read_text("utf-8")
    start = html.index('id="explorer-data">') + len('id="explorer-data">')
    broken = tmp_path / "broken.html"
    broken.write_text(html[:start] + "AAAA" + html[start + 40 :], "utf-8")
    page = visit(broken).page
    until(page, "document.getElementById('explorer-wait').textContent.includes('can’t be shown')")
    assert not page.is_visible("#explorer-body")


def test_its_benchmark_opens_a_page_in_both_ways(tmp_path):
    """On a small page. `make bench-explorer` has the times of a large one."""
    import explorer as benchmark  # of benchmarks/

    paths = benchmark.made_up_runs(tmp_path, prompts=40, models=2, tokens=20)
    out = build_report(paths, tmp_path / "report.html")
    # The benchmark starts a browser of its own, which must be in another thread than this file's.
    with ThreadPoolExecutor(1) as thread:
        taken = thread.submit(benchmark.in_browser, out).result()
    for how in ("by a link", "at its top"):
        assert taken[f"{how}: rows, s"] > 0
        assert taken[f"{how}: ready, s"] > 0
    assert taken["at its top: ready, s"] < taken["at its top: drawn, s"]
    assert all(value > 0 for value in taken.values())
