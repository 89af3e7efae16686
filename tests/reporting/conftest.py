from html.parser import HTMLParser

import pytest
import report_sample
import typed

from rewardlm.reporting.page import render_page


class Page(HTMLParser):
    """What a reader sees: texts of elements by id, tables as rows of cells, scripts apart."""

    void = ("meta", "link", "br", "wbr", "img", "input", "hr")

    def __init__(self, html):
        super().__init__()
        self.stack, self.texts, self.tables, self.scripts, self.tags, self.metas = [], {}, [], [], [], []
        self.unclosed, self.heading, self.title = [], "", ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "meta":
            self.metas.append(attributes)
        if tag in self.void:
            return
        self.stack.append((tag, attributes.get("id")))
        if tag == "table":
            self.tables.append({"caption": "", "rows": []})
        elif tag == "tr":
            self.tables[-1]["rows"].append([])
        elif tag in ("td", "th"):
            self.tables[-1]["rows"][-1].append("")
        elif tag == "script":
            self.scripts.append([attributes, ""])

    def handle_endtag(self, tag):
        if self.stack[-1][0] != tag:
            self.unclosed.append((tag, self.stack[-1]))
            return
        self.stack.pop()

    def handle_data(self, data):
        tags = [tag for tag, _ in self.stack]
        if "script" in tags:
            self.scripts[-1][1] += data
            return
        if "style" in tags:
            return
        if "h1" in tags:
            self.heading += data
        if "title" in tags:
            self.title += data
        for _, name in self.stack:
            if name:
                self.texts[name] = self.texts.get(name, "") + data
        if "caption" in tags:
            self.tables[-1]["caption"] += data
        elif "td" in tags or "th" in tags:
            self.tables[-1]["rows"][-1][-1] += data + " "

    def text(self, name):
        return " ".join(self.texts[name].split())

    def rows(self, caption):
        """Rows of the first table whose caption starts so, as lists of cell texts."""
        table = next(table for table in self.tables if " ".join(table["caption"].split()).startswith(caption))
        return [[" ".join(cell.split()) for cell in row] for row in table["rows"]]


@pytest.fixture(scope="session")
def parse():
    return Page


@pytest.fixture
def parts():
    """Everything that render_page takes, to be changed by a test."""
    return {
        "result": report_sample.sample_result(),
        "title": "A test of the page",
        "examples": report_sample.sample_examples(),
        "training": report_sample.sample_training(),
        "about": report_sample.sample_about(),
    }


@pytest.fixture
def render(parse):
    def rendered(parts):
        parts = dict(parts)
        parts["examples"] = typed.examples(parts["examples"])
        return parse(render_page(typed.comparison(parts.pop("result")), **parts))

    return rendered


@pytest.fixture(scope="session")
def page():
    return Page(
        render_page(
            typed.comparison(report_sample.sample_result()),
            title="A test of the page",
            examples=typed.examples(report_sample.sample_examples()),
            training=report_sample.sample_training(),
            about=report_sample.sample_about(),
        )
    )
