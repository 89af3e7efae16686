"""The server of the page for labellers: what it takes, whom it refuses, and what a killed one has kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_folder import folder_of

pytest.importorskip("uvicorn", reason="rewardlm[view] is not installed")

from rewardlm.labelling.folder import LabelFolder


class LabelServer:
    """``rewardlm label open`` as a user starts it."""

    def __init__(self, folder: Path, *more: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rewardlm", "label", "open", "PT", "FT", "--labels", "30", "--out", "labels", *more],
            cwd=folder, env={k: v for k, v in environment.items() if "DISPLAY" not in k},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline().strip()
        self.address = self.line.split(" ")[0].rstrip("/")

    def ask(self, path: str, body: Any = None, **headers: str) -> Any:
        data = None if body is None else json.dumps(body).encode()
        usual = {} if body is None else {"Content-Type": "application/json"}
        asked = urllib.request.Request(self.address + path, data, {**usual, **headers})
        with urllib.request.urlopen(asked, timeout=60) as found:
            return json.load(found)

    def refused(self, path: str, body: Any = None, **headers: str) -> int:
        with pytest.raises(urllib.error.HTTPError) as error:
            self.ask(path, body, **headers)
        return error.value.code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LabelServer]:
    folder_of(tmp_path)
    server = LabelServer(tmp_path)
    yield server
    server.close()


@pytest.mark.slow
def test_a_label_is_kept_before_the_next_answer_comes_and_a_kill_loses_none(
    server: LabelServer, tmp_path: Path
) -> None:
    assert server.line.endswith(" has 30 answers to label, kept in labels")
    about = server.ask("/api/about")
    assert about["question"] == "Is this answer toxic?"
    assert about["guideline"].startswith("# What counts as toxic")
    first = server.ask("/api/next?labeller=ann")
    assert (first["done"], first["left"]) == (0, 30)
    assert set(first["item"]) == {"id", "prompt", "text"}, "nothing says whose answer it is"
    item = first["item"]["id"]
    second = server.ask("/api/label", {"labeller": "ann", "item": item, "label": 1, "seconds": 2.5})
    assert second["done"] == 1
    assert second["item"]["id"] != item
    server.process.kill()
    folder = LabelFolder.open(tmp_path / "labels")
    assert folder.said() == {"ann": {item: 1}}
    assert folder.lines[0].seconds == 2.5
    again = LabelServer(tmp_path)
    try:
        assert again.ask("/api/next?labeller=ann")["item"]["id"] == second["item"]["id"]
        back = again.ask("/api/undo", {"labeller": "ann", "done": 1})
        assert (back["undone"], back["item"]["id"], back["done"]) == (True, item, 0)
        assert again.ask("/api/undo", {"labeller": "ann", "done": 1})["undone"] is False
        # While it is up, no other command adds labels; Ctrl-C ends it without a word.
        busy = subprocess.run(
            [sys.executable, "-m", "rewardlm", "label", "import", "labels", "x.csv"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert busy.returncode == 1
        assert "another command" in busy.stderr
        again.process.send_signal(signal.SIGINT)
        assert again.process.wait(60) == 0
        assert again.process.stderr is not None
        assert again.process.stderr.read() == ""
    finally:
        again.close()


@pytest.mark.slow
def test_what_is_no_label_or_comes_from_elsewhere_is_refused(server: LabelServer, tmp_path: Path) -> None:
    item = server.ask("/api/next?labeller=ann")["item"]["id"]
    good = {"labeller": "ann", "item": item, "label": 0}
    for bad in (
        {**good, "label": 2}, {**good, "label": "yes"}, {**good, "label": True}, {**good, "labeller": ""},
        {**good, "labeller": "a\nb"}, {**good, "labeller": "x" * 101}, {**good, "labeller": "\x1b[2J"},
        {**good, "labeller": "a\x00b"}, {**good, "seconds": -1}, {**good, "more": 1},
        {"labeller": "ann", "item": item}, [],
    ):  # fmt: skip
        assert server.refused("/api/label", bad) == 422, bad
    assert server.refused("/api/label", {**good, "item": "nobody"}) == 400
    assert server.refused("/api/label", good, **{"Content-Type": "text/plain"}) == 415
    assert server.refused("/api/label", good, **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert server.refused("/api/label", good, Host="evil.example") == 421
    assert server.refused("/api/next", good) == 405
    assert server.refused("/assets/../folder.py") == 404
    assert server.refused("/api/next?labeller=%0A") == 422
    assert LabelFolder.open(tmp_path / "labels").said() == {}
    assert server.ask("/api/label", good, **{"Sec-Fetch-Site": "same-origin"})["done"] == 1
