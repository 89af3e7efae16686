"""``rewardlm rlaf``: reinforcement learning from automatic feedback."""

from __future__ import annotations

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.cli.show import show_training
from rewardlm.config import RlafSettings


@takes(RlafSettings)
def rlaf(given: Given[RlafSettings], model: options.Model, out: options.Out, as_json: options.AsJson = False) -> None:
    """Train MODEL against judges, with a KL penalty to the frozen reference: a LoRA adapter in --out/adapter."""
    settings = given.settings(model=model)
    from rewardlm.preflight import check

    check(settings, out, kind="rlaf")
    from rewardlm.progress import is_main, say, stage
    from rewardlm.training.rlaf import train

    with stage(f"rlaf {settings.algorithm} {settings.model}") as progress:
        run = train(settings, out, report=progress.report, say=say)
    if is_main():
        show_training(run, as_json=as_json)
