"""``rewardlm judge migrate``: from an old judge's stored scores to another judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.cli.show import print_json
from rewardlm.judges.settings import JudgeMigrateSettings


@takes(JudgeMigrateSettings)
def migrate(
    given: Given[JudgeMigrateSettings],
    scored: Annotated[str, typer.Argument(metavar="SCORED", help="A table of texts with the old judge's scores.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for thresholds.yaml and the page migration.html.")],
    as_json: options.AsJson = False,
) -> None:
    """How a new judge ranks and scores texts that an old one has scored, and which of its thresholds stand for the old.

    The old judge isn't asked: its stored scores are enough.
    """
    settings = given.settings(scored=scored)
    from rewardlm.judges.migrate import KIND
    from rewardlm.judges.migrate import migrate as run_migration
    from rewardlm.preflight import check

    check(settings, out, kind=KIND)
    from rewardlm.progress import stage
    from rewardlm.reporting.migration_page import write_migration_page

    with stage(f"migrate to {settings.to}") as progress:
        found = run_migration(settings, out, report=progress.report)
    page = write_migration_page(found, out / "migration.html")
    if as_json:
        print_json({**{name: value for name, value in found.items() if name != "picture"}, "page": str(page)})
    else:
        from rewardlm.reporting.judge_tables import console, print_migration

        print_migration(found, page, console())
