"""The client against a real server: what is tried again, for how long it waits, what ends a run, where keys go."""

from __future__ import annotations

import base64
import datetime
import email.utils
import gzip
import logging
import threading
import time
from typing import Any

import pytest

from fake_service import FakeService, Reply
from rewardlm.config import ServiceSettings
from rewardlm.config.keys import NAMED
from rewardlm.errors import ServiceError
from rewardlm.services import Malformed, Refused, Service, Unanswered, reachable

CANARY = "sk-canary-0a1b2c3d"


def client(service: FakeService, **settings: Any) -> Service:
    given = {"url": service.url, "backoff_seconds": 0.01, "timeout_seconds": 5, "tries": 5, **settings}
    return Service(ServiceSettings.model_validate(given), what="the fake", section="server", gone="use another")


def test_an_answer_is_its_json_and_the_request_is_as_it_was_given(service: FakeService) -> None:
    service.answer = lambda _: Reply({"answer": [1, None, "ä"]})
    assert client(service, key=CANARY).post("a:b", {"text": "ö\ud800"}) == {"answer": [1, None, "ä"]}
    asked = service.asked[0]
    assert (asked.method, asked.path, asked.body) == ("POST", "/v1/a:b", {"text": "ö\ud800"})
    assert asked.headers["Authorization"] == f"Bearer {CANARY}"
    assert client(service).get("models") == {"answer": [1, None, "ä"]}
    assert "Authorization" not in service.asked[1].headers


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_five_times_in_all(service: FakeService, status: int) -> None:
    service.answer = lambda _: Reply({"error": {"message": "busy"}}, status)
    with pytest.raises(Unanswered, match=rf"HTTP {status}: busy \(tried 5 times\)"):
        client(service).post("x", {})
    assert len(service.asked) == 5


def test_what_has_passed_is_an_answer(service: FakeService) -> None:
    service.one_by_one([Reply("", 500), Reply(reset=True), Reply("slow down", 429), Reply({"ok": 1})])
    assert client(service).post("x", {}) == {"ok": 1}
    assert len(service.asked) == 4


@pytest.mark.parametrize("status", [400, 402, 405, 413, 415, 422])
def test_a_refusal_is_one_call(service: FakeService, status: int) -> None:
    service.answer = lambda _: Reply({"error": {"message": "no\nsuch thing", "code": "c"}}, status)
    with pytest.raises(Refused) as caught:
        client(service).post("x", {})
    assert len(service.asked) == 1
    assert (caught.value.status, caught.value.message) == (status, "no such thing")
    assert caught.value.body["error"]["code"] == "c"


@pytest.mark.parametrize(("status", "key", "said"), [(401, None, "needs a key"), (403, CANARY, "key was refused")])
def test_a_wrong_key_is_one_call_and_ends_the_run(
    service: FakeService, status: int, key: str | None, said: str
) -> None:
    service.answer = lambda asked: Reply({"error": {"message": f"bad: {asked.headers.get('Authorization')}"}}, status)
    with pytest.raises(ServiceError, match=f"{said}.*HTTP {status}.*OPENAI_API_KEY") as caught:
        client(service, key=key).post("x", {})
    assert len(service.asked) == 1
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("status", [404, 410])
def test_what_is_gone_ends_the_run_and_says_what_to_do(service: FakeService, status: int) -> None:
    service.answer = lambda _: Reply("gone fishing", status)
    with pytest.raises(ServiceError, match=rf"the fake: nothing at .*/v1/x \(HTTP {status}: gone fishing\); use an"):
        client(service).post("x", {})
    assert len(service.asked) == 1


def test_a_redirect_is_not_followed(service: FakeService) -> None:
    service.answer = lambda _: Reply("", 307, {"Location": "http://127.0.0.1:9/elsewhere"})
    with pytest.raises(ServiceError, match=r"redirects elsewhere \(HTTP 307"):
        client(service, key=CANARY).post("x", {})
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>Bad gateway</html>", b'{"a": ', b"\xff\xfe\x00", b"[" * 100_000, b'{"a": 1} {"b": 2}'],
    ids=["empty", "html", "truncated json", "no utf-8", "deep", "two"],
)
def test_what_is_no_json_is_kept_as_it_came(service: FakeService, body: bytes) -> None:
    service.answer = lambda _: Reply(body)
    with pytest.raises(Malformed, match="not JSON") as caught:
        client(service).post("x", {})
    assert len(service.asked) == 1
    assert len(str(caught.value)) < 2_100
    assert "\n" not in str(caught.value)
    if body.startswith(b"<html"):
        assert "Bad gateway" in str(caught.value)


def test_a_body_that_breaks_off_is_tried_again(service: FakeService) -> None:
    service.one_by_one([Reply({"a": 1}, promise=10), Reply({"a": 2})])
    assert client(service).post("x", {}) == {"a": 2}
    assert len(service.asked) == 2


def test_a_body_that_is_not_what_its_header_says(service: FakeService) -> None:
    service.one_by_one(
        [Reply(gzip.compress(b'{"a": 1}'), headers={"Content-Encoding": "gzip"}),
         Reply(b"not gzip", headers={"Content-Encoding": "gzip"})]
    )  # fmt: skip
    asking = client(service)
    assert asking.post("x", {}) == {"a": 1}
    with pytest.raises(Malformed, match="can't be decoded"):
        asking.post("x", {})


def test_a_silent_server_times_out_and_is_tried_again(service: FakeService) -> None:
    service.answer = lambda _: Reply({}, after=0.5)
    with pytest.raises(Unanswered, match=r"no answer within 0.1 s \(tried 2 times\)"):
        client(service, timeout_seconds=0.1, tries=2).post("x", {})
    assert len(service.asked) == 2


def test_a_server_that_drips_times_out_as_a_whole(service: FakeService) -> None:
    service.answer = lambda _: Reply("x" * 100, drip=0.05)
    started = time.monotonic()
    with pytest.raises(Unanswered, match=r"no answer within 0.3 s"):
        client(service, timeout_seconds=0.3, tries=1).post("x", {})
    assert time.monotonic() - started < 1


def test_an_answer_without_end_is_not_read_to_its_end(service: FakeService) -> None:
    service.answer = lambda _: Reply(b"x" * (17 * 2**20))
    with pytest.raises(Malformed, match="more than 16,777,216 bytes: xxx") as caught:
        client(service).post("x", {})
    assert len(str(caught.value)) < 2_200


def test_a_connection_that_is_reset_or_refused_is_tried_again(service: FakeService) -> None:
    service.answer = lambda _: Reply(reset=True)
    with pytest.raises(Unanswered, match="tried 3 times"):
        client(service, tries=3).post("x", {})
    assert len(service.asked) == 3
    service.close()
    with pytest.raises(Unanswered, match="tried 2 times"):
        client(service, tries=2).post("x", {})


def test_retry_after_in_seconds_is_obeyed_by_all(service: FakeService) -> None:
    service.one_by_one([Reply("", 429, {"Retry-After": "0.4"}), Reply({})])
    asking = client(service)
    list(asking.each(lambda n: asking.post("x", {"n": n}), range(6)))
    first, second = service.asked[:2]
    assert second.at - first.at >= 0.4
    assert len(service.asked) == 7

    service.asked.clear()
    started = time.monotonic()
    service.answer = lambda asked: (
        Reply("", 503, {"Retry-After": "0.5"}) if len(service.asked) == 1 else Reply({}, after=0.05)
    )
    list(asking.each(lambda n: asking.post("x", {"n": n}), range(40)))
    # Those that were under way when the answer came are past; nobody sets out until it is time.
    early = [asked for asked in service.asked if 0.1 < asked.at - started < 0.45]
    assert not early
    assert len(service.asked) == 41


def test_retry_after_as_a_date_is_obeyed(service: FakeService) -> None:
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2)
    service.one_by_one([Reply("", 503, {"Retry-After": email.utils.format_datetime(then, usegmt=True)}), Reply({})])
    client(service).post("x", {})
    # The date has whole seconds.
    assert 0.9 <= service.asked[1].at - service.asked[0].at < 3


@pytest.mark.parametrize("value", ["", "soon", "-3", "nan", "inf", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_an_unreadable_or_past_retry_after_is_our_own_wait(service: FakeService, value: str) -> None:
    service.one_by_one([Reply("", 429, {"Retry-After": value}), Reply({"ok": 1})])
    assert client(service).post("x", {}) == {"ok": 1}
    assert service.asked[1].at - service.asked[0].at < 0.5


def test_a_service_that_wants_to_be_left_alone_for_long_ends_the_run(service: FakeService) -> None:
    service.answer = lambda _: Reply("come tomorrow", 429, {"Retry-After": "86400"})
    with pytest.raises(ServiceError, match=r"come back in 86400 s .*run the same command again later"):
        client(service).post("x", {})
    assert len(service.asked) == 1


def test_waits_are_drawn_below_a_bound_that_doubles(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    service.answer = lambda _: Reply("", 500)
    asking = client(service, backoff_seconds=0.5, longest_wait_seconds=3, tries=6)
    waits: list[list[float]] = []
    monkeypatch.setattr(asking, "_sleep", lambda seconds: waits[-1].append(seconds) if seconds > 0 else None)
    for _ in range(20):
        waits.append([])
        with pytest.raises(Unanswered):
            asking.post("x", {})
    columns = list(zip(*waits, strict=True))
    for bound, column in zip([0.5, 1, 2, 3, 3], columns, strict=True):
        assert min(column) >= 0
        assert bound / 3 < max(column) <= bound  # 20 draws all in the lowest third: one in 3e9
        assert len(set(column)) > 15


def test_requests_keep_to_the_rate_whoever_sends_them(service: FakeService) -> None:
    asking = client(service, requests_per_second=20, concurrency=8)
    list(asking.each(lambda n: asking.post("x", {"n": n}), range(9)))
    times = sorted(asked.at for asked in service.asked)
    # 50 ms apart, but for how long a thread takes to get going.
    assert times[-1] - times[0] >= 8 * 0.05 - 0.03
    assert all(times[i + 4] - times[i] >= 0.15 for i in range(len(times) - 4))


def test_tries_count_for_the_rate_too(service: FakeService) -> None:
    service.answer = lambda _: Reply("", 500)
    started = time.monotonic()
    with pytest.raises(Unanswered):
        client(service, requests_per_second=20, tries=4, backoff_seconds=0).post("x", {})
    # From before the first try: one that arrives late on a busy machine must not look like a shorter pause.
    assert time.monotonic() - started >= 3 / 20
    assert len(service.asked) == 4


def test_many_are_asked_at_once_but_the_first_alone(service: FakeService) -> None:
    service.answer = lambda asked: Reply(asked.body, after=0.05)
    asking = client(service, concurrency=4)
    started = time.monotonic()
    found = dict(asking.each(lambda n: asking.post("x", {"n": n})["n"], range(17)))
    assert found == {n: n for n in range(17)}
    assert service.most_at_once == 4
    assert time.monotonic() - started < 17 * 0.05
    assert all(asked.at - service.asked[0].at >= 0.05 for asked in service.asked[1:])
    assert dict(asking.each(lambda n: n, [])) == {}


def test_what_ends_a_run_ends_it_at_once(service: FakeService) -> None:
    service.answer = lambda asked: Reply("", 410) if asked.body["n"] == 3 else Reply({}, after=0.02)
    asking = client(service, concurrency=2)
    with pytest.raises(ServiceError, match="410"):
        list(asking.each(lambda n: asking.post("x", {"n": n}), range(500)))
    time.sleep(0.1)
    assert len(service.asked) < 10
    with pytest.raises(ServiceError, match="given up before"):
        list(asking.each(lambda n: n, range(3)))


def test_an_interrupt_waits_for_nobody(service: FakeService) -> None:
    service.answer = lambda asked: Reply({}, after=0 if asked.body["n"] == 0 else 30)
    asking = client(service, timeout_seconds=60)

    def ask(n: int) -> Any:
        if n == 5:
            raise KeyboardInterrupt
        return asking.post("x", {"n": n})

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(asking.each(ask, range(8)))
    assert time.monotonic() - started < 2
    assert all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())


def test_closing_wakes_those_who_wait(service: FakeService) -> None:
    service.answer = lambda _: Reply("", 500)
    asking = client(service, backoff_seconds=60, longest_wait_seconds=100)
    threading.Timer(0.1, asking.close).start()
    started = time.monotonic()
    with pytest.raises(Unanswered, match="given up"):
        asking.post("x", {})
    assert time.monotonic() - started < 5


def test_keys_are_in_no_message_and_no_log(service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"http://user%40home:{CANARY}-password@127.0.0.1:{service.port}/v1?key={CANARY}%2Fquery"
    service.answer = lambda asked: Reply(f"you sent {asked.path} {asked.headers}", 400)
    asking = client(service, url=url, key=CANARY)
    with pytest.raises(Refused) as refused:
        asking.post("x", {})
    assert f"key={CANARY}%2Fquery" in service.asked[0].path
    service.answer = lambda asked: Reply(f"{'x' * 1_990} {asked.path}")
    with pytest.raises(Malformed) as malformed:
        asking.post("x", {})
    service.answer = lambda asked: Reply(asked.path, 404)
    with pytest.raises(ServiceError) as gone:
        asking.post("x", {})
    # Without a key, user and password are sent as one.
    basic = base64.b64encode(f"user@home:{CANARY}-password".encode()).decode()
    service.answer = lambda asked: Reply(f"{asked.headers}", 422)
    with pytest.raises(Refused) as again:
        client(service, url=url).post("x", {})
    assert basic in service.asked[-1].headers["Authorization"]
    raised = f"{refused.value} {again.value} {malformed.value} {gone.value}"
    seen = f"{raised} {asking.address} {asking.settings!r} {caplog.text}"
    assert "canary" not in seen
    assert basic not in seen
    assert asking.address == service.url


@pytest.mark.parametrize("key", [f"{CANARY}\nX: y", f"{CANARY}ä", f"{CANARY}\0"])
def test_a_key_that_no_header_takes_is_told_without_showing_it(service: FakeService, key: str) -> None:
    with pytest.raises(ServiceError, match="copy it again") as caught:
        client(service, key=key)
    assert CANARY not in str(caught.value)


def test_blanks_around_a_key_are_no_part_of_it(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {CANARY}\n")
    NAMED.note({"server.url": service.url})
    asking = client(service)
    asking.post("x", {})
    assert service.asked[0].headers["Authorization"] == f"Bearer {CANARY}"
    monkeypatch.setenv("OPENAI_API_KEY", "  ")
    assert not client(service).has_key


def test_without_an_address() -> None:
    with pytest.raises(ServiceError, match="the fake: no address"):
        Service(ServiceSettings(), what="the fake", section="server", gone="")


def test_reachable_sends_no_key(service: FakeService) -> None:
    service.answer = lambda _: Reply("", 404)
    assert reachable(service.url.replace("//", f"//u:{CANARY}@") + f"?key={CANARY}") == "reachable"
    assert CANARY not in str(service.asked[0])
    service.close()
    assert reachable(service.url).startswith("not reachable (")
