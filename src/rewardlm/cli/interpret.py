"""``rewardlm interpret``: what training changed inside."""

from __future__ import annotations

from typing import Annotated

import typer

from rewardlm.cli import options


def interpret(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN... [KEY=VALUE]...", help="Measurements, the baseline first.")
    ],
    out: options.Out,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, and nothing else there.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", help="Pairs of prompt and sample that are read.")] = None,
    scorer: Annotated[str | None, typer.Option("--scorer", help="The judge by which answers are toxic.")] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", metavar="input_x_gradient|integrated_gradients|occlusion|inseq:NAME"),
    ] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", help="Tokens of an answer that are explained.")] = None,
    config: options.Config = None,
    seed: options.Seed = None,
    dtype: options.Dtype = None,
    load: options.Load = None,
    device: options.Device = None,
) -> None:
    """Look inside the models of RUNs: drift, attribution, similarity, residual stream; report shows --out.

    An experiment stands for its measurements. Settings: attribution.steps, attribution.baseline, parting_kl, threshold,
    batch_tokens, n_resamples.
    """
    folders, overrides = options.split_overrides(runs)
    from rewardlm.config import InterpretSettings, build
    from rewardlm.runs import measured_in

    settings = build(
        InterpretSettings,
        file=config,
        flags={
            "limit": limit,
            "scorer": scorer,
            "attribution.method": method,
            "attribution.tokens": tokens,
            "seed": seed,
            "dtype": dtype,
            "load": load,
            "device": device,
        },
        overrides=overrides,
    )
    measured = measured_in(folders, kinds=("measure",))
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
        typer.echo(f"\nFor the page: rewardlm report {' '.join(map(str, [*folders, out]))} --out report.html")
