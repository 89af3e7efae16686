"""``rewardlm label``: people say which answers are toxic, and their labels come and go."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer

from rewardlm.cli import options, pages
from rewardlm.cli.flags import Given, takes
from rewardlm.cli.show import print_json
from rewardlm.config import LabelSettings
from rewardlm.errors import ConfigError

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder of rewardlm label open.")]


@takes(LabelSettings, words="runs")
def open_(
    given: Given[LabelSettings],
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN... [KEY=VALUE]...", help="Measured runs whose answers are labelled.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the labels; the same command goes on with it.")],
    port: pages.Port = 0,
    host: pages.Host = "127.0.0.1",
    no_browser: pages.NoBrowser = False,
    no_page: Annotated[bool, typer.Option("--no-page", help="Choose the answers and open no page.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As --no-page, with one JSON object on stdout.")] = False,
) -> None:
    """Choose answers of runs and show them on a local page, to be labelled by keyboard; models' names stay hidden."""
    settings = given.settings()
    from rewardlm.runs import measured_in

    measured = measured_in([Path(run) for run in runs])
    from rewardlm.measuring.label_sample import label_folder

    folder = label_folder(settings, measured, out)
    if as_json:
        drawn = Counter(folder.runs[item.run].label for item in folder.items)
        print_json({"folder": str(out), "items": len(folder.items), "runs": drawn})
        return
    if no_page:
        typer.echo(f"{len(folder.items)} answers to label in {out}")
        return
    with pages.serving("label", host, others="can read and label"):
        from rewardlm.labelling.serve import serve

        serve(folder, host=host, port=port, browser=not no_browser, say=typer.echo)


def export(
    folder: Folder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What is written: .csv, or .json for the others.")],
    form: Annotated[
        Literal["csv", "label-studio", "argilla"] | None,
        typer.Option("--format", help="By default csv, or label-studio for a .json."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Write the answers and their labels for other programs. The file has the texts, and no model's name."""
    from rewardlm.labelling.exchange import export as write
    from rewardlm.labelling.folder import LabelFolder

    ending = file.suffix.lower()
    chosen = form or ("label-studio" if ending == ".json" else "csv")
    wanted = ".csv" if chosen == "csv" else ".json"
    if ending != wanted:
        raise ConfigError(f"{file} is no file for {chosen}: expected a name that ends with {wanted}")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {file.parent}: make it, or name another file")
    opened = LabelFolder.open(folder)
    n = write(opened, file, chosen)
    if as_json:
        print_json({"file": str(file), "format": chosen, "items": len(opened.items), "labels": n})
    else:
        typer.echo(file)


def import_(
    folder: Folder,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .csv, or a .json of Label Studio or Argilla, with labels.")
    ],
    as_json: options.AsJson = False,
) -> None:
    """Add the labels in FILE to the folder. Items are known by their ids, as label export writes them."""
    from rewardlm.labelling.exchange import import_labels
    from rewardlm.labelling.folder import LabelFolder

    opened = LabelFolder.open(folder)
    with opened.alone():
        n = import_labels(opened, file)
    if as_json:
        print_json({"labels": n, "labellers": sorted(opened.said())})
    else:
        typer.echo(f"{n} labels added to {folder}")


def status(folder: Folder, as_json: options.AsJson = False) -> None:
    """How many answers are labelled, by whom, and how far labellers agree (Krippendorff's alpha)."""
    from rewardlm.labelling.folder import LabelFolder
    from rewardlm.labelling.status import status as status_of

    found = status_of(LabelFolder.open(folder))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    for line in found.lines():
        typer.echo(line)
