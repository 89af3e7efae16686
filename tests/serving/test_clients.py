"""Real clients, unchanged but for the address: Google's, garak's detector, packages for Perspective, openai, and ours.

What each makes of an answer is compared with what the judge says when it is asked directly.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from serving_server import Letters, ServingProcess, ThreadServer

from rewardlm.config import EndpointSettings, PerspectiveSettings, ServicesSettings, validate
from rewardlm.errors import ServiceError
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.perspective import PerspectiveScorer
from rewardlm.scoring.scorer import EMPTY, score_texts

GOOGLE = "https://commentanalyzer.googleapis.com"
LABELS = (
    "toxicity", "severe_toxicity", "identity_attack", "insult", "profanity", "threat", "sexually_explicit", "hate",
)  # fmt: skip
TEXT = "xx is half of this: x. And 😀 more!"


@pytest.fixture
def letters() -> Letters:
    return Letters(labels=LABELS)


@pytest.fixture
def expected(letters: Letters) -> dict[str, float]:
    return letters.values(TEXT)


@pytest.fixture
def moved(server: ThreadServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``googleapiclient.discovery.build`` with Google's host replaced, as somebody who moves replaces it."""
    discovery = pytest.importorskip("googleapiclient.discovery", reason="google-api-python-client is not installed")
    build = discovery.build

    def build_here(*arguments: Any, **named: Any) -> Any:
        assert named["discoveryServiceUrl"].startswith(GOOGLE), "the client asks another address"
        named["discoveryServiceUrl"] = named["discoveryServiceUrl"].replace(GOOGLE, server.address)
        return build(*arguments, **named)

    monkeypatch.setattr(discovery, "build", build_here)
    return build_here


class TestGoogle:
    """google-api-python-client, which reads the discovery document that is served here."""

    @pytest.fixture
    def client(self, server: ThreadServer) -> Any:
        discovery = pytest.importorskip("googleapiclient.discovery", reason="google-api-python-client is not installed")
        return discovery.build(
            "commentanalyzer",
            "v1alpha1",
            developerKey="an-old-key",
            discoveryServiceUrl=f"{server.address}/$discovery/rest?version=v1alpha1",
            static_discovery=False,
        )

    def test_it_analyzes(self, client: Any, expected: dict[str, float]) -> None:
        request = {
            "comment": {"text": TEXT},
            "requestedAttributes": {label.upper(): {} for label in LABELS[:7]},
            "languages": ["en"],
            "doNotStore": True,
            "spanAnnotations": True,
        }
        found = client.comments().analyze(body=request).execute()
        scores = {name.lower(): one["summaryScore"]["value"] for name, one in found["attributeScores"].items()}
        assert scores == pytest.approx({label: expected[label] for label in LABELS[:7]})
        assert [span["end"] for span in found["attributeScores"]["INSULT"]["spanScores"]] == [
            22,
            len(TEXT.encode("utf-16-le")) // 2,
        ]

    def test_it_suggests(self, client: Any) -> None:
        body = {
            "comment": {"text": "x"},
            "attributeScores": {"TOXICITY": {"summaryScore": {"value": 0}}},
            "clientToken": "t",
        }
        assert client.comments().suggestscore(body=body).execute()["clientToken"] == "t"

    def test_it_reads_our_errors_as_googles(self, client: Any) -> None:
        from googleapiclient.errors import HttpError

        with pytest.raises(HttpError) as caught:
            client.comments().analyze(body={"comment": {"text": ""}, "requestedAttributes": {"TOXICITY": {}}}).execute()
        assert caught.value.status_code == 400
        assert caught.value.reason == "Comment must be non-empty."
        assert caught.value.error_details[0]["errorType"] == "COMMENT_EMPTY"
        with pytest.raises(HttpError, match="Unknown requested attribute: FLIRTATION"):
            client.comments().analyze(
                body={"comment": {"text": "x"}, "requestedAttributes": {"FLIRTATION": {}}}
            ).execute()

    def test_it_finds_the_document_by_the_older_address(self, server: ThreadServer, expected: dict[str, float]) -> None:
        discovery = pytest.importorskip("googleapiclient.discovery", reason="google-api-python-client is not installed")
        client = discovery.build(
            "commentanalyzer",
            "v1alpha1",
            developerKey="k",
            discoveryServiceUrl=server.address + "/discovery/v1/apis/{api}/{apiVersion}/rest",
            static_discovery=False,
        )
        body = {"comment": {"text": TEXT}, "requestedAttributes": {"TOXICITY": {}}}
        found = client.comments().analyze(body=body).execute()["attributeScores"]["TOXICITY"]["summaryScore"]["value"]
        assert found == pytest.approx(expected["toxicity"])

    def test_with_a_key_only_the_right_one_analyzes(self, serve: Any) -> None:
        discovery = pytest.importorskip("googleapiclient.discovery", reason="google-api-python-client is not installed")
        from googleapiclient.errors import HttpError

        server = serve(Letters(), key="right")
        url = f"{server.address}/$discovery/rest?version=v1alpha1"
        body = {"comment": {"text": "x"}, "requestedAttributes": {"TOXICITY": {}}}
        for key, works in (("right", True), ("wrong", False)):
            client = discovery.build(
                "commentanalyzer", "v1alpha1", developerKey=key, discoveryServiceUrl=url, static_discovery=False
            )
            if works:
                assert client.comments().analyze(body=body).execute()["attributeScores"]
            else:
                with pytest.raises(HttpError, match="API key not valid"):
                    client.comments().analyze(body=body).execute()


def test_garaks_detector(
    server: ThreadServer, moved: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, expected: dict[str, float]
) -> None:
    """Its discovery address stands in its code."""
    perspective = pytest.importorskip("garak.detectors.perspective", reason="garak is not installed")
    from garak.attempt import Attempt, Message

    monkeypatch.setenv("PERSPECTIVE_API_KEY", "an-old-key")
    for name, label in (("Toxicity", "toxicity"), ("Identity_Attack", "identity_attack"), ("Threat", "threat")):
        attempt = Attempt(prompt=Message(text="Hello", lang="en"))
        attempt.outputs = [Message(text=TEXT, lang="en"), None, Message(text="", lang="en")]
        found = getattr(perspective, name)().detect(attempt)
        assert found == [pytest.approx(expected[label]), None, 0.0]


class TestPackages:
    """Packages for Perspective that are on the index, with the address that stands in their code replaced."""

    def test_perspective(self, server: ThreadServer, expected: dict[str, float]) -> None:
        module = pytest.importorskip("perspective", reason="the package perspective is not installed")
        client = module.PerspectiveAPI("an-old-key")
        client.api_client.url = client.api_client.url.replace(GOOGLE, server.address)
        found = client.analyze_comment(
            TEXT, comment_type="PLAIN_TEXT", requested_attributes={"TOXICITY": {"scoreType": "PROBABILITY"}},
            span_annotations=True, languages=["en"], do_not_store=True, client_token="t", session_id="s",
            community_id="c", context=[{"text": "before", "type": "PLAIN_TEXT"}],
        )  # fmt: skip
        assert found["attributeScores"]["TOXICITY"]["summaryScore"]["value"] == pytest.approx(expected["toxicity"])
        assert found["clientToken"] == "t"
        scores = {"TOXICITY": {"summaryScore": {"value": 0.5}}}
        assert "detectedLanguages" in client.suggest_score("x", scores)

    def test_pyperspective(
        self, server: ThreadServer, monkeypatch: pytest.MonkeyPatch, expected: dict[str, float]
    ) -> None:
        """It begins with a request without a body, and reads spans and detected languages of every answer."""
        module = pytest.importorskip("PyPerspective.Perspective", reason="PyPerspective is not installed")
        monkeypatch.setattr(module, "base_url", module.base_url.replace(GOOGLE, server.address))
        found = module.Perspective("an-old-key").get_score(TEXT, tests=["TOXICITY", "INSULT"], langs=["en"])
        assert found["TOXICITY"].score == pytest.approx(expected["toxicity"])
        assert found["INSULT"].score == pytest.approx(expected["insult"])
        assert found.requests_langs == ["en"]
        assert [span.score for span in found["INSULT"].spans] == [pytest.approx(expected["insult"])]

    def test_begentle(self, moved: Callable[..., Any], expected: dict[str, float]) -> None:
        module = pytest.importorskip("begentle", reason="begentle is not installed")
        assert module.CommentAnalyzer("an-old-key").analyze(TEXT) == pytest.approx(expected["toxicity"])


class TestOpenAI:
    """openai's client."""

    @pytest.fixture
    def client(self, server: ThreadServer) -> Any:
        openai = pytest.importorskip("openai", reason="openai is not installed")
        return openai.OpenAI(base_url=f"{server.address}/v1", api_key="an-old-key", max_retries=0)

    def test_it_moderates(self, client: Any, expected: dict[str, float]) -> None:
        found = client.moderations.create(input=["xxx", TEXT])
        assert found.model == "letters"
        first, second = found.results
        assert first.flagged
        assert first.categories.hate is False
        assert second.category_scores.hate == pytest.approx(expected["hate"])
        assert second.category_scores.model_extra["toxicity"] == pytest.approx(expected["toxicity"])
        assert found.model_extra["judge"]["version"] == "v-letters"
        # Nobody was asked about harassment, so there is no score of it.
        assert "harassment" not in second.category_scores.to_dict()
        assert client.moderations.create(input="xxx", model="letters").results[0].flagged

    def test_it_reads_our_errors_as_its_own(self, client: Any, serve: Any) -> None:
        import openai

        with pytest.raises(openai.NotFoundError, match="expected one of letters") as missing:
            client.moderations.create(input="x", model="omni-moderation-latest")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match="is empty"):
            client.moderations.create(input="")
        with pytest.raises(openai.InternalServerError, match=r"input\[1\] could not be scored"):
            client.moderations.create(input=["x", "[fail]"])
        locked = serve(Letters(), key="right")
        wrong = openai.OpenAI(base_url=f"{locked.address}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="not valid"):
            wrong.moderations.create(input="x")
        right = openai.OpenAI(base_url=f"{locked.address}/v1", api_key="right", max_retries=0)
        assert right.moderations.create(input="x").results[0].flagged


@pytest.mark.filterwarnings("ignore:Google close")
class TestOurs:
    """``--scorer perspective`` and ``--scorer endpoint``, which were written for the services of others."""

    @pytest.fixture(autouse=True)
    def _nothing_of_the_users(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        for name in ("PERSPECTIVE_API_KEY", "OPENAI_API_KEY", "REWARDLM_PERSPECTIVE_URL", "REWARDLM_ENDPOINT_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("REWARDLM_CACHE", str(tmp_path / "cache"))

    def settings(self, server: ThreadServer, **more: Any) -> PerspectiveSettings:
        given = {"attributes": ["TOXICITY", "INSULT"], "requests_per_second": None, "tries": 1, **more}
        return validate(PerspectiveSettings, {"url": f"{server.address}/v1alpha1", **given})

    def test_perspective(self, server: ThreadServer, expected: dict[str, float]) -> None:
        scorer = PerspectiveScorer(self.settings(server))
        texts = [TEXT, "", "a [decline]", "a [fail]", "x" * 30_000, *(f"text {n} x" for n in range(40))]
        found = score_texts(scorer, texts)
        assert found[0].values == pytest.approx({"toxicity": expected["toxicity"], "insult": expected["insult"]})
        assert found[1].reason == EMPTY
        assert [verdict.failed for verdict in found[2:5]] == [True, True, False]
        assert all(not verdict.values for verdict in found[1:5])
        assert [verdict.values["toxicity"] for verdict in found[5:]] == pytest.approx(
            [text.count("x") / len(text) for text in texts[5:]]
        )

    def test_perspective_is_told_of_an_attribute_that_is_not_there(self, server: ThreadServer) -> None:
        with pytest.raises(ServiceError, match=r"Unknown requested attribute: FLIRTATION.*perspective\.attributes"):
            score_texts(PerspectiveScorer(self.settings(server, attributes=["FLIRTATION"])), ["x"])

    def test_perspective_with_a_key(self, serve: Any) -> None:
        server = serve(Letters(), key="right")
        assert score_texts(PerspectiveScorer(self.settings(server, key="right")), ["x"])[0].values["toxicity"] == 1
        with pytest.raises(ServiceError, match="refuses every request"):
            score_texts(PerspectiveScorer(self.settings(server, key="wrong")), ["another x"])

    def test_endpoint(self, server: ThreadServer, expected: dict[str, float]) -> None:
        settings = validate(EndpointSettings, {"url": f"{server.address}/v1", "tries": 1})
        scorer = load_scorer("endpoint", services=ServicesSettings(endpoint=settings))
        (found,) = score_texts(scorer, [TEXT])
        assert found.values == pytest.approx(expected)


@pytest.mark.slow
def test_the_command_serves_a_packaged_judge_to_googles_client(start: Callable[..., ServingProcess]) -> None:
    discovery = pytest.importorskip("googleapiclient.discovery", reason="google-api-python-client is not installed")
    direct = load_scorer("lexical2")
    server = start("lexical2,lexical", "--port", "0", "device=cpu", anew=True)
    client = discovery.build(
        "commentanalyzer",
        "v1alpha1",
        developerKey="k",
        discoveryServiceUrl=f"{server.address}/$discovery/rest?version=v1alpha1",
        static_discovery=False,
    )
    for text in ("You are a complete idiot.", "The library opens at nine.", "I will find you and hurt you"):
        body = {"comment": {"text": text}, "requestedAttributes": {label.upper(): {} for label in direct.labels}}
        found = client.comments().analyze(body=body).execute()["attributeScores"]
        values = {name.lower(): one["summaryScore"]["value"] for name, one in found.items()}
        assert values == pytest.approx(dict(direct.score([text])[0].values), abs=1e-6)
    assert json.loads(server.ask("/judges").data)["judges"][1]["attributes"] == {"TOXICITY": "toxicity"}
    assert server.end() == (0, "", "")
