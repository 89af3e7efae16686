"""The pages of ``view`` and ``label open`` on records whose every text is a payload: nothing runs, nobody is asked, and
all is shown as the text that it is. Both are opened without the server's Content-Security-Policy, so that what the
scripts make of texts must hold alone; the policies themselves are checked besides.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="rewardlm[view] is not installed")
sys.path.insert(0, str(Path(__file__).parent.parent / "viewing"))
sys.path.insert(0, str(Path(__file__).parent.parent / "labelling"))
sys.path.insert(0, str(Path(__file__).parent.parent / "measuring"))

from measured_runs import build_run
from test_label_server import LabelServer
from viewing_server import ViewingServer, wait_for

from payloads import PAYLOADS, STRANGERS, TEXTS, TURNING, everything, squashed
from rewardlm.config import LabelSettings
from rewardlm.measuring.label_sample import label_folder
from rewardlm.runs import Run

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# What these pages have themselves.
KNOWN = (
    ":is(link[href='data:,'], link[href^='/assets/'], script[src^='/assets/'], #name-form, a[href^='/report/'], "
    "iframe[src^='/report/'])"
)


class Local:
    """A page of a server on this machine, and everything that it tried."""

    def __init__(self, browser, address, **options):
        self.address = address
        self.context = browser.new_context(viewport={"width": 1300, "height": 900}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.requests, self.wrong = [], []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.policy = self.page.goto(address + "/").headers["content-security-policy"]

    def shown(self, selector: str) -> str:
        """The texts of all elements that fit, without blanks."""
        return squashed(" ".join(self.page.locator(selector).all_text_contents()))

    def assert_nothing_happened(self):
        assert self.page.evaluate("window.canary") is None
        assert self.page.evaluate(STRANGERS, KNOWN) == []
        assert self.page.evaluate(TURNING) == []
        assert self.page.evaluate("getComputedStyle(document.body).display") == "block"
        assert [url for url in self.requests if not url.startswith((self.address, "data:", "blob:"))] == []
        assert self.page.url.startswith(self.address)
        assert self.wrong == []


def folder_name(text: str) -> str:
    """As much of ``text`` as the name of a folder can be."""
    named = text.replace("/", "\u2215").replace("\x00", "").strip(".").encode()[:150].decode(errors="ignore")
    return named or "nothing"


def rules(policy: str) -> dict[str, list[str]]:
    return {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}


# Scripts come from the server's own files alone.
LOCAL_POLICY = {
    "default-src": ["'none'"], "script-src": ["'self'"], "style-src": ["'self'", "'unsafe-inline'"],
    "img-src": ["data:", "blob:"], "connect-src": ["'self'"], "frame-src": ["'self'"], "base-uri": ["'none'"],
    "form-action": ["'none'"], "frame-ancestors": ["'none'"],
}  # fmt: skip


@pytest.fixture
def local(browser):
    opened = []

    def made(server, **options):
        opened.append(Local(browser, server.address, **options))
        return opened[-1]

    yield made
    # A page that a payload has changed may lack what a test waits for: this says why.
    ran = [one.page.evaluate("window.canary") for one in opened]
    for one in opened:
        one.context.close()
    assert ran == [None] * len(opened)


def train(folder: Path, number: int) -> None:
    """A training with one payload in every place, and all of them in the warnings and answers of the first."""
    payload = PAYLOADS[number]
    run = Run.start(
        folder / f"{number} {folder_name(payload)}", kind=("rlaf", "prefer", "finetune")[number % 3], label=payload,
        settings={"model": payload, "reward": [payload], "algorithm": payload, "method": payload, "steps": 3},
    )  # fmt: skip
    terms = {PAYLOADS[number]: 0.5} if number else {everything(): 0.5}
    metric = {"seconds": 1.0, "reward_mean": 0.5, "kl": 0.1, "loss": 0.1}
    run.append(
        "metrics",
        [
            {**metric, "step": step, "warnings": [payload, f"{payload}: {payload}"], "terms": terms,
             "toxicity_by_witness": {everything(number): 0.5} if number < 3 else {}}
            for step in (1, 2, 3)
        ],
    )  # fmt: skip
    run.append(
        "samples",
        [
            {"step": 3, "prompt": payload, "response": payload, "finish": payload if number % 2 else "length",
             "reward": 0.5, "reason": payload, "by_judge": {payload: 0.9}, "by_witness": {payload: 0.1},
             "terms": {payload: 1.0}}
        ],
    )  # fmt: skip
    run.update(status="stopped", stopped=payload)


def test_the_live_view(local, tmp_path):
    runs = tmp_path / "runs"
    for number in range(len(PAYLOADS)):
        train(runs / "trained", number)
    Run.start(runs / "odd", kind=everything(5), label=everything(5), settings={"model": everything()})
    for number, label in enumerate((everything(3), everything(4))):
        # More judges than there are payloads would be many columns: half of them each.
        names = [re.sub("[(),#.]", "", name) for name in PAYLOADS[number::2]]
        judges = {name: [[0.9], [0.1], [0.2]] for name in names} | {"judge": [[0.9], [0.1], [None]]}
        build_run(
            runs / f"measured {number}", label, judges, texts=[[everything(number)]] * 3,
            prompts=[everything(7), everything(8), everything(9)], toxicity=[0.9, 0.1, 0.9], reason=everything(6),
            model=everything(10), scorers=[{"name": name, "labels": ["toxic"]} for name in judges],
            toxic_by=everything(11),
        )  # fmt: skip
    broken = runs / folder_name(everything(12))
    broken.mkdir()
    (broken / "run.json").write_text("{" + everything(), encoding="utf-8")
    server = ViewingServer(runs, tmp_path / folder_name(everything(13)), "--no-browser")
    try:
        seen = local(server, bypass_csp=True)
        page = seen.page
        page.locator(".run").nth(len(PAYLOADS) + 2).wait_for()
        page.click("#tick-all")
        page.locator("#answer-grid .column").nth(len(PAYLOADS) + 1).wait_for()
        page.click("#show-texts")
        wanted = {squashed(payload) for payload in PAYLOADS}
        for place in (
            ".run label bdi", ".run-what", ".run-status", "#doubt-list h3", "#doubt-list p", "#answer-grid h3",
            "#answer-grid blockquote.asked", "#answer-grid blockquote:not(.asked)", "#answer-grid .chip",
            "#chart-grid h3",
        ):  # fmt: skip
            text = seen.shown(place)
            # A kind of doubt ends at the first colon, and has no underscores.
            lost = {one for one in wanted if one.split(":")[0].replace("_", "") not in text.replace("_", "")}
            assert lost == set(), place
        names = seen.shown(".run-name")
        assert [one for one in PAYLOADS if squashed(folder_name(one)) not in names] == []
        assert squashed(folder_name(everything(12))) in seen.shown("#problems")
        assert squashed(folder_name(everything(13))) in seen.shown("#waiting")
        # Of a long text, the page has the beginning.
        assert squashed(everything(8))[:3000] in seen.shown("#answer-grid")
        # The charts of what all trainings share, and of some judges and terms.
        for place in (0, 1, 2, 3, 4, 5, page.locator(".canvas").count() - 1):
            canvas = page.locator(".canvas").nth(place)
            canvas.scroll_into_view_if_needed()
            canvas.locator(".main-svg").first.wait_for(state="attached")
            canvas.hover()
            page.wait_for_timeout(100)
        named = page.evaluate(
            """async () => {
              const figure = [...document.querySelectorAll(".js-plotly-plot")].find(one => one.data.length > 50);
              const said = [];
              for (const [curveNumber, trace] of figure.data.entries()) {
                if (trace.hoverinfo === "skip") continue;
                Plotly.Fx.hover(figure, [{ curveNumber, pointNumber: 0 }]);
                said.push(figure.querySelector(".hoverlayer .name").textContent);
                // Plotly points every 50 ms at most.
                await new Promise(resolve => setTimeout(resolve, 80));
              }
              return said;
            }"""
        )
        cut = {squashed(one if len(one) <= 40 else one[:39] + "…") for one in PAYLOADS}
        assert len({squashed(one) for one in named} & cut) > len(PAYLOADS) / 4
        assert {squashed(one) for one in named} - cut == set()
        for payload in (PAYLOADS[0], "no such text"):
            page.fill("#text", payload)
            wait_for(lambda: "No answer fits" in page.inner_text("#answer-grid"), "an answer to a search")
        page.fill("#text", "")
        # The comparison of the two measurements, and its report in the page.
        page.click("#compare")
        page.get_by_text("Done in").wait_for()
        said = seen.shown("#verdict")
        assert squashed(everything(3)) in said or squashed(everything(4)) in said
        page.get_by_text("Show the report here").click()
        page.locator("iframe").scroll_into_view_if_needed()  # it is loaded once it is near
        page.frame_locator("iframe").locator("h1").wait_for()
        framed = next(frame for frame in page.frames if "/report/" in frame.url)
        wait_for(lambda: framed.evaluate("'figures' in document.documentElement.dataset"), "the report in the page")
        assert framed.evaluate("window.canary") is None
        assert framed.evaluate(STRANGERS, KNOWN) == []
        assert framed.evaluate(TURNING) == []
        seen.assert_nothing_happened()
        assert rules(seen.policy) == LOCAL_POLICY
        with urllib.request.urlopen(framed.url, timeout=60) as answer:
            header, text = answer.headers["content-security-policy"], answer.read().decode()
        named = rules(header)
        # The report's own policy, by the server too: its scripts by their hashes.
        assert {one[:8] for one in named["script-src"]} == {"'sha256-"}
        assert named["frame-ancestors"] == ["'self'"]
        assert header.startswith(
            re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
        )
    finally:
        server.close()


def test_what_the_server_says_is_text_in_the_live_view(local, tmp_path):
    """Each text in each answer of the server, as if its records had held it there."""
    train(tmp_path / "runs", 1)
    build_run(tmp_path / "runs" / "a", "PT", {"judge": [[0.9], [0.1]]})
    server = ViewingServer(tmp_path / "runs", "--no-browser")
    replaced = []

    def disguised(value, key=""):
        if isinstance(value, dict):
            return {name: disguised(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [disguised(one, key) for one in value]
        if isinstance(value, str) and key not in ("id", "experiment", "state", "kind", "key"):
            replaced.append(f"{everything(len(replaced))} {len(replaced)}")
            return replaced[-1]
        return value

    def answer(route):
        found = route.fetch()
        kept = {name: value for name, value in found.headers.items() if name != "content-length"}
        route.fulfill(status=found.status, headers=kept, body=json.dumps(disguised(found.json())))

    compared = {
        "status": "ready", "page": "0", "seconds": 1.0, "explorer": True,
        "found": {"sentences": ["a", "b"], "primary": "c", "labels": ["d"],
                  "warnings": [{"heading": "e", "model": "f", "message": "g"}]},
    }  # fmt: skip
    try:
        seen = local(server, bypass_csp=True)
        page = seen.page
        page.route("**/api/state", answer)
        page.route("**/api/runs/*/answers?*", answer)
        texts = disguised(compared["found"])
        page.route("**/api/comparison?*", lambda route: route.fulfill(json={**compared, "found": texts}), times=1)
        page.reload()
        page.locator("#answer-grid .example").first.wait_for()
        page.click("#show-texts")
        page.click("#compare")
        page.get_by_text("Done in").wait_for()
        shown = squashed(page.evaluate(TEXTS))
        assert [one for one in (*texts["sentences"], texts["primary"], *texts["warnings"][0].values())
                if squashed(one) not in shown] == []  # fmt: skip
        error = {"status": "failed", "seconds": 0.1, "error": everything(20)}
        page.route("**/api/comparison?*", lambda route: route.fulfill(json=error), times=1)
        page.click("#compare")
        page.get_by_text("Not compared").wait_for()
        assert squashed(everything(20)) in seen.shown("#compare-state")
        page.route("**/api/comparison?*", lambda route: route.fulfill(status=400, json={"detail": everything(21)}))
        page.click("#compare")
        wait_for(lambda: squashed(everything(21)) in seen.shown("#compare-state"), "a refusal")
        seen.wrong = [one for one in seen.wrong if "status of 400" not in one]
        seen.assert_nothing_happened()
    finally:
        server.close()


def test_the_page_for_labellers(local, tmp_path):
    """Every payload as a question's prompt and as its answer, in the question, the guideline, a labeller's name, and in
    what the server says of a mistake."""
    half = (len(PAYLOADS) + 1) // 2
    for number, label in enumerate(("PT", "FT")):
        mine = [PAYLOADS[(number * half + place) % len(PAYLOADS)] for place in range(half)]
        build_run(
            tmp_path / label, everything(number), {"a": [[0.3]] * half}, texts=[[text] for text in mine],
            prompts=[everything(number * half + place) for place in range(half)],
        )  # fmt: skip
    settings = {"question": everything(30), "labels": 2 * half, "shared": 1, "break_every": 90}
    label_folder(LabelSettings(**settings), [tmp_path / "PT", tmp_path / "FT"], tmp_path / "labels")
    (tmp_path / "labels" / "guideline.md").write_text(everything(31), encoding="utf-8")
    (tmp_path / "settings.yaml").write_text(json.dumps(settings), encoding="utf-8")
    server = LabelServer(tmp_path, "--config", "settings.yaml", "--labels", str(2 * half))
    try:
        seen = local(server, bypass_csp=True)
        page = seen.page
        names = [payload[:40] for payload in PAYLOADS[::4] if payload[:40].isprintable()]
        assert len(names) > 9
        for name in names:
            page.wait_for_selector("#hello:not([hidden])")
            page.fill("#name", name)
            page.keyboard.press("Enter")
            page.wait_for_selector("#one:not([hidden])")
            assert page.inner_text("#progress") == f"{name.strip()}: 0 labelled, {2 * half} left"
            page.reload()
        page.wait_for_selector("#hello:not([hidden])")
        # The last one's name is there again.
        assert page.input_value("#name") == names[-1].strip()
        page.keyboard.press("Enter")
        page.wait_for_selector("#one:not([hidden])")
        assert seen.shown("#question") == squashed(everything(30))
        page.keyboard.press("g")
        assert seen.shown("#guideline") == squashed(everything(31))
        read = set()
        for number in range(2 * half):
            page.keyboard.press("Space")
            read.add(page.text_content("#text"))
            assert len(page.text_content("#prompt")) > 4000
            assert page.evaluate(STRANGERS, KNOWN) == []
            page.keyboard.press("2")
            page.wait_for_function(
                "n => document.getElementById('progress').textContent.includes(`: ${n} labelled`)", arg=number + 1
            )
        assert {squashed(text) for text in read} == {squashed(payload) for payload in PAYLOADS}
        assert page.is_visible("#end")
        page.route("**/api/undo", lambda route: route.fulfill(status=400, json={"detail": everything(32)}))
        page.keyboard.press("u")
        page.wait_for_selector("#lost:not([hidden])")
        assert squashed(everything(32)) in seen.shown("#lost-why")
        seen.wrong = [one for one in seen.wrong if "status of 400" not in one]
        seen.assert_nothing_happened()
        assert rules(seen.policy) == LOCAL_POLICY
    finally:
        server.close()


def test_no_answer_of_the_servers_is_a_page(tmp_path):
    """What is asked for and isn't there, or is refused, comes back as JSON or plain text, and may run nothing."""
    build_run(tmp_path / "runs" / "a", everything(), {"judge": [[0.9], [0.1]]})
    server = ViewingServer(tmp_path / "runs", "--no-browser")
    try:
        for path in ("/%3Cscript%3E1%3C/script%3E", "/assets/%3Cscript%3E", "/report/%3Cscript%3E", "/api/state",
                     "/api/runs/%3Cscript%3E/answers", "/api/comparison?run=%3Cscript%3E"):  # fmt: skip
            try:
                with urllib.request.urlopen(server.address + path, timeout=60) as found:
                    headers = found.headers
            except urllib.error.HTTPError as error:
                headers = error.headers
            assert headers.get_content_type() in ("application/json", "text/plain"), path
            assert headers["content-security-policy"] == "default-src 'none'"
            assert headers["x-content-type-options"] == "nosniff"
    finally:
        server.close()
