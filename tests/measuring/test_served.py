"""``--engine openai``: against a server that misbehaves on request, and a real one with the packaged SmolLM2."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from measured_runs import compared

from rewardlm.config import MeasureSettings, build
from rewardlm.config.keys import NAMED
from rewardlm.errors import ConfigError, ScorerError, ServiceError
from rewardlm.measuring.meter import measure
from rewardlm.models.generate import stream_seed
from rewardlm.runs import Run
from rewardlm.steering.folder import SteerFolder
from rewardlm.steering.record import FittedOn, SteerJudge, SteerRecord
from transformers_serve import OFFLINE, serving

CANARY = "sk-canary-7f3a"


class Chat:
    """An OpenAI-compatible server; ``reply(body, n)`` decides on the n-th request about the same question."""

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any], int], tuple[int, Any, dict[str, str]]] = lambda body, _: (
            200,
            answer(body),
            {},
        )
        self.models: tuple[int, Any] = (200, {"object": "list", "data": [{"id": "served-1", "object": "model"}]})
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.under_way = self.most_under_way = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(*outer.models, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.asked.append(body)
                    outer.keys.add(self.headers.get("Authorization"))
                    n = sum(earlier["seed"] == body["seed"] for earlier in outer.asked)
                    outer.under_way += 1
                    outer.most_under_way = max(outer.most_under_way, outer.under_way)
                found: tuple[int, Any, dict[str, str]] = (404, {"error": {"message": "no such path"}}, {})
                try:
                    if self.path.partition("?")[0] == "/v1/chat/completions":
                        found = outer.reply(body, n)
                finally:
                    # Before it is sent: who has the answer may ask again at once.
                    with lock:
                        outer.under_way -= 1
                self._send(*found)

            def _send(self, status: int, body: Any, headers: dict[str, str]) -> None:
                if body is DROP:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def wait(self) -> None:
        """Until nothing is under way: a run that ended doesn't wait for what it asked."""
        quiet = time.monotonic()
        while time.monotonic() - quiet < 0.2:
            if self.under_way:
                quiet = time.monotonic()
            time.sleep(0.01)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


DROP = object()


def answer(body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What a server would say: an echo with the seed in it, so that every answer is another."""
    text = f"You said {body['messages'][-1]['content'][:20]!r} and I drew {body['seed']}."
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **changes}
    return {"model": "served-1-2026", "choices": [choice], "usage": {"completion_tokens": 7}}


@pytest.fixture
def chat() -> Iterator[Chat]:
    server = Chat()
    yield server
    server.close()


def length(texts: list[str]) -> list[float]:
    return [len(text) % 10 / 10 for text in texts]


def settings_of(server: Chat, /, **changes: Any) -> MeasureSettings:
    tree: dict[str, Any] = {
        "model": "served-1",
        "engine": "openai",
        "url": server.url,
        "scorer": [f"{__name__}:length"],
        "limit": 10,
        "samples": 3,
        "max_new_tokens": 9,
        "similarity": False,
        "counter_narrative": None,
        "server": {"backoff_seconds": 0.001, "concurrency": 4, **changes.pop("server", {})},
        **changes,
    }
    return build(MeasureSettings, flags=tree)


@pytest.mark.slow
def test_every_question_is_asked_once_with_its_own_seed_and_turns(chat: Chat, tmp_path: Path) -> None:
    chat.reply = lambda body, _: (time.sleep(0.02), (200, answer(body), {}))[1]
    settings = settings_of(chat, **{"chat": {"system": "Be kind."}, "server": {"body": {"top_k": 5}}})
    run = measure(settings, tmp_path / "run")
    assert run.finished
    assert len(chat.asked) == len({body["seed"] for body in chat.asked}) == 30
    texts = {prompt.text for prompt in run.prompts()}
    for body in chat.asked:
        assert [turn["role"] for turn in body["messages"]] == ["system", "user"]
        assert body["messages"][0]["content"] == "Be kind."
        assert body["messages"][1]["content"] in texts
        assert {name: body[name] for name in ("model", "max_tokens", "temperature", "top_p", "top_k")} == {
            "model": "served-1", "max_tokens": 9, "temperature": 1.0, "top_p": 1.0, "top_k": 5,
        }  # fmt: skip
    by_seed = {body["seed"]: answer(body)["choices"][0]["message"]["content"] for body in chat.asked}
    for generation in run.generations():
        assert generation.text == by_seed[generation.seed % 2**31]
        assert (generation.n_tokens, generation.finish, generation.model) == (7, "stop", "served-1")
    assert Counter(score.generation_id for score in run.scores()) == Counter(g.id for g in run.generations())
    assert 2 <= chat.most_under_way <= 4
    assert run.meta["served"] == ["served-1"]
    assert run.meta["served_as"] == ["served-1-2026"]
    assert run.meta["model_source"] == chat.url


def test_prompts_with_a_history_are_sent_turn_by_turn(chat: Chat, tmp_path: Path) -> None:
    rows = {"messages": [{"role": role, "content": text} for role, text in
            (("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"))]}  # fmt: skip
    (tmp_path / "talk.jsonl").write_text(json.dumps(rows) + "\n")
    measure(settings_of(chat, prompts=str(tmp_path / "talk.jsonl"), samples=1, limit=None), tmp_path / "run")
    assert chat.asked[0]["messages"] == rows["messages"][:3]


def test_what_passes_is_tried_again_and_costs_nothing(chat: Chat, tmp_path: Path) -> None:
    """429, 500, a reset and an empty body first; the fifth try is good."""
    ways: list[tuple[int, Any, dict[str, str]]] = [
        (429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}),
        (500, b"<html>oops", {}),
        (200, DROP, {}),
        (503, b"", {}),
    ]
    chat.reply = lambda body, n: ways[n - 1] if n <= 4 else (200, answer(body), {})
    run = measure(settings_of(chat, limit=3, samples=2), tmp_path / "run")
    assert run.finished
    assert len(run.generations()) == 6
    assert len(chat.asked) == 6 * 5
    assert run.meta["unanswered"] == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"not json"),
        (200, b""),
        (200, {"choices": []}),
        (200, {"choices": [{"message": {"content": float("nan")}}]}),
        (200, {"choices": [{"message": {"content": 3}}]}),
        (200, {"choices": [{"message": {}}]}),
        (200, b'{"choices": [{"message": {"content": "\\ud800"}}]}'),
        (200, []),
        (500, {"error": "always"}),
        (429, {"error": "always"}),
    ],
    ids=["garbage", "nothing", "no choice", "NaN", "a number", "no text", "half a character", "a list", "500", "429"],
)
def test_a_broken_server_ends_the_run_which_goes_on_once_it_is_mended(
    chat: Chat, tmp_path: Path, status: int, body: Any
) -> None:
    good = settings_of(chat)
    measure(good, tmp_path / "whole")
    bad = {body["seed"] for body in chat.asked if body["seed"] % 3 == 0}
    assert len(bad) > 3, "or the test tests nothing"
    chat.asked.clear()
    chat.reply = lambda asked, _: (status, body, {}) if asked["seed"] in bad else (200, answer(asked), {})
    with pytest.raises(ScorerError, match=r"questions got no answer .*: the first: the server: "):
        measure(good, tmp_path / "run")
    chat.wait()
    broken = Run.open(tmp_path / "run")
    assert not broken.finished
    assert {score.generation_id for score in broken.scores()} == {answer.id for answer in broken.generations()}
    assert all(score.value is not None for score in broken.scores())
    there = {generation.id for generation in broken.generations()}
    chat.asked.clear()
    chat.reply = lambda asked, _: (200, answer(asked), {})
    mended = measure(good, tmp_path / "run")
    assert mended.finished
    assert len(chat.asked) == 30 - len(there), "what was answered is not asked again"
    key = [(g.id, g.text) for g in sorted(mended.generations(), key=lambda g: g.id)]
    assert key == [(g.id, g.text) for g in sorted(Run.open(tmp_path / "whole").generations(), key=lambda g: g.id)]
    assert len(mended.scores()) == 30


@pytest.mark.slow
def test_what_is_refused_for_good_is_asked_once_and_said(chat: Chat, tmp_path: Path) -> None:
    settings = settings_of(chat, max_failed_share=0.2)
    measure(settings, tmp_path / "whole")
    refused = sorted(body["seed"] for body in chat.asked)[:2]
    chat.asked.clear()
    chat.reply = lambda body, _: (
        (400, {"error": {"message": "context is too long"}}, {}) if body["seed"] in refused else (200, answer(body), {})
    )
    run = measure(settings, tmp_path / "run")
    assert run.finished
    assert len(chat.asked) == 30
    assert run.meta["unanswered"] == {"HTTP 400: context is too long": 2}
    assert len(run.generations()) == 28
    found = compared([tmp_path / "run"], n_resamples=100)
    messages = [warning["message"] for warning in found["warnings"] if warning["code"] == "unscored"]
    assert any("no answer to 2 of 30 questions" in message and "context is too long" in message for message in messages)


@pytest.mark.slow
def test_what_is_refused_too_often_makes_no_finished_run_however_often_it_is_started(
    chat: Chat, tmp_path: Path
) -> None:
    chat.reply = lambda body, _: (
        (400, {"error": {"message": "max_tokens is not known"}}, {}) if body["seed"] % 2 else (200, answer(body), {})
    )
    for _ in range(12):
        with pytest.raises(ScorerError, match=r"questions got no answer .* max_tokens is not known"):
            measure(settings_of(chat), tmp_path / "run")
    chat.reply = lambda body, _: (200, answer(body), {})
    run = measure(settings_of(chat), tmp_path / "run")
    assert run.finished
    assert run.meta["unanswered"] == {}
    assert len({generation.id for generation in run.generations()}) == len(run.generations()) == 30
    assert run.meta["rewards"] is None, "nobody knows what a server's model was trained on"


def test_a_filtered_answer_is_an_empty_one(chat: Chat, tmp_path: Path) -> None:
    """As Azure does: the prompt is refused with this code, or the answer's text is taken away."""
    taken = {"message": {"role": "assistant", "content": None}, "finish_reason": "content_filter"}
    ways = [(400, {"error": {"code": "content_filter", "message": "no"}}, {}), (200, {"choices": [taken]}, {})]
    chat.reply = lambda body, _: ways[body["seed"] % 2]
    run = measure(settings_of(chat), tmp_path / "run")
    assert run.finished
    assert {generation.text for generation in run.generations()} == {""}
    assert {score.reason for score in run.scores()} == {"empty response"}


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, "the key was refused"), (403, "the key was refused"), (404, "as far as /v1"), (410, "/v1")],
)
def test_a_service_that_cannot_be_used_is_told_after_one_call(
    chat: Chat, tmp_path: Path, status: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    NAMED.note({"url": chat.url})
    chat.reply = lambda *_: (status, {"error": {"message": f"bad key {CANARY}"}}, {})
    with pytest.raises(ServiceError, match=expected) as caught:
        measure(settings_of(chat, server={"concurrency": 1}), tmp_path / "run")
    assert CANARY not in str(caught.value)
    assert len(chat.asked) == 1


def test_a_server_that_is_down_is_told_at_once(tmp_path: Path) -> None:
    chat = Chat()
    chat.close()
    with pytest.raises(ServiceError, match="can't be reached"):
        measure(settings_of(chat), tmp_path / "run")


def test_a_server_without_a_list_of_models_will_do(chat: Chat, tmp_path: Path) -> None:
    chat.models = (404, {"error": "no list"})
    assert measure(settings_of(chat, limit=1), tmp_path / "run").meta["served"] is None


def test_keys_are_sent_and_never_written(chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", CANARY)
    address = chat.url.replace("http://", f"http://user:{CANARY}-pass@") + f"?key={CANARY}-query"
    NAMED.note({"url": address, "server.key_variable": "MY_KEY"})
    measure(settings_of(chat, url=address, limit=2, server={"key_variable": "MY_KEY"}), tmp_path / "run")
    assert chat.keys == {f"Bearer {CANARY}"}
    for file in (tmp_path / "run").rglob("*"):
        assert CANARY.encode() not in file.read_bytes(), file


def test_a_run_may_go_on_at_another_address_but_not_with_another_model(chat: Chat, tmp_path: Path) -> None:
    measure(settings_of(chat, limit=2), tmp_path / "run")
    Run.open(tmp_path / "run").update(status="running")
    other = Chat()
    assert measure(settings_of(other, limit=2), tmp_path / "run").finished
    other.close()
    assert not other.asked
    with pytest.raises(Exception, match="model was 'served-1', now 'served-2'"):
        measure(settings_of(chat, limit=2, model="served-2"), tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"engine": "openai"}, "--url"),
        ({"url": "http://127.0.0.1:1/v1"}, "add --engine openai"),
        ({"engine": "openai", "url": "127.0.0.1:1"}, "begins with http"),
        ({"engine": "openai", "url": "http://h:99999/v1"}, "ort"),
        ({"engine": "openai", "url": "http://h/v1", "adapter": "x"}, "adapter can't be given"),
        ({"engine": "openai", "url": "http://h/v1", "generation.top_k": 3}, r"server\.body"),
    ],
)
def test_settings_that_do_not_fit_an_engine(flags: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build(MeasureSettings, flags={"model": "m", **flags})


def test_a_wrong_address_is_not_repeated() -> None:
    """It may hold a key."""
    with pytest.raises(ConfigError) as caught:
        build(MeasureSettings, flags={"model": "m", "engine": "openai", "url": f"ftp://u:{CANARY}@host"})
    assert CANARY not in str(caught.value)


@pytest.mark.slow
def test_a_real_server_is_measured(tmp_path: Path) -> None:
    """``transformers serve`` with the packaged SmolLM2, asked through the command line, stopped and gone on with."""
    from rewardlm.models.load import _locate

    pytest.importorskip("fastapi")
    folder, _ = _locate("smollm2-135m")
    with serving(Path(folder), tmp_path / "serve.log") as url:
        command = [sys.executable, "-m", "rewardlm", "measure", folder, "--engine", "openai", "--url", url]
        flags = ["--prompts", "starter", "--limit", "6", "--scorer", "lexical", "--label", "served", "--samples", "1"]
        more = ["--max-new-tokens", "8", "--out", str(tmp_path / "run"), "server.concurrency=2"]
        done = subprocess.run([*command, *flags, *more], capture_output=True, text=True, env=OFFLINE, timeout=300)
    assert done.returncode == 0, done.stderr
    run = Run.open(tmp_path / "run")
    answers = run.generations()
    assert run.finished
    assert len(answers) == 6
    assert all(answer.text.strip() and 1 <= answer.n_tokens <= 8 for answer in answers)
    assert len({answer.text for answer in answers}) > 1
    found = compared([tmp_path / "run"], n_resamples=100)
    assert found["models"][0]["scorers"]["lexical"]["all"]["scored"] == 6
    assert found["models"][0]["quality"]["prompt_similarity"] is not None
    assert found["models"][0]["quality"]["perplexity"] is None


def steer_folder(folder: Path, method: str, **settings: Any) -> Path:
    """What ``steer fit`` writes for a method that changes no model."""
    record = SteerRecord(
        method=method,
        strength={"system": 1.0, "best-of-n": 3.0, "rejection": 3.0}.get(method, 1.0),
        model=FittedOn(model="other", model_source="elsewhere", hashes={}),
        settings=settings,
        judges=[SteerJudge(name=f"{__name__}:length", labels=["toxicity"])] if method != "system" else [],
    )
    SteerFolder(record).save(folder)
    return folder


def test_a_server_is_steered_by_a_system_prompt(chat: Chat, tmp_path: Path) -> None:
    told = steer_folder(tmp_path / "told", "system", prompt="Be kind.")
    run = measure(settings_of(chat, steer=told, samples=1, limit=2, chat={"system": "Be brief."}), tmp_path / "run")
    assert [body["messages"][0] for body in chat.asked] == [{"role": "system", "content": "Be kind.\n\nBe brief."}] * 2
    assert {name: run.meta["treatment"][name] for name in ("method", "strength")} == {"method": "system", "strength": 1}
    chat.asked.clear()
    measure(settings_of(chat, steer=told, strength=0, samples=1, limit=2), tmp_path / "zero")
    assert [[turn["role"] for turn in body["messages"]] for body in chat.asked] == [["user"]] * 2


@pytest.mark.parametrize("method", ["best-of-n", "rejection"])
def test_one_of_a_servers_answers_is_given(chat: Chat, tmp_path: Path, method: str) -> None:
    more = {"threshold": 0.35} if method == "rejection" else {}
    folder = steer_folder(tmp_path / method, method, **more)
    plain = measure(settings_of(chat, samples=2, limit=4), tmp_path / "plain")
    chat.asked.clear()
    run = measure(settings_of(chat, steer=folder, samples=2, limit=4), tmp_path / "run")
    assert run.meta["treatment"]["judges"] == run.meta["rewards"] == [f"{__name__}:length"]
    wanted, asked = [], 0
    for first in plain.generations():
        # The first draw is the unsteered answer; each further one has a seed of its own.
        body = {"messages": [{"content": {prompt.id: prompt.text for prompt in plain.prompts()}[first.prompt_id]}]}
        seeds = [first.seed, *(stream_seed("draw", first.seed, number) for number in (1, 2))]
        texts = [answer({**body, "seed": seed % 2**31})["choices"][0]["message"]["content"] for seed in seeds]
        scores = length(texts)
        if method == "rejection":
            passing = next((number for number, score in enumerate(scores) if score < 0.35), 2)
            texts, scores = texts[: passing + 1], scores[: passing + 1]
        asked += len(texts)
        wanted.append((first.id, texts[scores.index(min(scores))], first.seed))
    assert sorted((one.id, one.text, one.seed) for one in run.generations()) == sorted(wanted)
    assert len(chat.asked) == asked
    # One draw is the server's own answer.
    once = measure(settings_of(chat, steer=folder, strength=1, samples=2, limit=4), tmp_path / "once")
    assert {one.id: one.text for one in once.generations()} == {one.id: one.text for one in plain.generations()}


def test_a_question_of_which_a_draw_failed_is_asked_again(chat: Chat, tmp_path: Path) -> None:
    folder = steer_folder(tmp_path / "best", "best-of-n")
    settings = settings_of(chat, steer=folder, samples=1, limit=3, max_failed_share=0.0, server={"tries": 1})
    first = measure(settings_of(chat, samples=1, limit=3), tmp_path / "plain").generations()[0]
    bad = stream_seed("draw", first.seed, 2) % 2**31
    chat.reply = lambda body, _: (500, b"oops", {}) if body["seed"] == bad else (200, answer(body), {})
    with pytest.raises(ScorerError, match="questions got no answer"):
        measure(settings, tmp_path / "run")
    assert first.id not in {one.id for one in Run.open(tmp_path / "run").generations()}
    chat.reply = lambda body, _: (200, answer(body), {})
    whole = measure(settings, tmp_path / "run")
    assert len(whole.generations()) == 3


def test_a_server_can_not_be_steered_inside(chat: Chat, tmp_path: Path) -> None:
    folder = steer_folder(tmp_path / "vector", "activation", how="add", where="answer")
    with pytest.raises(ConfigError, match=r"changes the model itself.*use --engine local"):
        measure(settings_of(chat, steer=folder), tmp_path / "run")
    best = steer_folder(tmp_path / "best", "best-of-n")
    with pytest.raises(ConfigError, match="how many answers are drawn"):
        measure(settings_of(chat, steer=best, strength=1.5), tmp_path / "run")
    assert not chat.asked
