"""recipes/ is what made the shipped judges: their records hold the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewardlm.config import build
from rewardlm.judges import pairs, train
from rewardlm.judges.settings import JudgeTrainSettings, PairJudgeSettings
from rewardlm.scoring.record import read_record, shipped_folder

RECIPES = Path(__file__).parents[2] / "recipes"


def command_of(recipe: Path) -> str:
    if "pairs" in recipe.stem:
        return pairs._command(build(PairJudgeSettings, file=recipe))
    return train._command(build(JudgeTrainSettings, file=recipe))


@pytest.mark.parametrize("name", ["starter", "starter-large", "witness", "starter_pairs"])
def test_a_recipe_is_what_made_the_judge(name: str) -> None:
    folder = shipped_folder(name)
    assert folder is not None
    record = read_record(folder)
    assert record is not None
    assert command_of(RECIPES / f"{name}.yaml") == record.command


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_read(recipe: Path) -> None:
    assert command_of(recipe).startswith("rewardlm judge train")
