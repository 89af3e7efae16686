"""``rewardlm interpret``: what training changed inside."""

from __future__ import annotations

from pathlib import Path

import typer

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.config import InterpretSettings


@takes(InterpretSettings, words="runs")
def interpret(
    given: Given[InterpretSettings], runs: options.Runs, out: options.Out, as_json: options.AsJson = False
) -> None:
    """Look inside the models of RUNs: drift, attribution, similarity, residual stream; report shows --out.

    An experiment stands for its measurements. Settings: attribution.steps, attribution.baseline, parting_kl, threshold,
    batch_tokens, n_resamples.
    """
    settings = given.settings()
    from rewardlm.runs import measured_in

    measured = measured_in([Path(run) for run in runs], kinds=("measure",))
    from rewardlm.interpreting.interpretation import KIND
    from rewardlm.interpreting.interpretation import interpret as look_inside
    from rewardlm.progress import stage

    with stage("interpret") as progress:
        run = look_inside(measured, settings, out, report=progress.report)
    if as_json:
        import json

        typer.echo(json.dumps(run.load(KIND), allow_nan=False))
    else:
        from rewardlm.cli.show import console
        from rewardlm.reporting.interpretation import load as load_found
        from rewardlm.reporting.interpretation_tables import print_interpretation

        print_interpretation(load_found(run), console())
        typer.echo(f"\nFor the page: rewardlm report {' '.join([*runs, str(out)])} --out report.html")
