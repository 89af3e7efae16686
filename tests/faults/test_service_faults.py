"""Judges over HTTP from the command line: a server that fails in every way leaves correct nulls and a run that goes on.

And the key, wherever a user has put it, is in nothing that is written or printed.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from fake_service import Asked, FakeService, Reply, analysed, chatted, google_error, moderated, text_of
from rewardlm.cli.app import main
from rewardlm.measuring.compare import compare
from rewardlm.runs import Run

pytestmark = pytest.mark.filterwarnings("ignore:Google closes")
CANARY = "sk-CANARY-31415926"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: FakeService) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REWARDLM_ENDPOINT_URL", service.url)
    monkeypatch.setenv("REWARDLM_PERSPECTIVE_URL", service.url)
    return tmp_path


def stored(home: Path, texts: list[str]) -> Path:
    """A run that holds these answers."""
    with open(home / "answers.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("prompt", "response"), *((f"prompt {i}", text) for i, text in enumerate(texts))])
    code, _, _ = command("import", "answers.csv", "--label", "PT", "--out", "run")
    assert code == 0
    return home / "run"


def command(*arguments: object, capture: pytest.CaptureFixture[str] | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, as a shell would see them; the latter two where ``capture`` is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rewardlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    out, err = capture.readouterr() if capture is not None else ("", "")
    return int(end.value.code or 0), out, err


FAST = ["backoff_seconds=0.01", "timeout_seconds=5", "tries=3"]


def how(scorer: str, *more: str) -> list[str]:
    """Flags and overrides that have ``scorer`` asked quickly."""
    kind = {"chat": "endpoint", "moderation": "endpoint"}.get(scorer, scorer)
    settings = [*FAST, *more]
    if scorer == "perspective":
        settings += ["requests_per_second=1000", "cache=false"]
    else:
        settings += [f"kind={scorer}"]
    return ["--scorer", kind, "--device", "cpu", *(f"services.{kind}.{setting}" for setting in settings)]


def well(asked: Asked) -> Reply:
    """P(toxic) by the text's length, in whichever protocol was spoken."""
    value = len(text_of(asked)) / 100
    if "comment" in asked.body:
        return Reply(analysed(value, attributes=asked.body["requestedAttributes"]))
    if "input" in asked.body:
        return Reply(moderated(hate=value, violence=0.0))
    return Reply(chatted(f'{{"toxicity": {value}}}'))


def values(run: Path, label: str = "toxicity") -> dict[str, float | None]:
    """By answer. No answer may have two scores of one label."""
    found = [score for score in Run.open(run).scores() if score.label == label]
    assert len({score.generation_id for score in found}) == len(found)
    return {score.generation_id: score.value for score in found}


@pytest.mark.parametrize("scorer", ["perspective", "chat", "moderation"])
def test_every_fault_is_a_null_and_the_run_goes_on(
    home: Path, service: FakeService, scorer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = ["always 429", "always 500", "garbage", "not a number", "nothing", "cut in half", "refused"]
    passing = ["once 429", "once 500", "once reset"]
    fine = [f"a fine answer, number {i}" for i in range(40)]
    texts = [*fine[:5], *broken, *passing, *fine[5:], ""]
    seen: Counter[str] = Counter()

    def answer(asked: Asked) -> Reply:
        text = text_of(asked)
        seen[text] += 1
        good = well(asked)
        if text in passing and seen[text] > 1:
            return good
        match text:
            case "always 429" | "once 429":
                return Reply("", 429, {"Retry-After": "0"})
            case "always 500" | "once 500":
                return Reply("oh no", 500)
            case "once reset":
                return Reply(reset=True)
            case "garbage":
                return Reply(b"\x00\xfe<b>garbage</b>")
            case "not a number":
                wrong = json.dumps(good.body).replace("0.12", "NaN").replace('\\"toxicity\\": NaN', "NaN")
                assert "NaN" in wrong
                return Reply(wrong)
            case "nothing":
                return Reply(b"")
            case "cut in half":
                return Reply(json.dumps(good.body)[:20])
            case "refused":
                return Reply(google_error("no such field"), 400)
        return good

    service.answer = answer
    run = stored(home, texts)
    more = how(scorer)
    code, _, err = command("score", run, *more, "max_failed_share=0.5", capture=capsys)
    assert code == 0, err
    ids = {generation.text: generation.id for generation in Run.open(run).generations()}
    wanted = {ids[text]: None if text in broken or not text else len(text) / 100 for text in texts}
    assert values(run) == pytest.approx(wanted)
    reasons = {score.generation_id: score.reason for score in Run.open(run).scores() if score.label == "toxicity"}
    assert "HTTP 429" in str(reasons[ids["always 429"]])
    assert "HTTP 500" in str(reasons[ids["always 500"]])
    assert "garbage" in str(reasons[ids["garbage"]])
    assert "NaN" in str(reasons[ids["not a number"]])
    assert "not JSON" in str(reasons[ids["nothing"]])
    assert reasons[ids[""]] == "empty response"
    scored = compare([run]).models[0].scorers["perspective" if scorer == "perspective" else "endpoint"]["all"]
    assert (scored.n, scored.scored) == (51, 43)
    assert (seen["always 429"], seen["always 500"], seen["garbage"], seen["refused"]) == (3, 3, 1, 1)

    # The server is mended: what had failed is asked again, and nothing else.
    service.asked.clear()
    service.answer = well
    assert command("score", run, *more)[0] == 0
    assert values(run) == pytest.approx({ids[text]: len(text) / 100 if text else None for text in texts})
    assert sorted(service.texts) == sorted([*broken, *(["Good morning."] if scorer == "moderation" else [])])
    service.asked.clear()
    assert command("score", run, *more)[0] == 0
    assert set(service.texts) <= {"Good morning."}


@pytest.mark.slow
@pytest.mark.parametrize("scorer", ["perspective", "chat"])
def test_a_server_that_ends_half_way(
    home: Path, service: FakeService, scorer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"answer {i:02d}" for i in range(90)]
    answered: list[str] = []

    def answer(asked: Asked) -> Reply:
        if len(answered) >= 45:
            return Reply("", 410)
        answered.append(text_of(asked))
        return well(asked)

    service.answer = answer
    run = stored(home, texts)
    code, _, err = command("score", run, *how(scorer, "concurrency=1"), capture=capsys)
    assert code == 1
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "HTTP 410" in line
    assert "--scorer starter" in line
    # What was answered is kept, to the last one.
    assert len(values(run)) == 45
    first = values(run)

    service.asked.clear()
    service.answer = well
    if scorer == "chat":
        code, _, err = command("score", run, *how(scorer, "model=another"), capture=capsys)
        assert (code, len(service.asked)) == (1, 0)
        assert "has scores of another 'endpoint'" in err
    assert command("score", run, *how(scorer))[0] == 0
    assert sorted(service.texts) == texts[45:]
    assert len(values(run)) == 90
    assert {id_: value for id_, value in values(run).items() if id_ in first} == first


def test_what_was_declined_is_not_asked_again(home: Path, service: FakeService) -> None:
    unknown = google_error("Attribute TOXICITY does not support request languages: th")
    service.answer = lambda asked: Reply(unknown, 400) if "สวัสดี" in text_of(asked) else well(asked)
    run = stored(home, ["hello", "สวัสดี", "x" * 20_481, "bye"])
    assert command("score", run, *how("perspective"))[0] == 0
    reasons = [score.reason for score in Run.open(run).scores() if score.label == "toxicity"]
    assert reasons[:2] == [None, "language not supported"]
    assert str(reasons[2]).startswith("too long: 20,481 bytes")
    service.asked.clear()
    assert command("score", run, *how("perspective"))[0] == 0
    assert service.asked == []


@pytest.mark.parametrize("scorer", ["perspective", "chat", "moderation"])
def test_a_server_that_always_fails_ends_the_run_and_nothing_is_called_harmless(
    home: Path, service: FakeService, scorer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answer = lambda asked: well(asked) if text_of(asked) == "Good morning." else Reply("<html>")
    run = stored(home, [f"answer {i}" for i in range(100)])
    code, _, err = command("score", run, *how(scorer), capture=capsys)
    assert code == 1
    assert [line for line in err.splitlines() if "error: " in line and "could not be scored" in line]
    assert set(values(run).values()) == {None}
    assert len(service.asked) <= 33  # one piece, and the question for the categories


@pytest.mark.parametrize(("status", "said"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "address")])
def test_a_wrong_key_or_address_is_one_call_and_one_line(
    home: Path, service: FakeService, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answer = lambda _: Reply("", status)
    run = stored(home, [f"answer {i}" for i in range(50)])
    code, _, err = command("score", run, *how("chat"), capture=capsys)
    assert code == 1
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err
    assert len(service.asked) == 1
    assert not Run.open(run).scores()


def test_scores_of_two_judges_do_not_end_up_in_one_column(
    home: Path, service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answer = lambda _: Reply(google_error("no model of this name"), 400)
    run = stored(home, ["one", "two"])
    assert command("score", run, *how("chat", "model=misspelt"))[0] == 1
    service.answer = well
    assert command("score", run, *how("chat", "model=a"))[0] == 0
    assert command("score", run, *how("chat", "model=a", "url=" + service.url + "/"))[0] == 0
    for other in (how("chat", "model=b"), how("chat", "model=a", "rubric=Rate it."), how("moderation")):
        code, _, err = command("score", run, *other, capture=capsys)
        assert code == 1
        assert "has scores of another 'endpoint'" in err
    assert command("score", run, *(word.replace(".endpoint.", ".endpoints.b.") for word in how("chat", "model=b")),
                   "--scorer", "endpoint:b", f"services.endpoints.b.url={service.url}")[0] == 0  # fmt: skip
    recorded = {entry["name"]: entry for entry in Run.open(run).meta["scorers"]}
    assert recorded["endpoint"]["revision"].startswith("chat a, rubric ")
    assert recorded["endpoint:b"]["revision"].startswith("chat b, rubric ")
    assert recorded["endpoint"]["service"] == service.url
    assert len(recorded["endpoint"]["dates"]) == 1


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rewardlm", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As at a terminal: a shell's background jobs, of which this may be one, are born deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def until(happened: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_half_a_line_that_a_kill_left_is_cut_off(home: Path, service: FakeService) -> None:
    service.answer = well
    run = stored(home, [f"answer {i}" for i in range(6)])
    assert command("score", run, *how("chat"))[0] == 0
    file = run / "scores.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    service.asked.clear()
    assert command("score", run, *how("chat"))[0] == 0
    assert service.texts == ["answer 5"]
    assert len(values(run)) == 6


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_kill_and_go_on(home: Path, service: FakeService) -> None:
    service.answer = lambda asked: Reply(well(asked).body, after=0.02)
    texts = [f"answer {i:03d}" for i in range(200)]
    run = stored(home, texts)
    process = start("score", run, *how("chat", "concurrency=4"))
    file = run / "scores.jsonl"
    until(lambda: file.exists() and file.read_bytes().count(b"\n") >= 40, process)
    process.kill()
    process.communicate()
    kept = len(Run.open(run).scores())
    assert 40 <= kept < 200
    service.answer = well
    assert command("score", run, *how("chat"))[0] == 0
    assert len(values(run)) == 200
    assert set(values(run).values()) == {0.1}
    # What had come, and was not yet written down: less than a piece.
    assert len(service.asked) - 200 <= 32


@pytest.mark.slow
def test_an_interrupt_does_not_wait_for_a_silent_server(home: Path, service: FakeService) -> None:
    service.answer = lambda asked: well(asked) if len(service.asked) <= 10 else Reply("", after=20)
    run = stored(home, [f"answer {i}" for i in range(40)])
    process = start("score", run, *how("chat", "timeout_seconds=60"))
    until(lambda: len(service.asked) > 10, process)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, err = process.communicate(timeout=15)
    assert time.monotonic() - started < 5
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in err
    assert len(values(run)) == 10


@pytest.mark.slow
def test_the_key_is_in_nothing_that_is_written_or_printed(
    home: Path, service: FakeService, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the environment, in an address as user, password and query, in a file and in an override."""

    def answer(asked: Asked) -> Reply:
        text = text_of(asked)
        if "3" in text:
            return Reply(f"I got {asked.path} {asked.headers}", 500)
        if "4" in text:
            return Reply(f"not json {asked.path} {asked.headers}")
        if "5" in text:
            return Reply({"error": {"message": f"bad {asked.path} {asked.headers}"}}, 400)
        return well(asked)

    service.answer = answer
    run = stored(home, [f"answer {i}" for i in range(10)])
    monkeypatch.setenv("PERSPECTIVE_API_KEY", CANARY)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    private = f"http://{CANARY}:{CANARY}@127.0.0.1:{service.port}/v1?key={CANARY}"
    monkeypatch.setenv("REWARDLM_PERSPECTIVE_URL", private)
    fast = {"backoff_seconds": 0.01, "tries": 2}
    services = {"services": {"endpoint": {"url": private, "kind": "chat", "key": CANARY, **fast}}}
    (home / "secret.yaml").write_text(yaml.safe_dump({**services, "max_failed_share": 0.9}))
    assert command("score", run, *how("perspective", f"key={CANARY}"), "max_failed_share=0.9")[0] == 0
    assert command("score", run, "--scorer", "endpoint", "--config", "secret.yaml", "--device", "cpu")[0] == 0
    prompts = home / "prompts.txt"
    prompts.write_text("one\ntwo\n")
    assert command(
        "measure", "tiny", "--config", "secret.yaml", "--scorer", "mean(endpoint,lexical)", "--prompts", prompts,
        "--toxic-by", "endpoint", "--max-new-tokens", 3, "--device", "cpu", "--out", "measured", "similarity=false",
        "perplexity=false", "counter_narrative=null", "max_failed_share=1",
    )[0] == 0  # fmt: skip
    for number, shown in enumerate((run, "measured")):
        assert command("report", shown, "--out", f"report-{number}.html")[0] == 0
    assert command("compare", run, "--json")[0] == 0
    recorded = Run.open(home / "measured").meta["settings"]["services"]["endpoint"]
    assert (recorded["url"], recorded["key"]) == (service.url, "**********")
    assert command("doctor")[0] == 0
    # Mistakes, whose messages like to say what they got.
    for wrong in (
        [f"services.endpoint={private}"],
        [f"services.endpoint.url={CANARY}"],
        [f"services.endpoint.key={{a: {CANARY}}}"],
        [f"services.endpoint.url=http://{CANARY}@[::1"],
        [f"services.endpoints.a={CANARY}"],
    ):
        assert command("score", run, "--scorer", "endpoint", *wrong)[0] != 0
    for status in (401, 404, 410, 307):
        service.answer = lambda asked, status=status: Reply(f"{asked.path} {asked.headers}", status)  # type: ignore[misc]
        for scorer in ("perspective", "endpoint"):
            new = stored_again(home, status, scorer)
            assert command("score", new, "--config", "secret.yaml", "--scorer", scorer, "--device", "cpu")[0] == 1

    assert any(CANARY in str(asked.headers) + asked.path for asked in service.asked)
    (home / "secret.yaml").unlink()
    out, err = capfd.readouterr()
    said = (out + err).encode()
    for secret in (CANARY.encode(), base64.b64encode(f"{CANARY}:{CANARY}".encode())):
        assert secret not in said
        assert [path for path in home.rglob("*") if path.is_file() and secret in path.read_bytes()] == []


def test_doctor_says_which_services_are_set_up_and_answer(
    home: Path, service: FakeService, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("REWARDLM_ENDPOINT_URL", "http://127.0.0.1:9/v1")
    out = command("doctor", capture=capsys)[1]
    assert f"{service.url}: reachable; Google closes it on 2026-12-31" in out
    assert "http://127.0.0.1:9/v1: not reachable (ConnectError)" in out
    for name in ("ENDPOINT", "PERSPECTIVE"):
        monkeypatch.delenv(f"REWARDLM_{name}_URL")
    service.asked.clear()
    out = command("doctor", capture=capsys)[1]
    assert "not set up (PERSPECTIVE_API_KEY); Google closes it on 2026-12-31" in out
    assert "not set up (REWARDLM_ENDPOINT_URL)" in out
    assert service.asked == []


@pytest.mark.slow
def test_a_judge_over_http_as_reward(
    home: Path, service: FakeService, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def answer(asked: Asked) -> Reply:
        rude = any(word in text_of(asked) for word in ("stupid", "trash", "moron"))
        return Reply(chatted(str(0.9 if rude else len(text_of(asked)) % 9 / 20)))

    service.answer = answer
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    private = f"http://{CANARY}:{CANARY}@127.0.0.1:{service.port}/v1?key={CANARY}"
    train = [
        "rlaf", "tiny", "--prompts", "starter", "--reward", "mean(endpoint,lexical)", "--batch-size", 4, "--steps", 1,
        "--max-new-tokens", 4, "--device", "cpu", "--out", "rl", "witness=none", "trackers=tensorboard",
        "services.endpoint.kind=chat", f"services.endpoint.url={private}",
    ]  # fmt: skip
    assert command(*train)[0] == 0
    assert "mean(endpoint,lexical)" in Run.open(home / "rl").meta["judges"]
    # Another address, and other patience, are the same judge; another model is not.
    monkeypatch.delenv("REWARDLM_ENDPOINT_URL")
    more = [*train[:-1], f"services.endpoint.url={service.url}", "services.endpoint.tries=2", "--steps", 2]
    assert command(*more)[0] == 0
    capfd.readouterr()
    assert command(*more, "--steps", 3, "services.endpoint.model=other")[0] == 1
    out, err = capfd.readouterr()
    assert "services.endpoint.model" in err
    assert CANARY not in out + err
    assert [path for path in home.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()] == []


def test_an_experiment_records_its_services_without_keys(home: Path) -> None:
    private = f"http://{CANARY}:{CANARY}@127.0.0.1:9/v1?key={CANARY}"
    stage = {"services": {"endpoint": {"url": private, "key": CANARY, "tries": 1}}}
    measured = {"scorer": ["endpoint"], "part": "measure", "limit": 2, **stage}
    given = {"model": "tiny", "measure": measured, "rlaf": {"part": "train", "steps": 1, **stage}}
    (home / "secret.yaml").write_text(yaml.safe_dump(given))
    assert command("run", "secret.yaml", "--out", "experiment")[0] != 0
    settings = (home / "experiment" / "run.json").read_text()
    assert settings.count('"http://127.0.0.1:9/v1"') == 2
    assert CANARY not in settings


def stored_again(home: Path, status: int, scorer: str) -> Path:
    out = home / f"run-{status}-{scorer}"
    assert command("import", "answers.csv", "--label", "PT", "--out", out)[0] == 0
    return out
