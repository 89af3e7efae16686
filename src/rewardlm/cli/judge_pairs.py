"""``rewardlm judge train-pairs`` and ``evaluate-pairs``: the judge of (prompt, answer) pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.cli.show import print_json, show_judge
from rewardlm.judges.settings import PairEvaluateSettings, PairJudgeSettings


@takes(PairJudgeSettings)
def train_pairs(given: Given[PairJudgeSettings], out: options.Out, as_json: options.AsJson = False) -> None:
    """Teach an encoder to tell counter-narratives from agreement, refusals and answers that miss the topic."""
    settings = given.settings()
    from rewardlm.preflight import check

    check(settings)
    from rewardlm.judges.pairs import train_pair_judge
    from rewardlm.progress import say, stage

    with stage(f"train a judge of pairs on {settings.encoder}") as progress:
        run = train_pair_judge(settings, out, report=progress.report, say=say)
    show_judge(run.path, as_json=as_json)


@takes(PairEvaluateSettings)
def evaluate_pairs(
    given: Given[PairEvaluateSettings],
    judge: Annotated[str, typer.Argument(metavar="NAME", help="starter_pairs, or a folder made by train-pairs.")],
    card: Annotated[bool, typer.Option("--card", help="Add the figures to the judge's own card.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """What a judge of pairs gets right and wrong on dialogues."""
    settings = given.settings(judge=judge)
    from rewardlm.preflight import check

    check(settings)
    from rewardlm.judges.card import add_to_card, pair_section
    from rewardlm.judges.pair_evaluation import evaluate_on
    from rewardlm.progress import stage
    from rewardlm.scoring.pairs import folder_of
    from rewardlm.terminal import plain

    with stage(f"evaluate {settings.judge} on {settings.dialogues}"):
        figures = evaluate_on(settings)
    name = Path(settings.dialogues).name
    if card:
        add_to_card(folder_of(settings.judge), {name: figures})
    if as_json:
        print_json({"judge": settings.judge, "dialogues": settings.dialogues, **figures})
    else:
        typer.echo("\n".join(pair_section(name, figures, plain)))
