"""``rewardlm view`` as a user meets it: one line, a browser, a taken port, Ctrl-C; and a training that is followed."""

import importlib.util
import json
import signal
import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner
from viewing_server import ViewingServer, train, wait_for

from rewardlm.cli.commands import load
from rewardlm.errors import ConfigError, RunError
from rewardlm.runs import Run

needs_server = pytest.mark.skipif(importlib.util.find_spec("uvicorn") is None, reason="rewardlm[view] is not installed")


@pytest.fixture
def serve():
    servers = []

    def started(*arguments, **environment):
        servers.append(ViewingServer(*arguments, **environment))
        return servers[-1]

    yield started
    for server in servers:
        server.close()


def view(*arguments):
    """Call the command in this process; what it raises."""
    import typer

    app = typer.Typer()
    app.command()(load("view"))
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_without_the_extra_one_line_says_what_to_install(monkeypatch, tmp_path, missing):
    for name in [name for name in sys.modules if name.startswith(("rewardlm.viewing", "rewardlm.local_page", missing))]:
        monkeypatch.delitem(sys.modules, name)

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name == missing:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    error = view(tmp_path, "--no-browser").exception
    assert isinstance(error, ConfigError)
    assert str(error) == f"view needs the package {missing}: pip install 'rewardlm[view]'"


@needs_server
def test_a_port_that_is_taken_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = view(tmp_path, "--no-browser", "--port", port).exception
    assert isinstance(error, ConfigError)
    assert str(error) == f"port {port} is taken: choose another, or leave --port out for a free one"


@needs_server
def test_a_file_is_no_run(tmp_path):
    (tmp_path / "report.html").write_text("x")
    error = view(tmp_path / "report.html", "--no-browser").exception
    assert isinstance(error, RunError)
    assert "is a file" in str(error)


@pytest.mark.slow
@needs_server
class TestProcess:
    def test_it_says_where_it_is_waits_for_runs_and_picks_them_up(self, serve, tmp_path):
        server = serve(tmp_path / "later", "--no-browser")
        assert server.line.startswith("http://127.0.0.1:")
        assert server.line.endswith(f"waiting for runs in {tmp_path / 'later'}")
        assert server.get("/api/state")["runs"] == []
        Run.start(tmp_path / "later" / "rl", kind="rlaf", label="RL", settings={"model": "tiny", "steps": 3})
        wait_for(lambda: "RL" in server.runs(), "a run that came later")
        assert server.interrupt() == (0, "", "")

    def test_it_is_bound_to_this_machine_alone(self, serve, tmp_path):
        server = serve(tmp_path, "--no-browser")
        port = int(server.address.rpartition(":")[2])
        bound = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if f":{port:04X} " in line]
        assert "0100007F" in {address.partition(":")[0] for address in bound}
        assert "00000000" not in {address.partition(":")[0] for address in bound}

    @pytest.mark.parametrize("times", [1, 2, 5])
    def test_ctrl_c_ends_it_quietly_however_often(self, serve, tmp_path, times):
        server = serve(tmp_path, "--no-browser")
        server.get("/api/state")
        assert server.interrupt(times) == (0, "", "")

    def test_sigterm_ends_it_quietly_and_leaves_nothing_behind(self, serve, tmp_path):
        (tmp_path / "tmp").mkdir()
        server = serve(tmp_path, "--no-browser", TMPDIR=str(tmp_path / "tmp"))
        assert len(list((tmp_path / "tmp").iterdir())) == 1
        server.process.send_signal(signal.SIGTERM)
        server.process.communicate(timeout=60)
        assert server.process.returncode == 0
        assert list((tmp_path / "tmp").iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "display", "opened"), [([], ":0", True), (["--no-browser"], ":0", False), ([], "", False)]
    )
    def test_a_browser_is_opened_where_there_is_a_display(self, serve, tmp_path, arguments, display, opened):
        told = tmp_path / "told"
        browser = tmp_path / "browser"
        browser.write_text(f'#!/bin/sh\necho "$1" > {told}\n')
        browser.chmod(0o755)
        server = serve(tmp_path, *arguments, BROWSER=str(browser), **({"DISPLAY": display} if display else {}))
        if opened:
            wait_for(lambda: told.exists() and told.read_text(), "a browser")
            assert told.read_text().strip() == server.address + "/"
        assert server.interrupt()[0] == 0
        assert told.exists() == opened

    def test_a_training_is_followed_killed_and_resumed(self, serve, tmp_path):
        server = serve(tmp_path / "runs", "--no-browser")
        out = tmp_path / "runs" / "rl"
        training = train(out, steps=400)
        try:
            seen = set()

            def far_enough():
                run = server.runs().get("RL")
                if run is not None and run["n"]:
                    assert run["state"] == "running"
                    seen.add(run["n"])
                return len(seen) >= 3

            wait_for(far_enough, "three looks at a training that goes on")
        finally:
            training.kill()
            training.communicate()
        killed = wait_for(lambda: (run := server.runs()["RL"])["state"] == "killed" and run, "the end of a killed run")
        assert f"rewardlm rlaf tiny … --out {out}" in killed["go_on"]
        written = [json.loads(line) for line in (out / "metrics.jsonl").read_bytes().split(b"\n")[:-1]]
        columns = server.get(f"/api/runs/{killed['id']}/curves")["columns"]
        assert columns["step"] == [line["step"] for line in written]
        assert columns["kl"] == pytest.approx([line["kl"] for line in written], rel=1e-5)
        answers = server.get(f"/api/runs/{killed['id']}/answers")["answers"]
        assert answers[0]["step"] == max(sample["step"] for sample in Run.open(out).read("samples"))

        steps = len(written) + 40  # for some seconds, so that it is seen
        training = train(out, steps=steps)
        wait_for(lambda: server.runs()["RL"]["state"] == "running", "the run that goes on")
        assert training.wait(timeout=240) == 0, training.stderr.read()
        training.stderr.close()
        done = wait_for(lambda: (run := server.runs()["RL"])["state"] == "finished" and run, "its end")
        assert done["progress"] == {"done": steps, "total": steps, "unit": "steps"}
        columns = server.get(f"/api/runs/{done['id']}/curves")["columns"]
        assert columns["step"] == list(range(1, steps + 1))
        assert server.interrupt() == (0, "", "")
