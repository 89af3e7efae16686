"""``rewardlm judge train-pairs`` and ``evaluate-pairs``: the judge of (prompt, answer) pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options

_DIALOGUES_HELP = "starter, dialoconan, a CONAN file, or a .jsonl of messages; with :validation, that part."


def train_pairs(
    overrides: options.Overrides = None,
    *,
    out: options.Out,
    dialogues: Annotated[str | None, typer.Option("--dialogues", metavar="SRC", help=_DIALOGUES_HELP)] = None,
    encoder: Annotated[str | None, typer.Option("--encoder", help="minilm, a hub id or a folder.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Each draws its examples anew.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Its peak.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pairs of one step.")] = None,
    lora_r: Annotated[int | None, typer.Option("--lora-r", help="Rank of the adapter.")] = None,
    config: options.Config = None,
    seed: options.Seed = None,
    device: options.Device = None,
) -> None:
    """Teach an encoder to tell counter-narratives from agreement, refusals and answers that miss the topic."""
    from rewardlm.config import build
    from rewardlm.judges.pairs import PairJudgeSettings

    flags = {
        "dialogues": dialogues, "encoder": encoder, "epochs": epochs, "learning_rate": learning_rate,
        "batch_size": batch_size, "lora.r": lora_r, "seed": seed, "device": device,
    }  # fmt: skip
    settings = build(PairJudgeSettings, file=config, flags=flags, overrides=overrides or [])
    from rewardlm.judges.pairs import train_pair_judge
    from rewardlm.progress import say, stage

    with stage(f"train a judge of pairs on {settings.encoder}") as progress:
        run = train_pair_judge(settings, out, report=progress.report, say=say)
    typer.echo(run.path)


def evaluate_pairs(
    judge: Annotated[str, typer.Argument(metavar="NAME", help="starter_pairs, or a folder made by train-pairs.")],
    overrides: options.Overrides = None,
    *,
    dialogues: Annotated[str | None, typer.Option("--dialogues", metavar="SRC", help=_DIALOGUES_HELP)] = None,
    limit: options.Limit = None,
    card: Annotated[bool, typer.Option("--card", help="Add the figures to the judge's own card.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")] = False,
    config: options.Config = None,
    seed: options.Seed = None,
    device: options.Device = None,
) -> None:
    """What a judge of pairs gets right on dialogues, and wrong."""
    from rewardlm.config import build
    from rewardlm.judges.card import add_to_card, pair_section
    from rewardlm.judges.pair_evaluation import PairEvaluateSettings, evaluate_on
    from rewardlm.scoring.pairs import folder_of

    flags = {"judge": judge, "dialogues": dialogues, "limit": limit, "seed": seed, "device": device}
    settings = build(PairEvaluateSettings, file=config, flags=flags, overrides=overrides or [])
    from rewardlm.progress import stage

    with stage(f"evaluate {settings.judge} on {settings.dialogues}"):
        figures = evaluate_on(settings)
    name = Path(settings.dialogues).name
    if card:
        add_to_card(folder_of(settings.judge), {name: figures})
    if as_json:
        import json

        typer.echo(json.dumps({"judge": settings.judge, "dialogues": settings.dialogues, **figures}, allow_nan=False))
    else:
        typer.echo("\n".join(pair_section(name, figures)))
