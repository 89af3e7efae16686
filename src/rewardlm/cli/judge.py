"""``rewardlm judge``: list judges, train one, evaluate some, serve some."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.cli.show import print_json, show_judge
from rewardlm.errors import ConfigError
from rewardlm.judges.settings import (
    JudgeEvaluateSettings,
    JudgeListSettings,
    JudgeServeSettings,
    JudgeTrainSettings,
)


@takes(JudgeListSettings, words="names")
def list_(
    given: Given[JudgeListSettings],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]... [KEY=VALUE]...", help="Only these; default: all.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="With --measure: a JSON file to write figures to.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Every judge that can be used here, with its figures, and where it does no better than chance."""
    settings = given.settings(names=names or None)
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
        print_json({"judges": judges})
    else:
        from rewardlm.reporting.judge_tables import console, print_judges

        print_judges(judges, console())


@takes(JudgeTrainSettings, words="sources")
def train(
    given: Given[JudgeTrainSettings],
    out: options.Out,
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="[SRC]... [KEY.SUB=VALUE]...", help="Further sources; any setting.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Fine-tune an encoder into a judge of several labels, on sources that each have some of these labels."""
    named = given.flags.get("data", [])
    if sources and not named:
        raise typer.BadParameter(f"{sources[0]!r}: put sources after --data")
    settings = given.settings(data=[*named, *(sources or [])] or None)
    from rewardlm.preflight import check

    check(settings)
    from rewardlm.judges.train import train_judge
    from rewardlm.progress import say, stage

    with stage(f"train a judge on {settings.encoder}") as progress:
        run = train_judge(settings, out, report=progress.report, say=say)
    show_judge(run.path, as_json=as_json)


@takes(JudgeEvaluateSettings, words="judges")
def evaluate(
    given: Given[JudgeEvaluateSettings],
    judges: Annotated[
        list[str], typer.Argument(metavar="NAME[,NAME…] [KEY=VALUE]...", help="Judges, named as for --scorer.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory of the run; run the same command again to resume it.")
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="Add the figures to the judges' own cards.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """What judges get right and wrong on a suite: ranking, calibration, bias by group, counter-speech, speed."""
    settings = given.settings(judge=judges or None)
    from rewardlm.preflight import check

    check(settings)
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
        print_json(found if len(found["results"]) != 1 else found["results"][0])
    else:
        from rewardlm.reporting.judge_tables import console, print_evaluation

        print_evaluation(found, console())


@takes(JudgeServeSettings, words="judges")
def serve(
    given: Given[JudgeServeSettings],
    judges: Annotated[
        list[str], typer.Argument(metavar="NAME[,NAME…] [KEY=VALUE]...", help="Judges, named as for --scorer.")
    ],
) -> None:
    """Answer requests in the formats of Perspective and of OpenAI's moderation, until Ctrl-C. Texts are not kept."""
    settings = given.settings(judge=judges or None)
    try:
        try:
            from rewardlm.serving.serve import serve as run_server
        except ModuleNotFoundError as error:
            if error.name not in ("fastapi", "starlette", "uvicorn", "h11", "prometheus_client"):
                raise
            raise ConfigError(f"judge serve needs the package {error.name}: pip install 'rewardlm[serve]'") from None
        from rewardlm.preflight import check

        check(settings)
        run_server(settings, say=typer.echo)
    except KeyboardInterrupt:
        # Before the server was up: there is nobody whom it still owes an answer.
        return
