"""``rewardlm measure``: sample answers and judge them."""

from __future__ import annotations

from typing import Annotated

import typer

from rewardlm.cli import completion, options
from rewardlm.cli.flags import Given, takes
from rewardlm.config import MEASURE_PRESETS, MeasureSettings
from rewardlm.errors import ConfigError, did_you_mean


@takes(MeasureSettings)
def measure(
    given: Given[MeasureSettings],
    model: options.Model,
    out: options.Out,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="|".join(MEASURE_PRESETS),
            help="Settings that belong together; flags win.",
            autocompletion=completion.presets(lambda: MEASURE_PRESETS),
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Send the prompts to MODEL, judge its answers, and write both to --out."""
    if preset is not None and preset not in MEASURE_PRESETS:
        near = did_you_mean(preset, MEASURE_PRESETS, first=True)
        raise ConfigError(f"--preset {preset!r}: {near}expected one of {', '.join(MEASURE_PRESETS)}")
    settings = given.settings(MEASURE_PRESETS[preset] if preset else None, model=model)
    from rewardlm.preflight import check

    check(settings, out, kind="measure")
    from rewardlm.cli.show import show_run
    from rewardlm.measuring.judging import cut_short
    from rewardlm.measuring.meter import measure as run_meter
    from rewardlm.progress import is_main, say, stage

    with stage(f"measure {settings.label or settings.model}") as progress:
        measured = run_meter(settings, out, report=progress.report, say=say)
    if not is_main():
        return
    for sentence in cut_short(measured):
        say(sentence)
    show_run(out, as_json=as_json)
