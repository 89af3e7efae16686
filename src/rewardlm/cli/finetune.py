"""``rewardlm finetune``: counter-narrative fine-tuning."""

from __future__ import annotations

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.cli.show import show_training
from rewardlm.config import FinetuneSettings


@takes(FinetuneSettings)
def finetune(
    given: Given[FinetuneSettings], model: options.Model, out: options.Out, as_json: options.AsJson = False
) -> None:
    """Teach MODEL to answer hate with counter-narratives: a LoRA adapter in --out/adapter."""
    settings = given.settings(model=model)
    from rewardlm.preflight import check

    check(settings, out, kind="finetune")
    from rewardlm.progress import is_main, say, stage
    from rewardlm.training.sft import finetune as run_finetune

    with stage(f"finetune {settings.model}") as progress:
        run = run_finetune(settings, out, report=progress.report, say=say)
    if is_main():
        show_training(run, as_json=as_json)
