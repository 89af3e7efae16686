"""Requests become batches; the queue is bounded; who hangs up costs nothing; nobody's answer is lost at the end."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving_server import Answered, Letters, ThreadServer, analyze, wait_for

from rewardlm.errors import ServiceError
from rewardlm.judges.evaluate import SPEED_WORDS
from rewardlm.scoring.load import load_scorer
from rewardlm.serving import served
from rewardlm.serving import server as server_module
from rewardlm.serving.batching import Batcher, Unusable
from rewardlm.types import Verdict

ANALYZE = "/v1alpha1/comments:analyze"


def in_background(call: Callable[[], Answered]) -> Any:
    """A future of the answer."""
    pool = ThreadPoolExecutor(1)
    found = pool.submit(call)
    pool.shutdown(wait=False)
    return found


def hold(server: ThreadServer, letters: Letters, *, then: int = 0) -> Any:
    """A request that is being scored until the judge's gate opens."""
    letters.gate.clear()
    letters.begun.clear()
    held = in_background(lambda: server.ask("/score", {"texts": ["held"]}))
    assert letters.begun.wait(60)
    return held


def test_what_comes_while_the_judge_is_busy_is_scored_together(server: ThreadServer, letters: Letters) -> None:
    held = hold(server, letters)
    texts = [f"{'x' * n} text" for n in range(30)]
    waiting = [in_background(lambda text=text: server.ask("/score", {"texts": [text]})) for text in texts]
    wait_for(lambda: server.server.batcher.waiting == 30, "30 texts that wait")
    letters.gate.set()
    assert held.result(60).status == 200
    values = [one.result(60).body["values"][0] for one in waiting]
    # Everybody got the score of their own text.
    assert values == pytest.approx([text.count("x") / len(text) for text in texts])
    assert len(letters.batches) == 2
    assert sorted(letters.batches[1]) == sorted(texts)


class Slow(Letters):
    """Takes a while for a batch, however large."""

    def score(self, texts: Any) -> Any:
        time.sleep(0.2)
        return super().score(texts)


def test_clients_that_ask_again_at_once_stay_in_one_batch(serve: Any) -> None:
    """Without a pause they would be two halves that take turns: 8 clients that ask 6 times would make 12 batches."""
    judge = Slow()
    server = serve(judge)

    def client(number: int) -> None:
        for n in range(6):
            assert server.ask("/score", {"texts": [f"{number} {n}"]}).status == 200

    clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert sum(map(len, judge.batches)) == 48
    assert len(judge.batches) <= 9
    assert max(map(len, judge.batches)) == 8


def test_who_asks_once_is_not_waited_for_again_and_again(serve: Any) -> None:
    server = serve(Slow())
    worker = server.server.batcher._lanes[0].workers[0]
    assert server.ask("/score", {"texts": ["several", "texts"]}).status == 200
    wait_for(lambda: worker.pause is None, "the end of the pause")
    before = worker.skip
    assert before > 0
    assert server.ask("/score", {"texts": ["several", "texts"]}).status == 200
    assert worker.pause is None
    assert worker.skip == before - 1


class Twins(Letters):
    """May be used by several threads at once; ``at_work`` is how many are, and ``most`` how many have been."""

    def __init__(self, name: str = "twins") -> None:
        super().__init__(name)
        self.guard = threading.Lock()
        self.at_work = self.most = 0
        self.pause = 0.0

    def twin(self) -> Twins:
        return self

    def score(self, texts: Any) -> Any:
        with self.guard:
            self.at_work += 1
            self.most = max(self.most, self.at_work)
        time.sleep(self.pause)
        try:
            return super().score(texts)
        finally:
            with self.guard:
                self.at_work -= 1


def occupy_three_threads(server: ThreadServer, judge: Twins) -> None:
    """Has three threads run ``judge`` at the same time, each with a text."""
    judge.gate.clear()
    held = in_background(lambda: server.ask("/score", {"texts": ["a", "b", "c"], "judge": judge.name}))
    wait_for(lambda: judge.at_work == 3, "three threads at work")
    judge.gate.set()
    assert held.result(60).status == 200


def test_threads_share_what_waits_in_equal_parts(serve: Any) -> None:
    judge = Twins()
    server = serve(judge, workers=4)
    judge.gate.clear()
    texts = [f"{'x' * n} text" for n in range(30)]
    answer = in_background(lambda: server.ask("/score", {"texts": texts}))
    wait_for(lambda: len(judge.batches) == 4, "four threads at work")
    judge.gate.set()
    assert answer.result(60).body["values"] == pytest.approx([text.count("x") / len(text) for text in texts])
    # Each takes a fourth of what is here; the last one what is left.
    assert sorted(map(len, judge.batches)) == [6, 8, 8, 8]
    assert sorted(text for batch in judge.batches for text in batch) == sorted(texts)


def test_who_is_answered_while_others_come_is_not_waited_for_either(serve: Any) -> None:
    """Texts of others, which come anyway, must not look like those of the clients that were just answered."""
    server = serve(Slow())
    worker = server.server.batcher._lanes[0].workers[0]
    assert server.ask("/score", {"texts": [f"text {n}" for n in range(8)]}).status == 200
    others = in_background(lambda: server.ask("/score", {"texts": [f"other {n}" for n in range(5)]}))
    wait_for(lambda: worker.pause is None, "the end of the pause")
    assert worker.skip > 0
    assert others.result(60).status == 200


def test_a_judge_that_has_one_thread_finds_it_free_while_another_judge_has_others(serve: Any) -> None:
    one, more = Letters("one"), Twins("more")
    server = serve(more, one, workers=2)
    held = hold(server, more)
    assert server.ask("/score", {"texts": ["x"], "judge": "one"}).body["values"] == [1]
    more.gate.set()
    assert held.result(60).status == 200


def test_a_judge_that_allows_one_thread_gets_one_while_others_have_more(serve: Any) -> None:
    one, more = Letters("one"), Twins("more")
    threads: set[tuple[str, int]] = set()
    for judge in (one, more):
        judge.score = lambda texts, judge=judge, score=judge.score: (  # type: ignore[method-assign]
            threads.add((judge.name, threading.get_ident())) or score(texts)
        )
    server = serve(one, more, workers=3)
    occupy_three_threads(server, more)

    def client(number: int) -> None:
        for n in range(20):
            for name in ("one", "more"):
                text = f"{'x' * number} of {n}"
                found = server.ask("/score", {"texts": [text], "judge": name}).body
                assert found["values"] == [pytest.approx(number / len(text))]

    with ThreadPoolExecutor(8) as pool:
        assert all(future.exception() is None for future in [pool.submit(client, n) for n in range(8)])
    names = [name for name, _ in threads]
    assert (names.count("one"), names.count("more")) == (1, 3)


def test_while_one_thread_of_a_judge_is_left_it_is_not_stuck(serve: Any) -> None:
    judge = Twins()
    server = serve(judge, workers=2, timeout_seconds=0.2)
    held = hold(server, judge)
    assert held.result(60).status == 504
    time.sleep(0.3)
    assert server.ask("/healthz").body == {"status": "ok"}
    other = in_background(lambda: server.ask("/score", {"texts": ["held too"]}))
    assert other.result(60).status == 504
    wait_for(lambda: server.ask("/healthz").status == 503, "a server that says that it is stuck")
    judge.gate.set()
    wait_for(lambda: server.ask("/healthz").body == {"status": "ok"}, "a server that goes on")


def test_clients_of_several_threads_stay_in_few_batches(serve: Any) -> None:
    """8 clients that ask 6 times: two threads with 4 of them each would make 12 batches, 8 threads of one 48."""
    judge = Twins()
    judge.pause = 0.2
    server = serve(judge, workers=2)

    def client(number: int) -> None:
        for n in range(6):
            assert server.ask("/score", {"texts": [f"{number} {n}"]}).status == 200

    with ThreadPoolExecutor(8) as pool:
        assert all(future.exception() is None for future in [pool.submit(client, n) for n in range(8)])
    assert sum(map(len, judge.batches)) == 48
    assert len(judge.batches) <= 30
    assert judge.most == 2


def test_a_real_judge_on_two_threads_gives_everybody_the_score_of_their_text(serve: Any) -> None:
    judge = load_scorer("starter")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(SPEED_WORDS.split(), k=draw.randint(1, 40))) for _ in range(64)]
    alone = [judge.score([text])[0].values["toxicity"] for text in texts]
    server = serve(judge, workers=2)

    def client(first: int) -> list[float]:
        found = [server.ask("/score", {"texts": [text]}).body for text in texts[first::8]]
        return [body["values"][0] for body in found]

    with ThreadPoolExecutor(8) as pool:
        for first, values in enumerate(pool.map(client, range(8))):
            assert values == pytest.approx(alone[first::8], abs=1e-5)


def test_torch_gives_each_thread_its_share_of_the_cores(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()

    def of_a_new_thread() -> int:
        with ThreadPoolExecutor(1) as pool:
            return int(pool.submit(torch.get_num_threads).result())

    monkeypatch.setattr(server_module, "cores", lambda: 8)
    seen: dict[str, set[int]] = {"one": set(), "more": set()}
    one, more = Letters("one"), Twins("more")
    for judge in (one, more):
        judge.score = lambda texts, judge=judge, score=judge.score: (  # type: ignore[method-assign]
            seen[judge.name].add(torch.get_num_threads()) or score(texts)
        )
    server = serve(one, more, workers=3)
    occupy_three_threads(server, more)
    assert server.ask("/score", {"texts": ["a"], "judge": "one"}).status == 200
    # Eight cores are three, three and two.
    assert seen == {"one": {8}, "more": {3, 2}}
    monkeypatch.undo()
    server.server._cores = before
    server.close()
    # Threads of this process that come later have what they had before.
    assert torch.get_num_threads() == before
    assert of_a_new_thread() == before


def test_equal_texts_of_several_requests_are_scored_once(server: ThreadServer, letters: Letters) -> None:
    hold(server, letters)
    same = [in_background(lambda: server.ask(ANALYZE, analyze("same x"))) for _ in range(8)]
    wait_for(lambda: server.server.batcher.waiting == 8, "8 texts that wait")
    letters.gate.set()
    assert {one.result(60).status for one in same} == {200}
    assert letters.batches[1:] == [["same x"]]


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [({"batch_texts": 4}, [4, 4, 2]), ({"batch_characters": 30}, [3, 3, 3, 1]), ({"batch_characters": 1}, [1] * 10)],
)
def test_a_batch_has_limits_of_texts_and_characters(
    serve: Any, letters: Letters, limits: dict[str, int], sizes: list[int]
) -> None:
    server = serve(letters, **limits)
    found = server.ask("/score", {"texts": [f"{n}123456789" for n in range(10)]})
    assert found.status == 200
    assert [len(batch) for batch in letters.batches] == sizes


def test_two_judges_take_turns_by_who_has_waited_longest(serve: Any) -> None:
    one, other = Letters("one"), Letters("other")
    server = serve(one, other, batch_texts=1)
    held = hold(server, one)
    later = []
    for n, judge in enumerate(["other", "one", "other"]):
        later.append(
            in_background(lambda judge=judge, n=n: server.ask("/score", {"texts": [f"text {n}"], "judge": judge}))
        )
        wait_for(lambda n=n: server.server.batcher.waiting == n + 1, "a text that waits")
    one.gate.set()
    assert [future.result(60).body["judge"] for future in (held, *later)] == ["one", "other", "one", "other"]
    assert other.batches == [["text 0"], ["text 2"]]


def test_a_full_queue_refuses_with_429_and_says_when(serve: Any, letters: Letters) -> None:
    server = serve(letters, queue=10, texts_per_request=10)
    held = hold(server, letters)
    waiting = in_background(lambda: server.ask("/score", {"texts": [f"text {n}" for n in range(10)]}))
    wait_for(lambda: server.server.batcher.waiting == 10, "a full queue")
    for path, body, word in [
        (ANALYZE, analyze("one more"), "RESOURCE_EXHAUSTED"),
        ("/v1/moderations", {"input": "one more"}, "rate_limit_error"),
        ("/classify", {"inputs": "one more"}, "Overloaded"),
        ("/score", {"texts": ["one more"]}, "Overloaded"),
    ]:
        refused = server.ask(path, body)
        assert refused.status == 429
        assert word in refused.data.decode()
        assert int(refused.headers["retry-after"]) >= 1
    letters.gate.set()
    assert held.result(60).status == waiting.result(60).status == 200
    assert server.ask("/score", {"texts": ["one more"]}).status == 200


def test_who_waits_too_long_gets_504_and_their_texts_are_not_scored(serve: Any, letters: Letters) -> None:
    server = serve(letters, timeout_seconds=0.3)
    held = hold(server, letters)
    late = server.ask(ANALYZE, analyze("too late"))
    assert (late.status, late.body["error"]["status"]) == (504, "DEADLINE_EXCEEDED")
    assert held.result(60).status == 504
    assert server.server.batcher.waiting == 0
    letters.gate.set()
    wait_for(lambda: server.server.idle, "the end of the work")
    assert letters.batches == [["held"]]
    assert server.ask("/score", {"texts": ["x"]}).body["values"] == [1]


def test_who_hangs_up_costs_nothing_more(server: ThreadServer, letters: Letters) -> None:
    held = hold(server, letters)
    for _ in range(5):
        line = http.client.HTTPConnection("127.0.0.1", server.port)
        line.request(
            "POST", "/score", json.dumps({"texts": ["nobody waits"] * 100}), {"Content-Type": "application/json"}
        )
        wait_for(lambda: server.server.batcher.waiting == 100, "its texts in the queue")
        line.close()
        wait_for(lambda: server.server.batcher.waiting == 0, "its texts out of the queue")
    letters.gate.set()
    assert held.result(60).status == 200
    assert server.ask("/score", {"texts": ["x"]}).status == 200
    assert letters.batches == [["held"], ["x"]]
    assert 'status="499"' in server.ask("/metrics").data.decode()


def test_who_hangs_up_in_the_middle_of_a_body_leaves_nothing(server: ThreadServer, letters: Letters) -> None:
    server.raw(
        b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    )
    assert server.ask("/score", {"texts": ["x"]}).status == 200
    assert letters.batches == [["x"]]


class Broken(Letters):
    """Can't be used at all, and says so with a text in it."""

    def score(self, texts: Any) -> Any:
        raise ServiceError(f"no answer for {texts[0]}")


def test_a_judge_that_fails_as_a_whole_is_503_and_the_others_go_on(
    serve: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve(Letters("good"), Broken("broken"))
    for path, body in [
        (ANALYZE, analyze("secret x", judge="broken")),
        ("/score", {"texts": ["secret x"], "judge": "broken"}),
    ]:
        found = server.ask(path, body)
        assert found.status == 503
        assert "broken can't be used at the moment (ServiceError)" in found.data.decode()
    assert server.ask("/score", {"texts": ["x"]}).body["values"] == [1]
    out, err = capfd.readouterr()
    assert "broken can't be used (ServiceError)" in err
    assert "secret" not in out + err


class Quits(Letters):
    """A user's function that ends Python where a text has a q."""

    def score(self, texts: Any) -> Any:
        if any("q" in text for text in texts):
            raise SystemExit(3)
        return super().score(texts)


def test_a_judge_that_would_end_python_ends_nothing(serve: Any) -> None:
    server = serve(Quits("quits"), Letters("other"))
    for _ in range(3):
        found = server.ask("/score", {"texts": ["q"], "judge": "quits"})
        assert (found.status, "SystemExit" in found.data.decode()) == (503, True)
    assert server.ask("/score", {"texts": ["x"], "judge": "quits"}).body["values"] == [1]
    assert server.ask("/score", {"texts": ["x"], "judge": "other"}).body["values"] == [1]


class Closes(Letters):
    """A judge behind HTTP, whose first refusal closes it for good. It keeps what it was told before."""

    online = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.unfinished: dict[str, Verdict] = {}
        self.closed = False

    def score(self, texts: Any) -> Any:
        if self.closed:
            raise ServiceError("given up before")
        for text in texts:
            if "forbidden" in text:
                self.closed = True
                raise ServiceError("403")
            self.unfinished[text] = Verdict(self.values(text))
        found, self.unfinished = self.unfinished, {}
        return [found[text] for text in texts]


def test_a_service_that_refused_once_is_asked_again(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One client's text must not switch a judge off for all the others."""
    again: list[Closes] = []

    def load(name: str, **_: Any) -> Closes:
        again.append(Closes(name))
        return again[-1]

    monkeypatch.setattr(served, "load_scorer", load)
    first = Closes("service")
    server = serve(first)
    first.gate.set()
    assert server.ask("/score", {"texts": ["x"]}).body["values"] == [1]
    # In one batch, what came before the refusal is answered, and what came after is not.
    assert server.ask("/score", {"texts": ["xa", "forbidden"]}).status == 503
    assert server.ask("/score", {"texts": ["xa"]}).body["values"] == [0.5]
    assert len(again) == 1
    # Where it refuses again and again, it is left alone for a while.
    for _ in range(4):
        assert server.ask("/score", {"texts": ["forbidden"]}).status == 503
    assert 2 <= len(again) <= 3


def test_what_a_service_said_before_it_refused_reaches_who_asked() -> None:
    closes = Closes("service")
    batcher = Batcher({"service": closes}, room=10, most_texts=10, most_characters=100)
    found = batcher._scored(batcher._lanes[0].workers[0], "service", ["xa", "forbidden", "later"])
    assert found[0] == Verdict({"toxicity": 0.5, "insult": 0.25, "hate": 0.5 / 3})
    assert [type(one) for one in found[1:]] == [Unusable, Unusable]


def test_a_judge_that_waits_for_somebody_holds_up_no_other(serve: Any) -> None:
    slow, quick = Closes("service"), Letters("quick")
    slow.score = lambda texts: Letters.score(slow, texts)  # type: ignore[method-assign]
    server = serve(slow, quick, timeout_seconds=5)
    held = hold(server, slow)
    assert server.ask("/score", {"texts": ["x"], "judge": "quick"}).body["values"] == [1]
    assert server.ask("/healthz").body == {"status": "ok"}
    slow.gate.set()
    assert held.result(60).status == 200


def test_a_judge_that_hangs_shows_in_healthz(serve: Any, letters: Letters) -> None:
    server = serve(letters, timeout_seconds=0.2)
    held = hold(server, letters)
    assert held.result(60).status == 504
    wait_for(lambda: server.ask("/healthz").status == 503, "a server that says that it is stuck")
    assert server.ask("/healthz").body == {"status": "stuck", "stuck": ["letters"]}
    letters.gate.set()
    wait_for(lambda: server.ask("/healthz").body == {"status": "ok"}, "a server that goes on")


def test_on_the_way_out_what_waits_is_answered_and_what_comes_is_refused(serve: Any, letters: Letters) -> None:
    server = serve(letters)
    held = hold(server, letters)
    waiting = [in_background(lambda n=n: server.ask(ANALYZE, analyze(f"waits {n} x"))) for n in range(20)]
    wait_for(lambda: server.server.batcher.waiting == 20, "20 texts that wait")
    server.process.tell_to_end()
    wait_for(lambda: server.server.batcher.stopping, "the server to stop")
    for path, body, word in [
        (ANALYZE, analyze("x"), "UNAVAILABLE"), ("/v1/moderations", {"input": "x"}, "server_error"),
        ("/score", {"texts": ["x"]}, "Unhealthy"), ("/healthz", None, "stopping"),
    ]:  # fmt: skip
        refused = server.ask(path, body)
        assert refused.status == 503
        assert word in refused.data.decode()
    letters.gate.set()
    assert held.result(60).status == 200
    assert [one.result(60).status for one in waiting] == [200] * 20
    wait_for(lambda: not server._thread.is_alive(), "the end")


def test_the_end_does_not_wait_for_a_judge_that_hangs(serve: Any, letters: Letters) -> None:
    server = serve(letters, stop_seconds=1)
    held = hold(server, letters)
    begun = time.monotonic()
    server.process.tell_to_end()
    wait_for(lambda: not server._thread.is_alive(), "the end")
    assert time.monotonic() - begun < 20
    assert held.result(60).status == 503
    letters.gate.set()


def test_whoever_asks_twice_to_end_it_is_not_made_to_wait(serve: Any, letters: Letters) -> None:
    server = serve(letters, stop_seconds=1000)
    held = hold(server, letters)
    waiting = in_background(lambda: server.ask(ANALYZE, analyze("x")))
    wait_for(lambda: server.server.batcher.waiting == 1, "a text that waits")
    server.process.tell_to_end()
    server.process.tell_to_end()
    assert held.result(60).status == waiting.result(60).status == 503
    wait_for(lambda: not server._thread.is_alive(), "the end")


def test_many_at_once_each_get_their_own(server: ThreadServer) -> None:
    wrong = []

    def ask(worker: int) -> None:
        for n in range(25):
            text = f"{'x' * ((worker * 7 + n) % 11)} of {worker} and {n}"
            found = server.ask(ANALYZE, analyze(text, clientToken=f"{worker}-{n}")).body
            value = found["attributeScores"]["TOXICITY"]["summaryScore"]["value"]
            if found["clientToken"] != f"{worker}-{n}" or abs(value - text.count("x") / len(text)) > 1e-9:
                wrong.append(found)

    workers = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert wrong == []
