"""The judge of new answers: the sample's own, where it can be asked here."""

from __future__ import annotations

from rewardlm.errors import RewardLMError
from rewardlm.interpreting.mechanistic.word_contrast import ToxicityFunction
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.scorer import Scorer, score_texts


def judge_of(name: str, device: str) -> tuple[ToxicityFunction, list[str]]:
    """The sample's own judge; ``starter`` where that one is asked over HTTP or isn't here."""
    why = "it is asked over HTTP"
    if name.partition(":")[0] not in ("perspective", "endpoint"):
        try:
            return toxicity_by(load_scorer(name, device=device)), []
        except RewardLMError as error:
            why = str(error)
    return (
        toxicity_by(load_scorer("starter", device=device)),
        [f"Answers under changes of the model were judged by starter, since {name} can’t be asked here ({why})."],
    )


def toxicity_by(scorer: Scorer) -> ToxicityFunction:
    """P(toxic) of texts by the scorer's main label."""
    label = scorer.labels[0]
    return lambda texts: [verdict.values.get(label) for verdict in score_texts(scorer, texts)]
