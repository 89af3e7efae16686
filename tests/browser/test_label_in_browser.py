"""The page for labellers in a real browser, by keyboard alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="rewardlm[view] is not installed")
sys.path.insert(0, str(Path(__file__).parent.parent / "labelling"))

from labelled_runs import scored
from test_label_server import LabelServer

from rewardlm.config import LabelSettings
from rewardlm.labelling.folder import LabelFolder
from rewardlm.measuring.label_sample import label_folder

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def server(tmp_path):
    paths = [scored(tmp_path / label, label, seed=seed)[0] for seed, label in enumerate(("PT", "FT"))]
    label_folder(LabelSettings(labels=30, break_every=8), paths, tmp_path / "labels")
    server = LabelServer(tmp_path, "break_every=8")
    yield server
    server.close()


class Labeller:
    """A page, and everything that it tried."""

    def __init__(self, browser, server, name):
        self.context = browser.new_context(viewport={"width": 1100, "height": 800})
        self.page = self.context.new_page()
        self.wrong, self.heard = [], []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("response", lambda response: self.heard.append(response.url))
        self.page.goto(server.address + "/")
        self.page.wait_for_selector("#hello:not([hidden])")
        self.page.keyboard.type(name)  # the field has the focus already
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector("#one:not([hidden])")

    def progress(self):
        return self.page.inner_text("#progress")

    def label(self, key):
        """Show the texts, press a key, and wait until the label is kept."""
        before = self.progress()
        self.page.keyboard.press("Space")
        assert self.page.is_visible("#text")
        text = self.page.inner_text("#text")
        self.page.keyboard.press(key)
        self.page.wait_for_function("before => document.getElementById('progress').textContent !== before", arg=before)
        return text

    def until(self, beginning):
        self.page.wait_for_function(
            "wanted => document.getElementById('progress').textContent.startsWith(wanted)", arg=beginning
        )

    def go_on(self):
        if self.page.is_visible("#pause"):
            self.page.keyboard.press("Enter")


def test_twenty_answers_are_labelled_by_keyboard(browser, server, tmp_path):
    ann = Labeller(browser, server, "ann")
    assert "toxic" in ann.page.inner_text("#question")
    # Nothing is shown, and no label is taken, before a key is pressed.
    assert ann.page.is_hidden("#texts")
    ann.page.keyboard.press("1")
    ann.page.keyboard.press("3")
    assert ann.progress() == "ann: 0 labelled, 30 left"
    said, breaks = [], 0
    for number in range(20):
        key = "123"[number % 3]
        said.append((ann.label(key), {"1": 1, "2": 0, "3": None}[key]))
        if ann.page.is_visible("#pause"):
            breaks += 1
            ann.page.keyboard.press("1")  # no label while there is a break
            ann.go_on()
    assert breaks == 2
    assert ann.progress() == "ann: 20 labelled, 10 left"
    folder = LabelFolder.open(tmp_path / "labels")
    assert [(folder.by_id[item].text, label) for item, label in folder.said()["ann"].items()] == said
    assert all(one.seconds is not None and one.seconds >= 0 for one in folder.lines)
    # One is taken back, and shown again; then labelled otherwise.
    ann.page.keyboard.press("u")
    ann.until("ann: 19")
    ann.page.keyboard.press("Space")
    assert ann.page.inner_text("#text") == said[-1][0]
    ann.page.keyboard.press("3")
    ann.until("ann: 20")
    last = next(item for item in folder.items if item.text == said[-1][0])
    assert LabelFolder.open(tmp_path / "labels").said()["ann"][last.id] is None
    # The guideline opens by a key; nothing went wrong, and nothing came from elsewhere.
    ann.page.keyboard.press("g")
    assert ann.page.is_visible("#guideline")
    assert ann.wrong == []
    assert all(url.startswith(server.address) for url in ann.heard)


def test_another_labeller_sees_what_is_shared_and_the_page_goes_on_after_a_reload(browser, server, tmp_path):
    ann = Labeller(browser, server, "ann")
    for _ in range(5):
        ann.label("1")
    ann.page.reload()
    ann.page.wait_for_selector("#hello:not([hidden])")
    assert ann.page.input_value("#name") == "ann"
    ann.page.keyboard.press("Enter")
    ann.page.wait_for_selector("#one:not([hidden])")
    assert ann.progress() == "ann: 5 labelled, 25 left"
    folder = LabelFolder.open(tmp_path / "labels")
    mine = set(folder.said()["ann"])
    ben = Labeller(browser, server, "ben")
    kept = sum(item.id not in mine or item.shared for item in folder.items)
    assert ben.progress() == f"ben: 0 labelled, {kept} left"
    ben.label("2")
    assert set(LabelFolder.open(tmp_path / "labels").said()) == {"ann", "ben"}


def test_no_answer_says_whose_it_is_and_markup_stays_text(browser, tmp_path):
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>{{7*7}}"
    path, _ = scored(tmp_path / "PT", "PT", prompts=4, samples=1)
    lines = [json.loads(line) for line in (path / "generations.jsonl").read_text().splitlines()]
    (path / "generations.jsonl").write_text("".join(json.dumps({**line, "text": evil}) + "\n" for line in lines))
    (tmp_path / "FT").symlink_to(path)
    label_folder(LabelSettings(labels=30), [tmp_path / "PT", tmp_path / "FT"], tmp_path / "labels")
    server = LabelServer(tmp_path)
    try:
        ann = Labeller(browser, server, "ann")
        assert ann.label("2") == evil
        assert ann.wrong == []
        whole = ann.page.content()
        assert "PT" not in whole.replace(evil, "")
    finally:
        server.close()


def test_a_server_that_is_gone_is_said_and_the_label_can_be_sent_again(browser, server, tmp_path):
    ann = Labeller(browser, server, "ann")
    ann.label("1")
    port = server.address.rpartition(":")[2]
    server.process.kill()
    server.process.wait()
    ann.page.keyboard.press("Space")
    ann.page.keyboard.press("2")
    ann.page.wait_for_selector("#lost:not([hidden])")
    again = LabelServer(tmp_path, "break_every=8", "--port", port)
    try:
        ann.page.keyboard.press("r")
        ann.page.wait_for_selector("#one:not([hidden])")
        assert ann.progress() == "ann: 2 labelled, 28 left"
        assert len(LabelFolder.open(tmp_path / "labels").said()["ann"]) == 2
    finally:
        again.close()
