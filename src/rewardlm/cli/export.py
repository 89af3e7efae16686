"""``rewardlm export``: answers for other tools, tables for a paper, a task for another harness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.cli.show import print_json
from rewardlm.config import CompareSettings
from rewardlm.errors import ConfigError

_ROWS = (".parquet", ".jsonl", ".csv")
_TABLES = (".tex", ".md")
_TASKS = (".yaml", ".yml")


@takes(CompareSettings, words="runs")
def export(
    given: Given[CompareSettings],
    runs: options.Runs,
    out: Annotated[Path, typer.Option("--out", help="File to write; its suffix is the format.")],
    scorer: Annotated[str | None, typer.Option("--scorer", help="Only this judge (.tex and .md).")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Write runs for other tools. An experiment stands for its measurements.

    .parquet, .jsonl and .csv: one row per answer, with every score. .tex (booktabs) and .md: the comparison's tables.
    .yaml: a task for lm-evaluation-harness with the same prompts (in a .jsonl beside it) and sampling settings.
    Settings of the tables: threshold, inclusive, n_resamples.
    """
    settings = given.settings()
    from rewardlm.runs import expand

    folders = [Path(run) for run in runs]
    suffix = out.suffix.lower()
    if suffix not in (*_ROWS, *_TABLES, *_TASKS):
        known = ", ".join((*_ROWS, *_TABLES, ".yaml"))
        raise ConfigError(f"--out {out}: the suffix is the format, one of {known}; got {suffix or 'none'}")
    if scorer is not None and suffix not in _TABLES:
        raise ConfigError(f"--scorer goes with {' and '.join(_TABLES)}: a {suffix} has every judge")
    # An experiment is replaced by its runs with answers. A training that is named itself stays, to be refused later.
    paths = [run.path for run in expand(folders) if run.path in folders or run.meta["kind"] in ("measure", "import")]
    if not paths:
        raise ConfigError(f"{', '.join(map(str, folders))}: no measured or imported run to export yet")
    notes = []
    if suffix in _ROWS:
        from rewardlm.measuring.exported import export_answers

        notes = export_answers(paths, out)
    elif suffix in _TASKS:
        from rewardlm.measuring.harness_task import export_task

        notes = [f"the task can't express {limit}" for limit in export_task(paths, out)]
    else:
        from rewardlm.measuring.compare import compare
        from rewardlm.measuring.exported import replacing
        from rewardlm.reporting.paper import as_latex, as_markdown

        text = (as_latex if suffix == ".tex" else as_markdown)(compare(paths, scorer=scorer, **settings.model_dump()))
        with replacing(out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        print_json({"file": str(out), "notes": list(notes)})
    else:
        typer.echo(out)
