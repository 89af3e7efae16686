"""``rewardlm score``: another judge for stored answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.config import ScoreSettings


@takes(ScoreSettings)
def score(
    given: Given[ScoreSettings],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A measurement or an import.")],
    as_json: options.AsJson = False,
) -> None:
    """Score the stored answers of RUN with another judge.

    Settings: max_failed_share; services.… says how perspective and endpoint are asked (docs/judges-online.md). Other
    numbers need a model of their own: similarity=true, perplexity=MODEL, counter_narrative=starter_pairs.
    """
    settings = given.settings()
    from rewardlm.preflight import check
    from rewardlm.runs import Run

    Run.open(run)
    check(settings)
    from rewardlm.cli.show import show_run
    from rewardlm.measuring.judging import cut_short, score_run
    from rewardlm.measuring.model_quality import add_quality_to
    from rewardlm.progress import say, stage

    for name in settings.scorer:
        with stage(f"score by {name}") as progress:
            score_run(
                run,
                name,
                device=settings.device,
                max_failed_share=settings.max_failed_share,
                services=settings.services,
                thresholds=settings.thresholds,
                matching=settings.matching,
                report=progress.report,
            )
    if settings.similarity or settings.perplexity or settings.counter_narrative:
        with stage("look closer") as progress:
            add_quality_to(run, settings, report=progress.report)
    for sentence in cut_short(Run.open(run)):
        say(sentence)
    show_run(run, as_json=as_json)
