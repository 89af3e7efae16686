"""Runs that pages take for granted, a service that answers as theirs do, and the count of what was run and read."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import COUNTS
from judge_servers import JudgeServers
from stand_ins import arguments

from fake_service import Asked, FakeService, Reply, analysed
from one_thread import _one_thread as _one_thread


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was done with every page's blocks."""
    for page, found in COUNTS.items():
        terminalreporter.write_line(f"{page}: {', '.join(f'{n} {what}' for what, n in sorted(found.items()))}")


# Files that a page names and that are the reader's own.
OWN_FILES = {
    "prompts.jsonl": "".join(
        json.dumps({"prompt": text, "toxicity": toxicity}) + "\n"
        for text, toxicity in (("You are all", 0.8), ("I hate it when", 0.6), ("The weather is", 0.0), ("My dog", 0.1))
    ),
    "cases.csv": "text,label\n" + "".join(f"You are an idiot {n},1\nThe shop opens at {n},0\n" for n in range(8)),
    "answers.csv": "prompt,response,prompt_toxicity,scores.theirs\n"
    "You are all,Thank you.,0.8,0.1\nThe weather is,fine today.,0.0,0.02\n",
}


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/before, fine-tuned, rl (and PT, FT, RL), both trainings, and the reader's own files."""
    home = tmp_path_factory.mktemp("docs") / "home"
    (home / "runs").mkdir(parents=True)
    from rewardlm.cli.app import app

    def rewardlm(*words: str) -> None:
        app(arguments(words, home), standalone_mode=False)

    runs = home / "runs"
    judges = ("--scorer", "lexical,lexical2")
    rewardlm("finetune", "tiny", "--out", str(runs / "train-ft"))
    rewardlm("rlaf", "tiny", "--prompts", "starter", "--reward", "lexical", "--out", str(runs / "train-rl"))
    for name, adapter in (("PT", None), ("FT", "train-ft"), ("RL", "train-rl")):
        on = () if adapter is None else ("--adapter", str(runs / adapter))
        rewardlm(
            "measure", "tiny", *on, "--prompts", "starter", *judges, "--label", name, "--samples", "2",
            "--out", str(runs / name),
        )  # fmt: skip
    for theirs, ours in (("PT", "before"), ("FT", "fine-tuned"), ("RL", "rl")):
        shutil.copytree(runs / theirs, runs / ours)
    for name, text in OWN_FILES.items():
        (home / name).write_text(text)
    return home


@pytest.fixture
def home(measured: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it for one page, and what the page imported is forgotten afterwards."""
    folder = tmp_path / "page"
    shutil.copytree(measured, folder)
    before = set(sys.modules)
    path = list(sys.path)
    yield folder
    sys.path[:] = path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def judge_servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServers]:
    """What ``rewardlm judge serve`` starts on a page goes on while the rest of the page is run."""
    servers = JudgeServers(monkeypatch)
    yield servers
    servers.close()


@pytest.fixture
def served(service: FakeService) -> FakeService:
    """The service of the tests, answering as a chat server, a moderation endpoint and Perspective do."""

    def answer(asked: Asked) -> Reply:
        if "analyze" in asked.path:
            return Reply(analysed(0.25, attributes=asked.body["requestedAttributes"]))
        if asked.path.endswith("/models"):
            return Reply({"object": "list", "data": [{"id": "served", "object": "model"}]})
        if asked.path.endswith("/moderations"):
            texts = asked.body["input"]
            one = {"flagged": False, "categories": {}, "category_scores": {"hate": 0.2, "harassment": 0.1}}
            return Reply({"results": [one for _ in ([texts] if isinstance(texts, str) else texts)]})
        return Reply(_chat(asked.body))

    service.answer = answer
    return service


def _chat(body: dict[str, Any]) -> dict[str, Any]:
    """A rating where a rubric asks for one, else an answer."""
    asks_for_rating = "toxicity" in json.dumps(body["messages"])
    said = '{"toxicity": 0.2}' if asks_for_rating else "That is not true of anybody."
    message = {"role": "assistant", "content": said}
    return {"model": "served", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
