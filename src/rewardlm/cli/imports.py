"""``rewardlm import``: tables and logs that other tools made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.config import ImportSettings
from rewardlm.errors import DataError


@takes(ImportSettings)
def import_(
    given: Given[ImportSettings],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .csv, .jsonl or .parquet; lm-eval samples; a garak report.")
    ],
    out: options.Out,
    as_json: options.AsJson = False,
) -> None:
    """Turn a table of answers and scores into a run that compare and report understand.

    FILE has one row per answer (columns prompt, response, prompt_toxicity, scores.NAME, or others by --map), or is an
    export by rewardlm, lm-evaluation-harness's samples_TASK_TIME.jsonl, or garak's report.jsonl. From the last two,
    --map scores.NAME=METRIC also takes a metric that isn't known to measure toxicity.
    """
    settings = given.settings()
    from rewardlm.cli.show import show_run
    from rewardlm.data.bad_lines import with_other_lines
    from rewardlm.measuring.imported import import_table, lacks_pairs
    from rewardlm.progress import stage

    try:
        run = import_table(file, out, label=settings.label, mapping=settings.map)
    except DataError as error:
        raise with_other_lines(error, file) from None
    for note in run.meta.get("notes", []):
        typer.echo(f"note: {note}", err=True)
    if not run.meta["scorers"]:
        typer.echo(f"note: the file has no scores: add some with rewardlm score {out} --scorer NAME", err=True)
    if settings.counter_narrative is not None and lacks_pairs(run):
        # Imported only here: it takes seconds, and many tables have no toxic prompt.
        from rewardlm.measuring.model_quality import judge_toxic_pairs

        with stage("counter-narratives") as progress:
            judge_toxic_pairs(run, settings, report=progress.report)
    show_run(out, as_json=as_json, notes=run.meta.get("notes", []))
