"""The judges that ship: a text has one score, whatever else is scored with it, and in whichever thread."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from small_judges import save_adapter, tiny_encoder

from rewardlm.config import validate
from rewardlm.judges.evaluate import SPEED_WORDS
from rewardlm.judges.settings import JudgeServeSettings
from rewardlm.scoring import classifier
from rewardlm.scoring.classifier import ClassifierScorer
from rewardlm.scoring.ensemble import Ensemble
from rewardlm.scoring.load import is_here, load_scorer
from rewardlm.scoring.scorer import Scorer, cuts, twin_of
from rewardlm.scoring.versions import JudgeVersion
from rewardlm.serving.served import as_served
from rewardlm.types import Verdict


def texts_of(number: int, seed: int) -> list[str]:
    """Texts of one to sixty words, many of them short."""
    draw = random.Random(seed)
    words = SPEED_WORDS.split()
    return [" ".join(draw.choices(words, k=draw.choice([1, 2, 3, 4, 6, draw.randint(8, 60)]))) for _ in range(number)]


@cache
def judge(name: str) -> Scorer:
    if not is_here(name):
        pytest.skip(f"what the judge {name} needs is not installed")
    return load_scorer(name)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["starter", "starter-large", "witness", "lexical", "lexical2"])
def test_a_text_scores_the_same_in_any_company_and_on_any_number_of_threads(name: str, threads: None) -> None:
    scorer = judge(name)
    draw = random.Random(2)
    texts = texts_of(16, seed=1)
    main = scorer.labels[0]
    alone = [scorer.score([text])[0].values[main] for text in texts]
    for number in (1, 2):
        torch.set_num_threads(number)
        for size in (2, 5, 12):
            some = draw.sample(range(len(texts)), size)
            found = [verdict.values[main] for verdict in scorer.score([texts[i] for i in some])]
            assert found == pytest.approx([alone[i] for i in some], abs=1e-5)


@pytest.mark.parametrize("name", ["starter", "lexical", "lexical2", "mean(starter,lexical)", "toxicity+hate"])
def test_twins_score_the_same_at_the_same_time(name: str, threads: None) -> None:
    scorer = judge(name)
    twins = [scorer, *(twin for _ in range(3) if (twin := twin_of(scorer)) is not None)]
    assert len(twins) == 4
    for twin in twins:
        assert (twin.name, twin.labels) == (scorer.name, scorer.labels)
    torch.set_num_threads(1)
    # cuts() has the tokenizer leave texts whole and score() has it cut them: threads that shared one could get in each
    # other's way.
    work = [texts_of(10, seed=seed) for seed in range(len(twins))]
    expected = [[verdict.values for verdict in scorer.score(texts)] for texts in work]

    def score(number: int) -> list[list[Verdict]]:
        found = []
        for _ in range(3):
            cuts(twins[number], work[number])
            found.append([twins[number].score([text])[0] for text in work[number]])
        return found

    with ThreadPoolExecutor(len(twins)) as pool:
        found = list(pool.map(score, range(len(twins))))
    for values, rounds in zip(expected, found, strict=True):
        for verdicts in rounds:
            for verdict, value in zip(verdicts, values, strict=True):
                assert verdict.values == pytest.approx(value, abs=1e-5)


class Alone:
    """A user's judge, which says nothing of threads."""

    name, labels = "alone", ("toxicity",)

    def score(self, texts: list[str]) -> list[Verdict]:
        return [Verdict({"toxicity": 0.5}) for _ in texts]


def test_twins_share_their_weights() -> None:
    scorer = judge("starter")
    twin = twin_of(scorer)
    assert isinstance(scorer, ClassifierScorer)
    assert isinstance(twin, ClassifierScorer)
    pairs = zip(scorer._model.parameters(), twin._model.parameters(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)
    assert twin._tokenizer is not scorer._tokenizer
    own = {id(module) for module in twin._model.modules()}
    assert not own & {id(module) for module in scorer._model.modules()}
    # The linear maps that multiply in bf16 are functions of their module: of the twin's.
    if scorer.precision == "bfloat16":
        forwards = [module.forward for module in twin._model.modules() if isinstance(module.forward, partial)]
        assert forwards
        assert all(id(forward.args[0]) in own for forward in forwards)


class Unlucky(Alone):
    def twin(self) -> Scorer:
        raise TypeError("can't pickle that")


def test_a_judge_that_cant_be_copied_is_served_by_one_thread(capsys: pytest.CaptureFixture[str]) -> None:
    settings = validate(JudgeServeSettings, {"judge": ["unlucky"], "workers": 4, "device": "cpu"})
    assert as_served(Unlucky(), JudgeVersion("unlucky", "1", None), settings).twins == ()
    assert "unlucky is served by one thread" in capsys.readouterr().err


def test_who_does_not_say_that_it_is_safe_has_no_twin() -> None:
    assert twin_of(Alone()) is None
    assert Ensemble([judge("lexical"), Alone()]).twin() is None


@pytest.mark.parametrize("with_amx", [True, False])
def test_small_batches_are_padded_where_that_changes_the_order_of_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_amx: bool
) -> None:
    folder = save_adapter(tmp_path / "judge", tiny_encoder(tmp_path / "encoder"))
    monkeypatch.setattr(classifier, "_abilities", lambda: {"avx512_bf16": True, "amx_bf16": with_amx})
    rows: set[int] = set()
    original = torch.nn.functional.linear

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if x.dtype == torch.bfloat16 and x.shape[-1] > weight.shape[0]:
            rows.add(len(x))
        return original(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    scorer = load_scorer(folder)
    scorer.score(["you fool !", "hello friend ."] * 10)
    assert rows
    assert (rows == {512}) == with_amx
