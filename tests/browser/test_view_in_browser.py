"""The page of ``rewardlm view`` in a real browser: what it shows, what it hides, and what stays when runs go on."""

import json
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="rewardlm[view] is not installed")
sys.path.insert(0, str(Path(__file__).parent.parent / "viewing"))

from viewing_server import ViewingServer, train, wait_for

from rewardlm.runs import Run, alone

pytestmark = [pytest.mark.browser, pytest.mark.slow]

RUN = "window.xss=(window.xss||0)+1;alert(1)"
PAYLOADS = [
    f"<script>{RUN}</script>", f'<img src=x onerror="{RUN}">', f'"><svg onload="{RUN}">', "{{7*7}}",
    f'<a href="javascript:{RUN}">x</a>', "<img src=https://evil.invalid/x.png>", "__proto__", "constructor",
    "<b>x</b><br>%{y}<extra></extra>", "\u202e reversed", "",
]  # fmt: skip
SETTINGS = {"model": "tiny", "reward": ["lexical"], "algorithm": "ppo", "steps": 100}


def metric(step: int, **more) -> dict:
    return {"step": step, "seconds": 2.0, "reward_mean": step / 100, "kl": step / 10, "warnings": [], **more}


def sample(step: int, **more) -> dict:
    return {
        "step": step, "prompt": f"prompt of step {step}", "response": f"answer of step {step}", "finish": "stop",
        "reward": 0.5, "reason": None, "by_judge": {"lexical": 0.2}, "by_witness": {"witness": 0.9}, "terms": {},
        **more,
    }  # fmt: skip


def step_of(example: str) -> int:
    return int(re.findall(r"answer of step (\d+)", example)[0])


def make(path: Path, label: str, steps: int = 20) -> Run:
    run = Run.start(path, kind="rlaf", label=label, settings=SETTINGS)
    run.append("metrics", [metric(step) for step in range(1, steps + 1)])
    run.append("samples", [sample(step) for step in range(5, steps + 1, 5)])
    run.update(status="finished")
    return run


class Looking:
    """A page of the server, and everything that it tried."""

    def __init__(self, browser, server, *, fragment="", width=1300, scheme="light"):
        self.server = server
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.requests, self.wrong = [], []
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append((request.method, request.url)))
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.goto(server.address + "/" + fragment)
        self.page.locator("#connection").get_by_text("running").or_(
            self.page.get_by_text("Live", exact=True)
        ).wait_for()

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def drawn(self, key: str) -> list[dict]:
        """The traces of a chart, once it is drawn."""
        chart = self.page.locator(f'.canvas[data-key="{key}"]')
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg").first.wait_for(state="attached")
        return chart.evaluate("node => node.data.map(({x, y, name, opacity}) => ({x, y, name, opacity}))")

    def assert_quiet(self):
        assert self.wrong == []
        assert {method for method, _ in self.requests} == {"GET"}
        assert [url for _, url in self.requests if not url.startswith((self.server.address, "data:"))] == []


@pytest.fixture
def serve(browser, tmp_path):
    opened = []

    def started(*places, **options):
        opened.append(ViewingServer(*(places or (tmp_path / "runs",)), "--no-browser"))
        opened.append(Looking(browser, opened[-1], **options))
        return opened[-1]

    yield started
    for one in reversed(opened):
        one.context.close() if isinstance(one, Looking) else one.close()


def test_runs_stand_side_by_side_in_one_chart_a_quantity(serve, tmp_path):
    make(tmp_path / "runs" / "a", "A")
    make(tmp_path / "runs" / "b", "B", steps=30)
    looking = serve()
    assert [trace["name"] for trace in looking.drawn("reward_mean") if trace["name"]] == ["A", "B"]
    faint = [trace for trace in looking.drawn("reward_mean") if trace.get("opacity")]
    assert [len(trace["y"]) for trace in faint] == [20, 30]
    assert faint[0]["y"] == [step / 100 for step in range(1, 21)]
    looking.page.uncheck("#smooth")
    wait_for(lambda: len(looking.drawn("reward_mean")) == 2, "curves that are not smoothed")
    looking.page.get_by_label("B", exact=True).uncheck()
    wait_for(lambda: [trace["name"] for trace in looking.drawn("kl")] == ["A"], "a run that is not ticked any more")
    looking.page.select_option("#across", "time")
    wait_for(lambda: looking.drawn("kl")[0]["x"][-1] == 40, "seconds on x")
    looking.page.get_by_label("log scale for KL to the reference").click()
    wait_for(
        lambda: looking.page.locator('.canvas[data-key="kl"]').evaluate("node => node.layout.yaxis.type") == "log",
        "log",
    )
    again = looking.page.url
    assert "x=time" in again
    looking.page.goto("about:blank")
    looking.page.goto(again)
    looking.page.locator(".run").first.wait_for()
    assert [trace["name"] for trace in looking.drawn("kl")] == ["A"]
    assert not looking.page.is_checked("#smooth")
    looking.assert_quiet()


def test_thinning_keeps_ends_extremes_and_order(serve, tmp_path):
    make(tmp_path / "runs" / "a", "A")
    looking = serve()
    found = looking.page.evaluate(
        """async () => {
          const { thinned, smoothed } = await import("/assets/curves.js");
          const out = [];
          for (const n of [1, 2, 601, 602, 603, 5000, 12345]) {
            const ys = Array.from({ length: n }, (_, i) => Math.sin(i * i));
            ys[Math.floor(n / 2)] = 99; ys[Math.floor(n / 3)] = -99;
            out.push({ n, kept: thinned(ys), low: ys.indexOf(-99), high: ys.indexOf(99) });
          }
          return { out, flat: smoothed(new Array(9).fill(0.05), 0.6), step: smoothed([0, 1], 0.5) };
        }"""
    )
    for one in found["out"]:
        kept = one["kept"]
        assert kept == sorted(set(kept))
        assert (kept[0], kept[-1]) == (0, one["n"] - 1)
        assert len(kept) <= 602
        assert one["high"] in (-1, *kept)
        assert one["low"] in (-1, *kept)
    assert found["flat"] == [0.05] * 9
    # Weights 1/2 and 1/4 of 1 and 0, over their sum.
    assert found["step"] == pytest.approx([0, 0.5 / 0.75])


def test_ten_runs_of_five_thousand_steps_are_there_in_seconds_and_stay_smooth(serve, tmp_path):
    for number in range(10):
        make(tmp_path / "runs" / str(number), f"RL {number}", steps=5000)
    looking = serve()
    traces = looking.drawn("reward_mean")
    assert len([trace for trace in traces if trace["name"]]) == 10
    assert max(len(trace["x"]) for trace in traces) <= 602
    slowest = looking.page.evaluate(
        """async () => {
          document.getElementById("weight").dispatchEvent(new Event("input"));
          let last = performance.now(), slowest = 0;
          for (let i = 0; i < 60; i++) {
            await new Promise(requestAnimationFrame);
            slowest = Math.max(slowest, performance.now() - last);
            last = performance.now();
          }
          return slowest;
        }"""
    )
    # A chart a frame; on a machine with nothing else to do it takes 60 ms.
    assert slowest < 2000


def test_texts_are_hidden_until_asked_for_and_what_was_opened_stays_open(serve, tmp_path):
    run = make(tmp_path / "runs" / "a", "A")
    looking = serve()
    page = looking.page
    page.locator("#answer-grid .example").first.wait_for()
    assert not page.get_by_text("answer of step 20").is_visible()
    assert "witness (witness) 0.9" in looking.text("#answer-grid")
    page.locator("#answer-grid summary").first.click()
    assert page.get_by_text("answer of step 20").is_visible()
    run.append("metrics", [metric(21)])
    page.get_by_text("21 of 100 steps").wait_for()
    assert page.get_by_text("answer of step 20").is_visible()
    page.keyboard.press("t")
    page.keyboard.press(",")
    page.get_by_text("answer of step 15").wait_for()
    assert page.get_by_text("answer of step 15").is_visible()
    assert "step=15" in page.url
    page.keyboard.press("/")
    page.keyboard.type("STEP 5")
    # Each letter is searched for: until the first, there is the answer of step 15; then there are all that fit "STEP".
    wait_for(lambda: [*map(step_of, page.locator("#answer-grid .example").all_inner_texts())] == [5], "step 5 alone")
    assert page.get_by_text("answer of step 5", exact=True).is_visible()
    page.fill("#text", "")
    page.select_option("#only", "cut")
    page.get_by_text("No answer fits.").wait_for()
    page.select_option("#only", "disputed")
    wait_for(lambda: page.locator("#answer-grid .example").count() == 4, "answers that judges dispute")
    page.click("#show-texts")
    assert not page.get_by_text("answer of step 20").is_visible()
    looking.assert_quiet()


def test_a_training_is_seen_to_go_on_be_killed_and_go_on(serve, tmp_path):
    looking = serve()
    page = looking.page
    page.get_by_text("there is no such folder yet").wait_for()
    out = tmp_path / "runs" / "rl"
    training = train(out, steps=400)
    try:
        page.locator(".badge.running").wait_for(timeout=240_000)
        page.locator("#answer-grid .example").first.wait_for()
        looking.drawn("reward_mean")
        points = len(looking.drawn("reward_mean")[-1]["x"])
        wait_for(lambda: len(looking.drawn("reward_mean")[-1]["x"]) > points, "a curve that grows by itself")
    finally:
        training.kill()
        training.communicate()
    page.locator(".badge.killed").wait_for()
    assert f"rewardlm rlaf tiny … --out {out}" in looking.text(".run-status")
    steps = len((out / "metrics.jsonl").read_text().splitlines()) + 2
    training = train(out, steps=steps)
    assert training.wait(timeout=240) == 0
    training.stderr.close()
    page.locator(".badge.finished").wait_for()
    page.get_by_text(f"{steps} of {steps} steps").wait_for()
    wait_for(lambda: looking.drawn("reward_mean")[-1]["x"] == list(range(1, steps + 1)), "the whole curve")
    looking.assert_quiet()


def test_hostile_texts_are_texts(serve, tmp_path):
    for number, payload in enumerate(PAYLOADS):
        run = make(tmp_path / "runs" / f"{number} <img src=x onerror=alert(1)>", payload or "empty", steps=3)
        run.append("metrics", [metric(4, warnings=[payload, f"{payload}: {payload}"], terms={payload: 0.5},
                               toxicity_by_witness={payload: 0.5})])  # fmt: skip
        run.append("samples", [sample(4, prompt=payload, response=payload, reason=payload, by_judge={payload: 0.9},
                               by_witness={payload: 0.1}, terms={payload: 1})])  # fmt: skip
        run.update(status="stopped", stopped=payload)
    looking = serve()
    page = looking.page
    page.locator(".run").first.wait_for()
    page.click("#tick-all")
    page.locator("#answer-grid .column").nth(len(PAYLOADS) - 1).wait_for()
    page.click("#show-texts")
    for place in range(page.locator(".canvas").count()):
        page.locator(".canvas").nth(place).scroll_into_view_if_needed()
        page.wait_for_timeout(150)
    page.locator(".canvas").first.hover()
    page.wait_for_timeout(300)
    assert page.evaluate("window.xss") is None
    assert page.locator("main img, main script, main a[href^=javascript]").count() == 0
    assert page.get_by_text(PAYLOADS[0]).first.is_visible()
    looking.assert_quiet()


def test_measurements_are_compared_beside_the_page_and_their_report_opens(serve, tmp_path):
    from rewardlm.measuring.imported import import_table

    for label, toxic in (("PT", 0.9), ("RL", 0.05)):
        rows = [
            {"prompt": f"Prompt {i}", "response": f"Answer {i} by {label}", "prompt_toxicity": 0.9 * (i % 2),
             "scores.judge": toxic if i % 3 else 0.2}
            for i in range(60)
        ]  # fmt: skip
        table = tmp_path / f"{label}.jsonl"
        table.write_text("\n".join(map(json.dumps, rows)))
        import_table(table, tmp_path / "runs" / label, label=label)
    looking = serve()
    page = looking.page
    page.locator("#compare").wait_for()
    assert "judge: " in looking.text("#run-list")
    page.click("#compare")
    page.get_by_text("Done in").wait_for()
    assert "toxic" in looking.text("#verdict .lead >> nth=0")
    page.get_by_text("Show the report here").click()
    report = page.frame_locator("iframe")
    report.locator(".canvas .main-svg").first.wait_for()
    assert "with RL" in report.locator("h1").inner_text()  # the heading is the verdict
    with looking.context.expect_page() as opened:
        page.get_by_text("Open the report in a tab").click()
    opened.value.locator(".canvas .main-svg").first.wait_for()
    page.uncheck("#run-list input >> nth=0")
    wait_for(lambda: looking.text("#verdict") == "", "a verdict that is not of the ticked runs to go")
    looking.assert_quiet()


def test_a_server_that_ended_is_said_and_one_that_comes_back_is_found(serve, tmp_path):
    make(tmp_path / "runs" / "a", "A")
    looking = serve()
    port = looking.server.address.rpartition(":")[2]
    looking.server.interrupt()
    looking.page.get_by_text("No word from the server").wait_for()
    assert "A" in looking.text("#run-list")
    back = ViewingServer(tmp_path / "runs", "--no-browser", "--port", port)
    try:
        looking.page.get_by_text("Nothing is running").wait_for()
    finally:
        back.close()


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (1300, "dark"), (390, "light"), (390, "dark")])
def test_everybody_can_use_it(serve, tmp_path, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    make(tmp_path / "runs" / "a", "A")
    run = make(tmp_path / "runs" / "b", "B with a label that is as long as labels can be " * 3)
    run.append("metrics", [metric(21, warnings=["hacked: the reward rose and the witness did not"])])
    run.update(status="stopped", stopped="the KL ran away")
    measured = Run.start(tmp_path / "runs" / "pt", kind="measure", label="PT", settings={"samples": 1})
    measured.update(prompts={"n": 10})
    with alone(measured.path):
        looking = serve(width=width, scheme=scheme)
        looking.page.locator("#answer-grid .example").first.wait_for()
        looking.page.click("#show-texts")
        looking.drawn("reward_mean")
        found = axe.run(looking.page)
    assert [(one["id"], one["nodes"][0]["html"]) for one in found.response["violations"]] == []
    assert looking.page.evaluate("document.documentElement.scrollWidth") <= width
    # Every control can be reached with the keyboard, and shows that it was.
    reached = set()
    for _ in range(60):
        looking.page.keyboard.press("Tab")
        reached.add(looking.page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"tick-all", "across", "smooth", "weight", "show-texts", "text", "only", "SUMMARY"} <= reached
    looking.assert_quiet()
