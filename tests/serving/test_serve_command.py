"""``rewardlm judge serve`` as a user meets it: one line, mistakes before anything is loaded, Ctrl-C, SIGTERM."""

from __future__ import annotations

import http.client
import importlib
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving_server import ServingProcess, analyze
from typer.testing import CliRunner

from rewardlm.cli.commands import load
from rewardlm.errors import ConfigError

ANALYZE = "/v1alpha1/comments:analyze"
SLOW_JUDGE = """
import time

def judge(texts):
    time.sleep(0.4)
    return [0.25] * len(texts)
"""


def serve_here(*arguments: object) -> Any:
    """Call the command in this process; what it raises."""
    import typer

    app = typer.Typer()
    app.command()(load("judge serve"))
    return CliRunner().invoke(app, [str(one) for one in arguments]).exception


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "prometheus_client"])
def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in [name for name in sys.modules if name.startswith(("rewardlm.serving", missing))]:
        monkeypatch.delitem(sys.modules, name)

    class Missing:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == missing:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    error = serve_here("lexical")
    assert isinstance(error, ConfigError)
    assert str(error) == f"judge serve needs the package {missing}: pip install 'rewardlm[serve]'"


def test_a_port_that_is_taken_is_said_before_a_judge_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("a judge was loaded before the port was tried")

    monkeypatch.setattr(importlib.import_module("rewardlm.serving.serve"), "load_judges", fail)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = serve_here("lexical", "--port", port)
    assert isinstance(error, ConfigError)
    assert str(error) == f"port {port} is taken: choose another, or --port 0 for a free one"


@pytest.mark.slow
class TestProcess:
    def test_it_says_in_one_line_where_it_is_and_what_it_serves(self, start: Callable[..., ServingProcess]) -> None:
        server = start("lexical", "--port", "0", "device=cpu")
        assert server.line.startswith("http://127.0.0.1:")
        assert server.line.endswith("/ serves lexical (1.9.1)")
        found = server.ask(ANALYZE, analyze("You are an idiot"))
        assert found.body["attributeScores"]["TOXICITY"]["summaryScore"]["value"] > 0.9
        port = int(server.address.rpartition(":")[2])
        bound = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if f":{port:04X} " in line]
        assert "0100007F" in {address.partition(":")[0] for address in bound}
        assert "00000000" not in {address.partition(":")[0] for address in bound}
        assert server.end(signal.SIGINT) == (0, "", "")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_loses_no_answer(
        self, start: Callable[..., ServingProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        (tmp_path / "slow_judge_of_a_test.py").write_text(SLOW_JUDGE)
        monkeypatch.chdir(tmp_path)
        server = start("slow_judge_of_a_test:judge", "--port", "0", "batch_texts=1", "device=cpu")
        answers: list[int] = []
        lost: list[str] = []

        def ask(n: int) -> None:
            try:
                answers.append(server.ask(ANALYZE, analyze(f"text {n}")).status)
            except (ConnectionError, http.client.HTTPException) as error:
                lost.append(type(error).__name__)

        clients = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
        for one in clients:
            one.start()
        while "rewardlm_queue_texts 5.0" not in server.ask("/metrics").data.decode():
            assert server.process.poll() is None
        assert server.end(number) == (0, "", "")
        for one in clients:
            one.join()
        assert lost == []
        assert answers == [200] * 6

    def test_a_key_from_the_environment_is_asked_for(self, start: Callable[..., ServingProcess]) -> None:
        server = start("lexical", "--port", "0", "device=cpu", REWARDLM_SERVE_KEY="the key")
        assert server.ask(ANALYZE, analyze("x")).status == 403
        assert server.ask(f"{ANALYZE}?key=the%20key", analyze("x")).status == 200
        code, out, err = server.end()
        assert (code, out, err) == (0, "", "")
