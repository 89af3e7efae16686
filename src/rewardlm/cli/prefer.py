"""``rewardlm prefer``: preference training on the model's own judged answers."""

from __future__ import annotations

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.cli.show import show_training
from rewardlm.config import PreferSettings


@takes(PreferSettings)
def prefer(
    given: Given[PreferSettings], model: options.Model, out: options.Out, as_json: options.AsJson = False
) -> None:
    """Train MODEL to prefer its own better answers, as judges see them: a LoRA adapter in --out/adapter."""
    settings = given.settings(model=model)
    from rewardlm.preflight import check

    check(settings, out, kind="prefer")
    from rewardlm.progress import is_main, say, stage
    from rewardlm.training.prefer import prefer as train

    with stage(f"prefer {settings.method} {settings.model}") as progress:
        run = train(settings, out, report=progress.report, say=say)
    if is_main():
        show_training(run, as_json=as_json)
