"""``rewardlm steer``: models that are changed while they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.cli.show import print_json
from rewardlm.config import SteerFitSettings, SteerImportSettings


@takes(SteerFitSettings)
def fit(
    given: Given[SteerFitSettings],
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", help="Folder for what is found; one that is there is replaced.")],
    as_json: options.AsJson = False,
) -> None:
    """Find how to steer MODEL by --method, and write it to --out, for rewardlm measure --steer."""
    settings = given.settings(model=model)
    from rewardlm.preflight import check

    check(settings, out, kind="steer")
    from rewardlm.progress import say, stage
    from rewardlm.steering.fit import fit as fit_method
    from rewardlm.steering.summary import sentences
    from rewardlm.training.sft import finetune

    with stage(f"steer fit {settings.method}") as progress:
        found = fit_method(settings, out, finetune=finetune, report=progress.report)
    record = found.record
    if as_json:
        shown = record.model_dump(mode="json", exclude={"environment": True, "run": {"prompt_hashes"}})
        print_json({"steer": str(out), **shown})
        return
    for sentence in sentences(record):
        say(sentence)
    print(out)


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of rewardlm steer fit.")],
    out: Annotated[Path, typer.Option("--out", help="The file: .safetensors, or .gguf for llama.cpp.")],
    as_json: options.AsJson = False,
) -> None:
    """Write the vectors in DIR for other programs: as safetensors, or as a control vector of llama.cpp."""
    from rewardlm.steering.record import read_record

    record = read_record(folder)
    # Torch is imported only from here on: a folder that isn't there is told at once.
    from rewardlm.steering.exchange import export as write

    write(folder, out)
    if as_json:
        print_json({"file": str(out), "method": record.method, "strength": record.strength})
    else:
        print(out)


@takes(SteerImportSettings)
def import_(
    given: Given[SteerImportSettings],
    model: options.Model,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A control vector of llama.cpp (.gguf).")],
    out: Annotated[Path, typer.Option("--out", help="Folder for measure --steer; one that is there is replaced.")],
    as_json: options.AsJson = False,
) -> None:
    """Make a control vector of llama.cpp into a folder with which measure --steer can steer MODEL."""
    settings = given.settings(model=model, file=file)
    from rewardlm.preflight import check

    check(settings, out, kind="steer")
    from rewardlm.steering.exchange import import_control_vector

    found = import_control_vector(settings, out)
    if as_json:
        print_json({"steer": str(out), **found.record.model_dump(mode="json", exclude={"environment": True})})
    else:
        print(out)
