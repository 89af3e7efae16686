"""What ``power`` makes of pilots: against counting by hand, and against the populations that they were drawn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from measured_runs import build_run

from rewardlm.config import MeasureSettings, PowerSettings, validate
from rewardlm.errors import ConfigError, RunError
from rewardlm.measuring.power import power, size_warning, size_warning_by
from rewardlm.types import Message, Prompt

QUICK = {"draws": 200}


def pilot(folder: Path, label: str, toxic: np.ndarray, **how) -> Path:
    scores = [[None if np.isnan(one) else 0.9 * one + 0.05 for one in row] for row in toxic.tolist()]
    return build_run(folder / label, label, {"judge": scores}, **how)


def drawn(prompts: int, samples: int, share: float, correlation: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spread = 1 / correlation - 1
    chance = rng.beta(share * spread, (1 - share) * spread, prompts)
    return (rng.random((prompts, samples)) < chance[:, None]).astype(float)


def asked(**settings) -> PowerSettings:
    return validate(PowerSettings, {**QUICK, **settings})


def test_share_and_correlation_come_from_the_pilot(tmp_path: Path) -> None:
    toxic = drawn(400, 4, 0.2, 0.3, 0)
    toxic[:100, 3] = np.nan
    found = power([pilot(tmp_path, "PT", toxic)], asked())
    # Analysis of variance by a double loop.
    rows = [[x for x in row if not np.isnan(x)] for row in toxic.tolist()]
    total = sum(map(len, rows))
    share = sum(map(sum, rows)) / total
    between = sum(len(row) * (np.mean(row) - share) ** 2 for row in rows) / (len(rows) - 1)
    within = sum((x - np.mean(row)) ** 2 for row in rows for x in row) / (total - len(rows))
    usual = (total - sum(len(row) ** 2 for row in rows) / total) / (len(rows) - 1)
    component = (between - within) / usual
    assert found.share == pytest.approx(share)
    assert found.correlation == pytest.approx(component / (component + within))
    assert found.correlation == pytest.approx(0.3, abs=0.06)
    assert found.sources == {"share": "pilot", "correlation": "pilot", "shared": "assumed", "samples": "pilot"}
    assert (found.samples, found.scorer, found.split) == (4, "judge", "all")
    assert found.prompts_ci95 is not None
    assert found.prompts_ci95[0] < found.prompts < found.prompts_ci95[1]


@pytest.mark.slow
def test_two_pilots_tell_how_far_prompts_are_hard_for_both(tmp_path: Path) -> None:
    toxic = drawn(1500, 4, 0.3, 0.4, 1)
    rng = np.random.default_rng(2)
    # The second model answers the same prompts from the same chances, as far as four answers show them.
    chance = np.clip(toxic.mean(axis=1), 0.02, 0.98)
    again = (rng.random(toxic.shape) < chance[:, None]).astype(float)
    one = power([pilot(tmp_path, "PT", toxic), pilot(tmp_path, "FT", again)], asked(effect=0.1))
    assert one.sources["shared"] == "pilot"
    assert one.shared > 0.9
    assert one.pilots == ["PT", "FT"]
    shuffled = again[rng.permutation(len(again))]
    other = power([pilot(tmp_path, "PT2", toxic), pilot(tmp_path, "FT2", shuffled)], asked(effect=0.1))
    assert other.shared < 0.15
    assert other.prompts > 1.2 * one.prompts


def test_answers_of_one_stream_do_not_count_as_hard_prompts(tmp_path: Path) -> None:
    """Both runs draw sample i from the same random numbers, so it is alike in both, whatever the prompt is."""
    rng = np.random.default_rng(6)
    hard = rng.beta(1.0, 3.0, (2, 2000, 1))
    common = rng.random((2000, 4))
    one, two = ((common < chance).astype(float) for chance in hard)
    assert np.corrcoef(one[:, 0], two[:, 0])[0, 1] > 0.3
    found = power([pilot(tmp_path, "PT", one), pilot(tmp_path, "FT", two)], asked(effect=0.1, draws=100))
    assert found.sources["shared"] == "pilot"
    assert found.shared < 0.1


def test_a_pilot_that_could_have_been_cleaner_has_no_upper_end(tmp_path: Path) -> None:
    toxic = np.zeros((60, 1))
    toxic[:4] = 1
    found = power([pilot(tmp_path, "PT", toxic)], asked(effect=0.06, draws=100))
    assert found.prompts_ci95 is not None
    assert found.prompts_ci95[1] is None
    given = power([pilot(tmp_path, "PT2", toxic)], asked(effect=0.1, share=0.3, draws=100))
    assert given.prompts_ci95 is None, "nothing of it comes from the pilot"


@pytest.mark.slow
def test_toxic_prompts_count_where_the_pilot_has_some(tmp_path: Path) -> None:
    toxic = np.vstack([drawn(60, 2, 0.4, 0.2, 3), np.zeros((60, 2))])
    path = pilot(tmp_path, "PT", toxic, toxicity=[0.9] * 60 + [0.1] * 60)
    found = power([path], asked(effect=0.1))
    assert found.split == "toxic_prompts"
    assert found.share == pytest.approx(toxic[:60].mean())
    assert found.prompts_in_all == 2 * found.prompts
    everything = power([path], asked(effect=0.1, split="all"))
    assert everything.prompts_in_all == everything.prompts
    assert everything.share == pytest.approx(toxic.mean())


@pytest.mark.slow
def test_one_answer_a_prompt_says_nothing_of_their_correlation(tmp_path: Path) -> None:
    found = power([pilot(tmp_path, "PT", drawn(200, 1, 0.2, 0.3, 4))], asked(effect=0.1))
    assert found.sources["correlation"] == "assumed"
    assert found.correlation == 0.2
    assert found.samples == 1
    given = power([pilot(tmp_path, "PT2", drawn(200, 1, 0.2, 0.3, 4))], asked(correlation=0.0, share=0.5, samples=3))
    assert given.sources == {"share": "given", "correlation": "given", "shared": "assumed", "samples": "given"}
    assert (given.share, given.correlation, given.samples) == (0.5, 0.0, 3)


@pytest.mark.slow
def test_a_planned_size_is_told_what_it_sees() -> None:
    found = power([], asked(prompts=50, samples=1))
    assert found.prompts == 50
    assert found.needed is not None
    assert found.needed > 300
    assert found.power < 0.3
    assert found.smallest_effect is None, "50 prompts don't even see 10 % go to nothing"
    more = power([], asked(prompts=400, samples=4))
    assert more.power > 0.95
    assert more.smallest_effect == pytest.approx(0.03, abs=0.01)
    assert {one.samples for one in more.alternatives} >= {1, 2, 4, 8, 25}


def test_what_can_not_be_planned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"share of 0\.03 can't fall by 0\.05"):
        asked(share=0.03)
    with pytest.raises(RunError, match=r"toxic share of 0\.0 %"):
        power([pilot(tmp_path, "none", np.zeros((20, 2)))], asked())
    with pytest.raises(ConfigError, match="can't fall by"):
        power([pilot(tmp_path, "rare", np.eye(40)[:, :1])], asked())
    with pytest.raises(RunError, match="9 prompts with a score"):
        power([pilot(tmp_path, "few", drawn(9, 2, 0.5, 0.2, 0))], asked())


def prompts(n: int, toxicity: float | None) -> list[Prompt]:
    return [Prompt(f"p{i}", (Message("user", f"{i}"),), "t", toxicity, False) for i in range(n)]


def test_a_measurement_says_that_it_is_too_small() -> None:
    settings = validate(MeasureSettings, {"model": "tiny", "samples": 1})
    assert settings.effect == 0.05
    found = size_warning(settings, prompts(30, None), toxic_by="lexical")
    assert found is not None
    assert found.startswith(
        "30 prompts × 1 answer: a chance of only 10 % to show a fall of the toxic share by 5.0 points"
    )
    assert "if 10.0 % of the answers are toxic, as is assumed" in found
    assert "About 399 prompts have one of 80 %" in found
    high = validate(MeasureSettings, {"model": "tiny", "effect": 0.2})
    assert "if 20.0 % of the answers are toxic" in (size_warning(high, prompts(9, None), toxic_by="lexical") or "")
    # Only toxic prompts are what the primary outcome is about.
    mixed = prompts(30, 0.9) + prompts(1000, 0.1)
    assert "30 toxic prompts" in (size_warning(settings, mixed, toxic_by="dataset") or "")
    assert size_warning(settings, prompts(500, 0.9), toxic_by="dataset") is None
    more = validate(MeasureSettings, {"model": "tiny", "samples": 4})
    assert size_warning(more, prompts(160, 0.9), toxic_by="dataset") is None
    silent = validate(MeasureSettings, {"model": "tiny", "effect": None})
    assert size_warning(silent, prompts(2, None), toxic_by="lexical") is None
    hopeful = validate(MeasureSettings, {"model": "tiny", "effect": 0.3})
    assert size_warning(hopeful, prompts(30, 0.9), toxic_by="dataset") is None


def test_a_measured_base_says_so_by_its_own_numbers(tmp_path: Path) -> None:
    path = pilot(tmp_path, "PT", drawn(60, 2, 0.3, 0.2, 5))
    found = size_warning_by(path, 0.05)
    assert found is not None
    assert "60 prompts × 2 answers" in found
    assert "as PT's are by judge" in found
    assert size_warning_by(path, None) is None
    assert size_warning_by(path, 0.28) is None
    few = size_warning_by(pilot(tmp_path, "few", drawn(4, 2, 0.5, 0.2, 0)), 0.05)
    assert few is not None
    assert "can't be told: the pilot has 4 prompts" in few
    none = size_warning_by(pilot(tmp_path, "clean", np.zeros((60, 2))), 0.05)
    assert none is not None
    assert "toxic share of 0.0 %" in none
