import json
import re

import interpretation_sample
import pytest
import report_sample
import typed

from payloads import PAYLOADS, squashed
from rewardlm.interpreting.findings import Interpretation
from rewardlm.reporting.examples import KINDS
from rewardlm.reporting.page import render_page

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A page on which every payload is a prompt, a turn before it, an answer, a label, a model, an adapter, a warning,
    a limit, a setting's key and value, and a training run; the judges are payloads too."""
    result = report_sample.sample_result()
    judges = {"lexical": PAYLOADS[10], "lexical2": PAYLOADS[1]}
    models = []
    for payload in PAYLOADS:
        scorers = {judges[name]: splits for name, splits in result["models"][2]["scorers"].items()}
        models.append(result["models"][2] | {"label": payload, "scorers": scorers})
    first = result["comparisons"][3]
    comparisons = [
        first | {"from": PAYLOADS[0], "to": payload, "scorer": judges["lexical2"]} for payload in PAYLOADS[1:]
    ]
    hostile = {
        "models": models,
        "comparisons": comparisons,
        "warnings": [{"code": payload, "model": payload, "message": payload} for payload in PAYLOADS],
    }
    examples = [
        {
            "kind": KINDS[number % len(KINDS)],
            "prompt": payload,
            "history": [[payload, payload]],
            "toxicity": 0.9,
            "answers": [{"label": payload, "text": payload, "scores": {payload: 0.1}}],
        }
        for number, payload in enumerate(PAYLOADS)
    ]
    about = {
        "models": [
            {
                "label": payload,
                "model": payload,
                "adapter": payload,
                "rewards": [judges["lexical"], payload],
                "settings": {payload: {"target": payload, "targets": [payload]}},
                "environment": {"date": payload, "versions": {payload: payload}},
            }
            for payload in PAYLOADS
        ],
        "prompts": {"source": PAYLOADS[11], "number": 700, "toxic_by": PAYLOADS[12], "hash": PAYLOADS[13]},
        "judges": [{"name": payload, "text": payload} for payload in PAYLOADS],
        "examples_by": {"judge": PAYLOADS[0], "from": PAYLOADS[1], "to": PAYLOADS[2]},
        "limits": PAYLOADS,
        "notes": PAYLOADS,
    }
    training = {payload: [{"step": 1, "kl": 0.5, "warnings": [payload]}] for payload in PAYLOADS}
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    path.write_text(
        render_page(
            typed.comparison(hostile),
            title=PAYLOADS[44],
            examples=typed.examples(examples),
            training=training,
            about=about,
        ),
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    path = tmp_path_factory.mktemp("calm") / "report.html"
    page = render_page(
        typed.comparison(report_sample.sample_result()),
        title="A page to look at",
        examples=typed.examples(report_sample.sample_examples()),
        training=report_sample.sample_training(),
        about=report_sample.sample_about(),
    )
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same with what changed inside the models."""
    path = tmp_path_factory.mktemp("whole") / "report.html"
    inside = Interpretation.model_validate(interpretation_sample.sample_interpretation())
    page = render_page(
        typed.comparison(report_sample.sample_result()),
        title="A page with all parts",
        examples=typed.examples(report_sample.sample_examples()),
        training=report_sample.sample_training(),
        about=report_sample.sample_about(),
        interpretations=[("PT → FT → RL", inside)],
    )
    path.write_text(page, encoding="utf-8")
    return path


def unfold(page):
    """Open everything; figures are drawn in the frame after."""
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    page.wait_for_timeout(500)


def test_fifty_payloads_do_nothing(hostile, visit):
    seen = visit(hostile)
    page = seen.page
    page.click("#unveil")
    unfold(page)
    for canvas in page.query_selector_all(".canvas")[:4]:
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        for x in range(0, int(box["width"]), 40):
            page.mouse.move(box["x"] + x, box["y"] + min(box["height"], 800) / 2)
    page.wait_for_timeout(500)
    assert page.evaluate("window.canary") is None
    seen.assert_quiet()
    strangers = "img, iframe, object, embed, form, input, video, audio, marquee, math, base, link, textarea"
    assert page.eval_on_selector_all(f"body :is({strangers})", "found => found.length") == 0
    assert page.eval_on_selector_all("a:not([href^='#']):not(.modebar a):not([data-title])", "f => f.length") == 0
    assert page.evaluate("getComputedStyle(document.body).display") == "block"
    assert page.title().endswith("· " + " ".join(PAYLOADS[44].split()))


def test_payloads_are_read_as_they_were_written(hostile, visit):
    page = visit(hostile).page
    unfold(page)
    shown = page.eval_on_selector_all(".answer blockquote", "found => found.map(e => e.textContent)")
    # What no page can hold is replaced.
    assert sorted(shown) == sorted(re.sub("[\x00-\x08\x1b]", "\ufffd", payload) for payload in PAYLOADS)
    labels = page.eval_on_selector_all(".ytick text", "found => found.map(e => e.textContent)")
    cut = {squashed(payload if len(payload) <= 28 else payload[:27] + "…") for payload in PAYLOADS}
    assert cut <= {squashed(label) for label in labels}
    assert page.eval_on_selector_all(".ytick a, .annotation a", "found => found.length") == 0


def test_every_figure_is_drawn(calm, visit):
    seen = visit(calm)
    page = seen.page
    # What is folded is drawn when it opens.
    assert 0 < page.locator(".canvas.js-plotly-plot").count() < page.locator(".canvas").count()
    unfold(page)
    seen.assert_quiet()
    assert page.locator(".canvas").count() == 14
    # 2 models × 2 judges, each with its interval.
    assert page.locator("#summary .points path.point").count() == 4
    assert page.locator("#summary .errorbar").count() == 4
    for canvas in page.query_selector_all(".canvas"):
        box = canvas.query_selector(".main-svg").bounding_box()
        assert box["width"] > 150
        assert box["height"] > 150
    # 3 models × 2 splits × 2 judges, each with its interval.
    assert page.locator("#confidence .points path.point").count() == 12
    assert page.locator("#confidence .errorbar").count() == 12
    # PT → FT by lexical2: 9 flows, no unscored; by lexical 9 and an unscored one; PT → RL: 10 each.
    assert page.locator("#flow .sankey-link").count() == 9 + 10 + 10 + 10
    assert page.locator("#training .lines path.js-line").count() == 8
    # Marks stand where their numbers are: 22.0 % lies right of 13.0 %.
    marks = page.eval_on_selector_all(
        "#confidence .canvas:first-of-type .point", "found => found.map(e => e.getBoundingClientRect().x)"
    )
    assert marks[3] > marks[0]


@pytest.mark.parametrize("width", [320, 375, 768, 1100, 1400])
def test_nothing_sticks_out_sideways(calm, visit, width):
    page = visit(calm, width=width).page
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    edges = page.eval_on_selector_all(
        "section, .plot, .card, .warnings li, .example, .canvas .main-svg",
        "found => found.map(e => e.getBoundingClientRect().right)",
    )
    assert max(edges) <= width


def test_hostile_lengths_do_not_stick_out_either(hostile, visit):
    page = visit(hostile, width=400).page
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


PARTED = """() => {
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
    while (walk.nextNode()) {
        const e = walk.currentNode.parentElement;
        if (/\\d %/.test(walk.currentNode.data) && !e.closest("blockquote, script, style")) found.push(e.textContent);
    }
    return found;
}"""


def test_no_line_ends_between_a_number_and_its_sign(calm, visit):
    page = visit(calm).page
    assert page.evaluate("/\\d\u00a0%/.test(document.body.innerText)")
    assert page.evaluate(PARTED) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(calm, visit, scheme):
    """WCAG AA, 4.5:1, of every text against the nearest background that is painted behind it."""
    page = visit(calm, scheme=scheme).page
    unfold(page)
    poor = page.evaluate(
        """() => {
          const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
          const lum = c => { const f = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
            return .2126 * f(c[0]) + .7152 * f(c[1]) + .0722 * f(c[2]); };
          const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
            if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
          const found = [];
          const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          while (walk.nextNode()) {
            const e = walk.currentNode.parentElement;
            if (!walk.currentNode.textContent.trim() || e.closest('script, svg, .skip, noscript')) continue;
            if (!e.getClientRects().length) continue;
            const a = lum(parse(getComputedStyle(e).color)), b = lum(behind(e));
            const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
            if (ratio < 4.5) found.push([e.className, walk.currentNode.textContent.trim().slice(0, 30), ratio]);
          }
          return found;
        }"""
    )
    assert json.dumps(poor) == "[]"


def test_figures_follow_the_dark_scheme(calm, visit):
    colours = {}
    for scheme in ("light", "dark"):
        page = visit(calm, scheme=scheme).page
        colours[scheme] = page.eval_on_selector(".xtick text", "e => getComputedStyle(e).fill")
    assert colours == {"light": "rgb(27, 34, 48)", "dark": "rgb(230, 234, 240)"}


def test_hidden_texts_show_and_hide_again(calm, visit):
    page = visit(calm).page
    assert page.locator("#examples details[open]").count() == 0
    assert not page.get_by_text("you stupid fools").is_visible()
    page.click("#unveil")
    assert page.get_by_text("you stupid fools").is_visible()
    assert page.get_attribute("#unveil", "aria-checked") == "true"
    assert page.evaluate("document.documentElement.dataset.veils") == "shown"
    page.click("#unveil")
    assert not page.get_by_text("you stupid fools").is_visible()


def test_printing_fits_the_figures_to_paper_and_back(calm, visit):
    page = visit(calm).page
    widths = "found => found.map(e => e.getBoundingClientRect().width)"
    shown = ".canvas:not(details:not([open]) *) .main-svg"
    before = page.eval_on_selector_all(shown, widths)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_timeout(200)
    assert set(page.eval_on_selector_all(".canvas .main-svg", "f => f.map(e => +e.getAttribute('width'))")) == {620}
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    page.wait_for_timeout(500)
    assert page.eval_on_selector_all(shown, widths) == before


def test_every_figure_and_table_has_words_for_it(calm, visit):
    page = visit(calm).page
    assert page.eval_on_selector_all(
        "figure", "f => f.every(e => e.querySelector('figcaption').textContent.length > 15)"
    )
    assert page.eval_on_selector_all(".canvas", "f => f.every(e => e.getAttribute('aria-label').length > 15)")
    assert page.eval_on_selector_all("table", "f => f.every(e => e.caption && e.caption.textContent.trim())")
    assert page.eval_on_selector_all("th", "f => f.every(e => e.scope)")


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (375, "dark")])
def test_axe_finds_nothing(whole, visit, width, scheme):
    """Everything open, offensive texts shown: no rule of axe-core is broken."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = visit(whole, width=width, scheme=scheme).page
    unfold(page)
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_the_contents_stay_beside_the_page(calm, visit):
    page = visit(calm).page
    page.click(".contents a[href='#method']")
    page.wait_for_timeout(1500)
    box = page.locator(".contents").bounding_box()
    assert 0 <= box["y"] < 200
    assert page.locator("#method").bounding_box()["y"] < 300
    assert page.get_attribute(".contents a[aria-current]", "href") == "#method"


def test_on_a_phone_the_contents_fold(calm, visit):
    page = visit(calm, width=375).page
    assert not page.locator(".contents ol").is_visible()
    page.click(".contents summary")
    page.click(".contents a[href='#training']")
    page.wait_for_timeout(1500)
    assert not page.locator(".contents ol").is_visible()
    assert page.locator(".contents summary").bounding_box()["y"] < 60
    # The bar doesn't hide what was asked for.
    assert 0 < page.locator("#training h2").bounding_box()["y"] < 300


def test_a_link_opens_the_fold_that_it_points_into(calm, visit):
    page = visit(calm).page
    assert not page.locator("#tables table").first.is_visible()
    page.evaluate("location.hash = '#tables'")
    page.wait_for_timeout(1200)
    assert page.locator("#tables table").first.is_visible()
    assert page.locator("#flows .main-svg").count() == 0
    # A part's own state may follow; one that is no target does nothing.
    page.evaluate("location.hash = '#flows?model=RL'")
    page.wait_for_timeout(1200)
    assert page.locator("#flows .main-svg").count() > 0
    page.evaluate("location.hash = '#nowhere'")


def test_a_link_from_elsewhere_opens_it_too(calm, visit, browser):
    context = browser.new_context()
    page = context.new_page()
    page.goto(calm.as_uri() + "#qualities")
    page.wait_for_timeout(1000)
    assert page.locator("#qualities table").is_visible()
    context.close()


def test_paper_has_everything_and_no_controls(calm, visit):
    """A4 less its margins is 718 pixels wide at 96 dots an inch."""
    page = visit(calm, width=718).page
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_timeout(500)
    assert page.locator("details.fold:not([open])").count() == 0
    assert page.locator("details.veil[open]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    for table in page.query_selector_all("table"):
        assert table.bounding_box()["x"] + table.bounding_box()["width"] <= 718
    assert not page.locator(".contents").is_visible()
    assert page.eval_on_selector_all("button", "found => found.every(e => !e.getClientRects().length)")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.fold[open]").count() == 0
