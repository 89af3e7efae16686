"""``rewardlm judge``: list judges, train one, evaluate some."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import judge_pairs, options

app = typer.Typer(
    help="List, train and evaluate judges.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)


@app.command("list")
def list_(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]... [KEY=VALUE]...", help="These alone; default: all.")
    ] = None,
    folder: Annotated[Path | None, typer.Option("--dir", help="Also look here for judges that were trained.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Make the figures now instead of showing known ones.")
    ] = False,
    suite: Annotated[list[str] | None, typer.Option("--suite", help="With --measure: on what; may come twice.")] = None,
    limit: options.Limit = None,
    out: Annotated[Path | None, typer.Option("--out", help="With --measure: a JSON file to write figures to.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")] = False,
    config: options.Config = None,
    seed: options.Seed = None,
    device: options.Device = None,
) -> None:
    """Every judge that can be used here, with its figures, and what it is at chance on."""
    chosen, overrides = _split(names)
    from rewardlm.config import build
    from rewardlm.judges.settings import JudgeListSettings

    flags = {
        "names": chosen or None, "dir": folder, "measure": measure or None, "suite": suite or None, "limit": limit,
        "seed": seed, "device": device,
    }  # fmt: skip
    settings = build(JudgeListSettings, file=config, flags=flags, overrides=overrides)
    if out is not None and not settings.measure:
        raise typer.BadParameter("--out goes with --measure: there are no new figures to write")
    from rewardlm.judges.listing import list_judges

    if settings.measure:
        from rewardlm.progress import stage

        with stage("measure the judges") as progress:
            judges = list_judges(settings, figures_file=out, report=progress.report)
    else:
        judges = list_judges(settings)
    if as_json:
        _print_json({"judges": judges})
    else:
        from rewardlm.reporting.judge_tables import console, print_judges

        print_judges(judges, console())


@app.command("train")
def train(
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[SRC]... [KEY.SUB=VALUE]...", help="Further sources; any setting.")
    ] = None,
    *,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="SRC…", help="starter, rtp, toxigen …, a file or a folder; several may follow."),
    ] = None,
    out: options.Out,
    encoder: Annotated[str | None, typer.Option("--encoder", help="minilm, a hub id or a folder.")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the texts.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Its peak.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Texts of one step.")] = None,
    lora_r: Annotated[int | None, typer.Option("--lora-r", help="Rank of the adapter.")] = None,
    limit: options.Limit = None,
    config: options.Config = None,
    seed: options.Seed = None,
    device: options.Device = None,
) -> None:
    """Fine-tune an encoder into a judge of several labels, from sources that each know some of them."""
    sources, overrides = _split(more)
    if sources and not data:
        raise typer.BadParameter(f"{sources[0]!r}: sources stand after --data")
    from rewardlm.config import build
    from rewardlm.judges.settings import JudgeTrainSettings

    flags = {
        "data": [*(data or []), *sources] or None, "encoder": encoder, "epochs": epochs, "learning_rate": learning_rate,
        "batch_size": batch_size, "lora.r": lora_r, "limit": limit, "seed": seed, "device": device,
    }  # fmt: skip
    settings = build(JudgeTrainSettings, file=config, flags=flags, overrides=overrides)
    from rewardlm.judges.train import train_judge
    from rewardlm.progress import say, stage

    with stage(f"train a judge on {settings.encoder}") as progress:
        run = train_judge(settings, out, report=progress.report, say=say)
    typer.echo(run.path)


@app.command("evaluate")
def evaluate(
    judges: Annotated[
        list[str], typer.Argument(metavar="NAME[,NAME…] [KEY=VALUE]...", help="Judges, named as after --scorer.")
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", metavar="hatecheck|rtp|jigsaw|FILE", help="On what; may come several times."),
    ] = None,
    label: Annotated[str | None, typer.Option("--label", help="Default: the main one, or hate on hate suites.")] = None,
    limit: options.Limit = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory of the run; the same again goes on where it stopped.")
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="Add the figures to the judges' own cards.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")] = False,
    config: options.Config = None,
    seed: options.Seed = None,
    device: options.Device = None,
) -> None:
    """What judges get right on a suite, and wrong: ranking, calibration, bias by group, counter-speech, speed.

    FILE is a csv or jsonl with text and label (0 or 1) or score (0 to 1), or any data set that judge train reads.
    """
    names, overrides = _split(judges)
    from rewardlm.config import build
    from rewardlm.judges.settings import JudgeEvaluateSettings

    flags = {
        "judge": names or None, "suite": suite or None, "label": label, "limit": limit, "seed": seed, "device": device,
    }  # fmt: skip
    settings = build(JudgeEvaluateSettings, file=config, flags=flags, overrides=overrides)
    from rewardlm.judges.card import add_to_card, card_folder
    from rewardlm.judges.evaluate import evaluate as run_evaluation
    from rewardlm.judges.results import figures_of
    from rewardlm.progress import say, stage

    cards = {name: card_folder(name) for name in settings.judge} if card else {}
    with stage(f"evaluate {', '.join(settings.judge)}") as progress:
        found = run_evaluation(settings, out, report=progress.report)
    for result in found["results"]:
        if result["trained_on_this_file"]:
            say(f"{result['judge']} was trained on the file of suite {result['suite']}: its figures there flatter it")
    for name, folder in cards.items():
        mine = [result for result in found["results"] if result["judge"] == name]
        speed = next((result["speed"] for result in mine if result["speed"]), None)
        add_to_card(folder, {result["suite"]: figures_of(result) for result in mine}, speed)
    if as_json:
        _print_json(found if len(found["results"]) != 1 else found["results"][0])
    else:
        from rewardlm.reporting.judge_tables import console, print_evaluation

        print_evaluation(found, console())


app.command("train-pairs")(judge_pairs.train_pairs)
app.command("evaluate-pairs")(judge_pairs.evaluate_pairs)


def _split(items: list[str] | None) -> tuple[list[str], list[str]]:
    """Names or sources, and ``key=value`` overrides. A file whose name holds ``=`` is a name."""
    overrides = [item for item in items or [] if "=" in item and not Path(item).exists()]
    return [item for item in items or [] if item not in overrides], overrides


def _print_json(value: object) -> None:
    import json

    typer.echo(json.dumps(value, allow_nan=False))
