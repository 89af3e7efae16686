"""The Perspective API against a server that answers as it does: scores, errors for good, the cache, the end."""

from __future__ import annotations

import datetime
import json
import math
import multiprocessing
import sqlite3
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from fake_service import FakeService, Reply, analysed, google_error, text_of
from rewardlm.config import PerspectiveSettings, ServicesSettings, cache_folder
from rewardlm.errors import ConfigError, ServiceError
from rewardlm.scoring import online, perspective
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.perspective import CLOSES, LONGEST_BYTES, PerspectiveScorer
from rewardlm.scoring.scorer import FailureLimit, score_texts
from rewardlm.types import Verdict

pytestmark = pytest.mark.filterwarnings("ignore:Google closes")
EIGHT = (
    "TOXICITY", "SEVERE_TOXICITY", "IDENTITY_ATTACK", "INSULT", "PROFANITY", "THREAT", "SEXUALLY_EXPLICIT", "FLIRTATION"
)  # fmt: skip
CANARY = "AIza-canary-77"


def judge(service: FakeService, **settings: Any) -> PerspectiveScorer:
    given = {
        "url": service.url.replace("/v1", "/v1alpha1"), "key": CANARY, "requests_per_second": None,
        "backoff_seconds": 0.01, "timeout_seconds": 5, **settings,
    }  # fmt: skip
    return PerspectiveScorer(PerspectiveSettings.model_validate(given))


def in_tens(asked: Any) -> Reply:
    """P rises with the text's length, so that order and content can be told from the answer."""
    return Reply(analysed(len(text_of(asked)) / 100, attributes=asked.body["requestedAttributes"], INSULT=0.25))


def of_google(error_type: str, message: str, **more: Any) -> dict[str, Any]:
    detail = {"@type": "type.googleapis.com/google.commentanalyzer.v1alpha1.Error", "errorType": error_type, **more}
    return google_error(message, detail)


def on(monkeypatch: pytest.MonkeyPatch, day: datetime.date) -> None:
    for module in (online, perspective):
        monkeypatch.setattr(module, "today", lambda: day)


@pytest.fixture(autouse=True)
def _before_it_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever these tests are run."""
    on(monkeypatch, datetime.date(2026, 11, 30))


def test_the_request_is_the_apis(service: FakeService) -> None:
    service.answer = in_tens
    judge(service).score(["You fool"])
    asked = service.asked[0]
    assert (asked.method, asked.path) == ("POST", "/v1alpha1/comments:analyze")
    assert asked.headers["X-Goog-Api-Key"] == CANARY
    assert "Authorization" not in asked.headers
    assert asked.body == {
        "comment": {"text": "You fool", "type": "PLAIN_TEXT"},
        "languages": ["en"],
        "requestedAttributes": {name: {} for name in EIGHT},
        "doNotStore": True,
    }


def test_without_languages_the_api_finds_out(service: FakeService) -> None:
    service.answer = in_tens
    judge(service, languages=[]).score(["x"])
    assert "languages" not in service.asked[0].body


def test_verdicts_are_in_the_order_of_the_texts(service: FakeService) -> None:
    service.answer = lambda asked: Reply(in_tens(asked).body, after=0.002 * (9 - len(text_of(asked)) % 9))
    scorer = judge(service)
    assert scorer.labels == tuple(name.lower() for name in EIGHT)
    texts = ["x" * n for n in range(1, 41)]
    verdicts = score_texts(scorer, texts)
    assert [v.values["toxicity"] for v in verdicts] == [n / 100 for n in range(1, 41)]
    assert all(set(v.values) == set(scorer.labels) and v.values["insult"] == 0.25 for v in verdicts)
    assert sorted(service.texts) == sorted(texts)


def test_what_is_recorded(service: FakeService) -> None:
    service.answer = in_tens
    scorer = judge(service)
    scorer.score(["x"])
    assert scorer.revision == "v1alpha1"
    assert scorer.address == service.url.replace("/v1", "/v1alpha1")
    assert scorer.dates == {"2026-11-30"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            of_google(
                "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
                "Attribute TOXICITY does not support request languages: th",
                languageNotSupportedByAttributeError={"detectedLanguages": ["th"], "attribute": "TOXICITY"},
            ),
            "language not supported",
        ),
        (google_error("Attribute THREAT does not support request languages: zu"), "language not supported"),
        (of_google("LANGUAGE_DETECTION_FAILED", "Unable to detect language."), "language not detected"),
        (of_google("COMMENT_TOO_LONG", "Comment text too long."), "too long"),
        (of_google("COMMENT_EMPTY", "Comment must be non-empty."), "empty response"),
    ],
)
def test_what_is_declined_for_good_is_no_failure_and_never_asked_again(
    service: FakeService, body: Any, reason: str
) -> None:
    service.answer = lambda asked: in_tens(asked) if "fine" in text_of(asked) else Reply(body, 400)
    scorer = judge(service)
    limit = FailureLimit(0)
    verdicts = score_texts(scorer, ["fine", "not this", "fine too"], limit=limit)
    assert [v.reason for v in verdicts] == [None, reason, None]
    assert not any(v.failed for v in verdicts)
    assert verdicts[1].values == {}
    assert len(service.asked) == 3
    assert score_texts(judge(service), ["not this"]) == [Verdict(reason=reason)]
    assert len(service.asked) == 3


def test_a_text_that_is_too_long_is_not_even_sent(service: FakeService) -> None:
    service.answer = in_tens
    texts = ["é" * (LONGEST_BYTES // 2) + "x", "é" * (LONGEST_BYTES // 2), "\ud800" * 10]
    verdicts = judge(service, attributes=["INSULT"]).score(texts)
    assert verdicts[0] == Verdict(reason="too long: 20,481 bytes, and the Perspective API reads 20,480")
    assert [v.values["insult"] for v in verdicts[1:]] == [0.25, 0.25]
    assert len(service.asked) == 2


@pytest.mark.parametrize("bad", [None, "0.5", math.nan, math.inf, -0.01, 1.01, True, [0.5], 10**400])
def test_a_value_that_is_no_probability_is_null_and_the_body_is_kept(service: FakeService, bad: Any) -> None:
    service.answer = lambda asked: Reply(analysed(0.5, attributes=EIGHT, THREAT=bad))
    verdict = score_texts(judge(service), ["x"])[0]
    assert verdict.values == {name.lower(): 0.5 for name in EIGHT if name != "THREAT"}
    assert verdict.failed
    assert verdict.reason is not None
    assert "no score from 0 to 1 of threat: {" in verdict.reason
    assert len(verdict.reason) < 2_100
    service.answer = lambda asked: Reply(analysed(0.5, attributes=EIGHT, TOXICITY=bad))
    verdict = score_texts(judge(service), ["x"])[0]
    assert (verdict.values, verdict.failed) == ({}, True)
    assert "of toxicity" in str(verdict.reason)
    assert "attributeScores" in str(verdict.reason)


@pytest.mark.parametrize(
    "body",
    [{}, [], "text", 3, None, {"attributeScores": []}, {"attributeScores": {"TOXICITY": 0.3}},
     {"attributeScores": {"TOXICITY": {"summaryScore": 0.3}}}],
)  # fmt: skip
def test_an_answer_of_another_form(service: FakeService, body: Any) -> None:
    service.answer = lambda _: Reply(json.dumps(body))
    verdict = score_texts(judge(service), ["x"])[0]
    assert (verdict.values, verdict.failed) == ({}, True)
    assert json.dumps(body) in str(verdict.reason) or str(body) in str(verdict.reason)
    assert len(service.asked) == 1


def test_nothing_is_asked_twice_because_one_text_failed(service: FakeService) -> None:
    def answer(asked: Any) -> Reply:
        text = text_of(asked)
        return Reply("<html>", 200) if text == "garbage" else Reply("no", 418) if text == "pot" else in_tens(asked)

    service.answer = answer
    verdicts = score_texts(judge(service), ["one", "garbage", "pot", "four"])
    assert [v.failed for v in verdicts] == [False, True, True, False]
    assert "<html>" in str(verdicts[1].reason)
    assert "HTTP 418: no" in str(verdicts[2].reason)
    assert len(service.asked) == 4


@pytest.mark.parametrize(
    "body",
    [
        google_error("API key not valid. Please pass a valid API key.", {"reason": "API_KEY_INVALID"}),
        of_google("NO_REQUESTED_ATTRIBUTES", "Missing requested_attributes"),
        google_error("Unknown requested attribute: SARCASM"),
    ],
)
def test_what_is_wrong_with_every_request_is_one_call(service: FakeService, body: Any) -> None:
    service.answer = lambda _: Reply(body, 400)
    with pytest.raises(ServiceError, match=r"refuses every request.*PERSPECTIVE_API_KEY"):
        judge(service).score(["a", "b", "c"])
    assert len(service.asked) == 1


@pytest.mark.parametrize("status", [404, 410])
def test_where_it_is_gone_a_local_judge_is_named(
    service: FakeService, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.answer = lambda _: Reply("", status)
    with pytest.raises(ServiceError, match=r"closes .*2026-12-31.*--scorer starter.*rewardlm judge train"):
        judge(service).score(["a", "b"])
    assert len(service.asked) == 1
    on(monkeypatch, CLOSES + datetime.timedelta(days=1))
    with pytest.warns(UserWarning, match="Google closed"):
        scorer = judge(service)
    with pytest.raises(ServiceError, match="Google closed the Perspective API on 2026-12-31"):
        scorer.score(["a", "b"])


@pytest.mark.parametrize("reply", [Reply("", 503), Reply({"error": {"message": "disabled"}}, 403)])
def test_after_its_day_googles_silence_is_the_end(
    service: FakeService, reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.answer = lambda _: reply
    scorer = judge(service)
    monkeypatch.setattr(PerspectiveScorer, "_is_google", lambda _: True)
    if reply.status == 503:
        assert "HTTP 503" in str(scorer.score(["a"])[0].reason)
        scorer = judge(service)
    on(monkeypatch, CLOSES + datetime.timedelta(days=1))
    with pytest.raises(ServiceError, match=r"Google closed the Perspective API on 2026-12-31.*--scorer starter"):
        scorer.score(["a"])


def test_before_its_day_it_warns(service: FakeService) -> None:
    with pytest.warns(UserWarning, match=r"Google closes the Perspective API on 2026-12-31.*starter"):
        judge(service)


def test_googles_address_needs_a_key_and_another_may_not(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServiceError, match=r"PERSPECTIVE_API_KEY.*--scorer starter"):
        load_scorer("perspective")
    service.answer = in_tens
    monkeypatch.setenv("REWARDLM_PERSPECTIVE_URL", service.url)
    scorer = load_scorer("perspective")
    assert score_texts(scorer, ["x"])[0].values["toxicity"] == 0.01
    assert "X-Goog-Api-Key" not in service.asked[0].headers
    monkeypatch.setenv("REWARDLM_PERSPECTIVE_URL", f"ftp://{CANARY}")
    with pytest.raises(ConfigError, match="http://") as caught:
        load_scorer("perspective")
    assert CANARY not in str(caught.value)


def test_one_request_a_second_unless_told_otherwise(service: FakeService) -> None:
    service.answer = in_tens
    given = {"url": service.url, "key": "k"}
    started = time.monotonic()
    PerspectiveScorer(PerspectiveSettings.model_validate(given)).score(["a", "b"])
    # From before the first request: one that arrives late on a busy machine must not look like a shorter pause.
    assert time.monotonic() - started >= 1
    assert len(service.asked) == 2


def test_answers_are_kept_for_the_day_by_text_attributes_and_languages(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.answer = in_tens
    first = judge(service).score(["a", "bb"])
    assert len(service.asked) == 2
    again = judge(service)
    assert again.score(["bb", "a", "ccc"]) == [first[1], first[0], *judge(service, cache=False).score(["ccc"])]
    assert service.texts == ["a", "bb", "ccc", "ccc"]
    assert again.dates
    for other in ({"attributes": ["INSULT", "TOXICITY"]}, {"languages": ["de"]}, {"cache": False}):
        asked = len(service.asked)
        judge(service, **other).score(["a"])
        assert len(service.asked) == asked + 1
    on(monkeypatch, datetime.date(2026, 12, 1))
    judge(service).score(["a"])
    assert len(service.asked) == 8


def test_what_is_kept_needs_no_key_and_no_server(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    service.answer = in_tens
    judge(service).score(["a"])
    service.close()
    monkeypatch.setattr(perspective, "GOOGLE", service.url.replace("/v1", "/v1alpha1"))
    keyless = judge(service, key=None)
    assert keyless.score(["a"])[0].values["toxicity"] == 0.01
    with pytest.raises(ServiceError, match="PERSPECTIVE_API_KEY"):
        keyless.score(["a", "b"])
    assert keyless.unfinished["a"].values["toxicity"] == 0.01


def test_failures_are_not_kept_and_no_text_is(service: FakeService) -> None:
    service.one_by_one([Reply("nonsense"), Reply(analysed(0.5, attributes=EIGHT))])
    assert judge(service).score(["you wretch"])[0].failed
    assert judge(service).score(["you wretch"])[0].values["toxicity"] == 0.5
    kept = (cache_folder() / "perspective.sqlite").read_bytes()
    assert b"wretch" not in kept
    assert CANARY.encode() not in kept


def test_the_cache_forgets_other_days(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    service.answer = in_tens
    on(monkeypatch, datetime.date(2026, 12, 1))
    judge(service).score(["a"])
    on(monkeypatch, datetime.date(2026, 12, 2))
    judge(service).score(["b"])
    with sqlite3.connect(cache_folder() / "perspective.sqlite") as opened:
        assert opened.execute("SELECT day FROM verdicts").fetchall() == [("2026-12-02",)]


def test_a_damaged_cache_costs_requests_and_no_score(service: FakeService) -> None:
    service.answer = in_tens
    file = cache_folder() / "perspective.sqlite"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"not a database" * 100)
    scorer = judge(service)
    with pytest.warns(UserWarning, match=r"perspective\.sqlite can't be used"):
        assert scorer.score(["a"])[0].values["toxicity"] == 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [v.values["toxicity"] for v in scorer.score(["a", "bb"])] == [0.01, 0.02]


def _write(folder: str, number: int) -> None:
    cache = perspective._Cache(Path(folder) / "p.sqlite")
    for row in range(25):
        cache.put(f"{number}-{row}", Verdict({"toxicity": row / 25}))


@pytest.mark.slow
def test_processes_share_one_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(str(tmp_path), number)) for number in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    cache = perspective._Cache(tmp_path / "p.sqlite")
    assert all(cache.get(f"{n}-{row}") == Verdict({"toxicity": row / 25}) for n in range(2) for row in range(25))


def test_in_an_ensemble_with_a_local_judge(service: FakeService) -> None:
    service.answer = in_tens
    services = ServicesSettings.model_validate({"perspective": {"url": service.url, "requests_per_second": None}})
    both = load_scorer("mean(perspective,lexical)", services=services)
    alone = load_scorer("lexical")
    verdict = score_texts(both, ["you stupid idiot"])[0]
    lexical = score_texts(alone, ["you stupid idiot"])[0].values["toxicity"]
    assert verdict.values["perspective"] == 0.16
    assert verdict.values["toxicity"] == pytest.approx((0.16 + lexical) / 2)
    assert both.piece == 32  # type: ignore[attr-defined]


def test_settings_name_attributes_once_and_as_the_api_does() -> None:
    assert PerspectiveSettings.model_validate({"attributes": "INSULT", "languages": "de"}).languages == ["de"]
    for wrong in ([], ["toxicity"], ["TOXICITY", "TOXICITY"]):
        with pytest.raises(ValueError, match="attributes"):
            PerspectiveSettings.model_validate({"attributes": wrong})
