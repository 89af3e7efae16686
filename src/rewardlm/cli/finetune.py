"""``rewardlm finetune``: counter-narrative fine-tuning."""

from __future__ import annotations

from typing import Annotated

import typer

from rewardlm.cli import options


def finetune(
    model: Annotated[str, typer.Argument(help="Hub id, path or alias (smollm2-135m, tiny).")],
    overrides: options.Overrides = None,
    *,
    out: options.Out,
    dialogues: Annotated[
        str | None, typer.Option("--dialogues", help="starter, dialoconan, a CONAN file, or a .jsonl of messages.")
    ] = None,
    adapter: options.Adapter = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the pairs.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Peak of the cosine schedule.")] = None,
    lora_r: Annotated[int | None, typer.Option("--lora-r", help="Rank of the adapter.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pairs an optimizer step.")] = None,
    limit: options.Limit = None,
    config: options.Config = None,
    seed: options.Seed = None,
    dtype: options.Dtype = None,
    load: options.Load = None,
    device: options.Device = None,
) -> None:
    """Teach MODEL to answer hate with counter-narratives: a LoRA adapter in --out/adapter."""
    from rewardlm.config import FinetuneSettings, build

    flags = options.model_flags(
        model,
        seed,
        dtype,
        load,
        device,
        adapter=adapter,
        dialogues=dialogues,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        limit=limit,
    )
    settings = build(FinetuneSettings, file=config, flags={**flags, "lora.r": lora_r}, overrides=overrides or [])
    from rewardlm.progress import is_main, say, stage
    from rewardlm.training.sft import finetune as run_finetune

    with stage(f"finetune {settings.model}") as progress:
        run = run_finetune(settings, out, report=progress.report, say=say)
    if is_main():
        typer.echo(run.path / "adapter")
