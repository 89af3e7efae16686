import sys
from pathlib import Path

import pytest

# The made-up comparison is shared with the tests of the page's text.
sys.path.insert(0, str(Path(__file__).parent.parent / "reporting"))


class Visit:
    """A page opened from disk, and everything that it tried: dialogs, requests, console messages, errors."""

    def __init__(self, browser, path, *, width=1300, scheme="light", **options):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        self.page = self.context.new_page()
        self.dialogs, self.requests, self.messages, self.errors, self.popups = [], [], [], [], []
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.context.on("page", lambda page: self.popups.append(page.url))
        self.url = path.as_uri()
        self.page.goto(self.url)
        # Figures wait until a reader comes near the first of them.
        self.page.wait_for_selector("html[data-figures]", state="attached")
        if self.page.query_selector("html[data-figures=waiting]"):
            self.page.evaluate("document.querySelector('[data-figure]').scrollIntoView()")
            self.page.wait_for_selector("html[data-figures=drawn]", state="attached")
            self.page.evaluate("scrollTo(0, 0)")
        # Plotly may finish drawing in the frame after. This comes two frames later.
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def _dialog(self, dialog):
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def assert_quiet(self):
        assert self.dialogs == []
        assert [url for url in self.requests if url.split("#")[0] != self.url] == []
        assert self.messages == []
        assert self.errors == []
        assert self.popups == []


@pytest.fixture
def visit(browser):
    open_visits = []

    def opened(path, **options):
        open_visits.append(Visit(browser, path, **options))
        return open_visits[-1]

    yield opened
    for one in open_visits:
        one.context.close()
