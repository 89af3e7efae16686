"""Keys, names of the machine, other sites; and that no text, key or address is written anywhere."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from serving_server import Letters, ThreadServer, analyze

from rewardlm.errors import ConfigError
from rewardlm.judges.settings import JudgeServeSettings
from rewardlm.serving.serve import key_of

ANALYZE = "/v1alpha1/comments:analyze"
KEY = "a-key-ümlaut-0123456789"


@pytest.fixture
def locked(serve: Any) -> ThreadServer:
    return serve(Letters(), key="the-key")


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("?key=the-key", {}),
        ("?alt=json&key=the-key&prettyPrint=true", {}),
        ("", {"X-Goog-Api-Key": "the-key"}),
        ("", {"Authorization": "Bearer the-key"}),
        ("", {"authorization": "bearer  the-key"}),
        ("", {"X-Api-Key": "the-key"}),
        ("?key=wrong", {"X-Goog-Api-Key": "the-key"}),
    ],
)
def test_a_key_is_taken_wherever_a_client_puts_it(locked: ThreadServer, path: str, headers: dict[str, str]) -> None:
    assert locked.ask(ANALYZE + path, analyze("x"), headers=headers).status == 200


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("?key=the-ke", {}),
        ("?key=the-key2", {}),
        ("?key=THE-KEY", {}),
        ("?key=", {"Authorization": "Bearer"}),
        ("", {"Authorization": "Basic the-key"}),
        ("", {"Authorization": "the-key"}),
        ("", {"Cookie": "key=the-key"}),
        ("?key=wr%FFong", {}),
        ("", {"X-Goog-Api-Key": "\xff\xfe"}),
    ],
)
def test_any_other_key_is_refused_and_not_repeated(
    locked: ThreadServer, capfd: pytest.CaptureFixture[str], path: str, headers: dict[str, str]
) -> None:
    for route, body, statuses in [
        (ANALYZE, analyze("secret text"), (400, 403)), ("/v1/moderations", {"input": "secret text"}, (401,)),
        ("/score", {"texts": ["secret text"]}, (401,)),
    ]:  # fmt: skip
        found = locked.ask(route + path, body, headers=headers)
        assert found.status in statuses
        said = found.data.decode()
        assert "the-ke" not in said.lower()
        assert "key" in said.lower()
    assert "secret" not in "".join(capfd.readouterr())


def test_a_wrong_key_is_googles_error_and_a_missing_one_too(locked: ThreadServer) -> None:
    wrong = locked.ask(ANALYZE + "?key=x", analyze("x")).body["error"]
    assert (wrong["code"], wrong["details"][0]["reason"]) == (400, "API_KEY_INVALID")
    missing = locked.ask(ANALYZE, analyze("x")).body["error"]
    assert (missing["code"], missing["status"]) == (403, "PERMISSION_DENIED")


@pytest.mark.parametrize(
    ("path", "status"),
    [("/healthz", 200), ("/$discovery/rest?version=v1alpha1", 200), ("/judges", 401), ("/metrics", 401), ("/x", 401)],
)
def test_without_a_key_only_what_says_nothing_is_open(locked: ThreadServer, path: str, status: int) -> None:
    assert locked.ask(path).status == status


def test_where_no_key_is_set_a_scripts_old_one_does_no_harm(server: ThreadServer) -> None:
    assert server.ask(ANALYZE + "?key=AIza-old", analyze("x")).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "", "127.0.0.1:x", "[::1",
     "127.0.0.1@evil.example", "10.0.0.1", "2130706433", "localhost, evil.example"],
)  # fmt: skip
def test_a_foreign_name_that_points_here_is_refused(server: ThreadServer, letters: Letters, host: str) -> None:
    assert server.ask(ANALYZE, analyze("x"), headers={"Host": host}).status == 421
    assert server.ask("/judges", headers={"Host": host}).status == 421
    assert letters.batches == []


def test_a_name_that_the_user_vouches_for_is_answered(serve: Any) -> None:
    server = serve(Letters(), hosts=["Judges.example"])
    assert server.ask("/judges", headers={"Host": "judges.example:443"}).status == 200
    assert server.ask("/judges", headers={"Host": "other.example"}).status == 421


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_may_not_ask(server: ThreadServer, letters: Letters, site: str) -> None:
    headers = {"Sec-Fetch-Site": site, "Origin": "http://evil.example"}
    assert server.ask(ANALYZE, analyze("x"), headers=headers).status == 403
    # Nor with what a page may send without asking: a form, plain text.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert server.ask(ANALYZE, analyze("x"), headers={"Content-Type": kind}).status == 415
    preflight = server.ask(ANALYZE, method="OPTIONS", headers={"Origin": "http://evil.example"})
    assert preflight.status == 403
    assert "access-control-allow-origin" not in preflight.headers
    assert letters.batches == []


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "https://evil.example:443", "null", "http://localhost.evil.example", "http://127.0.0.1:1"],
)
def test_an_origin_elsewhere_is_refused_where_a_browser_says_no_more(
    server: ThreadServer, letters: Letters, origin: str
) -> None:
    """Over plain HTTP from another machine a browser sends no Sec-Fetch-Site, and a blob has no content type."""
    body = json.dumps(analyze("x")).encode()
    assert server.ask(ANALYZE, method="POST", headers={"Origin": origin}).status == 403
    head = f"POST {ANALYZE} HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nContent-Length: {len(body)}\r\n\r\n"
    refused = server.raw(head.encode() + body)
    assert refused.startswith(b"HTTP/1.1 403 ")
    assert letters.batches == []
    assert server.ask(ANALYZE, analyze("x"), headers={"Origin": server.address}).status == 200


class Careless(Letters):
    """Fails with the text in its message, and with a secret of this machine."""

    def score(self, texts: Any) -> Any:
        raise RuntimeError(f"can't open /home/somebody/secret.cfg for {' '.join(texts)}")


def test_no_text_and_no_key_is_written_anywhere(
    serve: Any, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = serve(Letters(), Careless("careless"), key="the-key")
    given = {"headers": {"X-Goog-Api-Key": "the-key"}}
    for body in (
        analyze("secret one"),
        analyze("secret two", doNotStore=False),
        analyze("secret three", judge="careless"),
    ):
        found = server.ask(f"{ANALYZE}?key=the-key", body, **given)
        assert b"secret" not in found.data
    for path, body in {
        "/score": {"texts": ["secret"], "judge": "careless"},
        "/classify": {"inputs": "secret", "judge": "careless"},
        "/v1/moderations": {"input": "secret", "model": "careless"},
    }.items():
        found = server.ask(path, body, **given)
        assert b"the judge failed at it" in found.data
        assert b"secret" not in found.data
    server.ask("/score", b'{"texts": ["secret four"', **given)
    server.ask("/secret-five?q=secret", **given)
    server.raw(b"secret six\r\n\r\n")
    said = "".join(capfd.readouterr())
    assert "secret" not in said
    assert "the-key" not in said
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_sent_to_where_the_environment_says(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI can send traces, with addresses, to a collector."""
    with socket.create_server(("127.0.0.1", 0)) as collector:
        collector.settimeout(1.0)
        monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        server = serve(Letters())
        assert server.ask(ANALYZE, analyze("x")).status == 200
        with pytest.raises(TimeoutError):
            collector.accept()


def test_other_machines_need_a_key_or_a_plain_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARDLM_SERVE_KEY", raising=False)
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        assert key_of(JudgeServeSettings(judge=["lexical"], host=host)) is None
    for host in ("0.0.0.0", "::", "192.168.1.2", "judges.example"):
        with pytest.raises(ConfigError, match="REWARDLM_SERVE_KEY, or give --allow-anyone"):
            key_of(JudgeServeSettings(judge=["lexical"], host=host))
        assert key_of(JudgeServeSettings(judge=["lexical"], host=host, allow_anyone=True)) is None
    monkeypatch.setenv("REWARDLM_SERVE_KEY", KEY)
    assert key_of(JudgeServeSettings(judge=["lexical"], host="0.0.0.0")) == KEY
    with pytest.raises(ConfigError, match="key_variable is MY_KEY, which is not set"):
        key_of(JudgeServeSettings(judge=["lexical"], key_variable="MY_KEY"))
    assert KEY not in repr(JudgeServeSettings(judge=["lexical"]))
    assert os.environ["REWARDLM_SERVE_KEY"] == KEY


def test_settings_that_do_not_fit_are_refused() -> None:
    for wrong, said in [
        ({"aliases": {"a": "other"}}, "aliases name other"),
        ({"aliases": {"lexical": "lexical"}}, "name of a judge already"),
        ({"queue": 10}, "must fit in the queue"),
        ({"attributes": {"toxic": "x"}}, "attributes"),
        ({"label_thresholds": {"x": 2}}, "label_thresholds"),
        ({"languages": []}, "languages"),
        ({"port": 70000}, "port"),
    ]:
        with pytest.raises(ValueError, match=said):
            JudgeServeSettings(judge=["lexical"], **wrong)  # type: ignore[arg-type]
