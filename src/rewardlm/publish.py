"""Publishes a trained adapter on the hub, with a card made from its runs: first a folder, then its upload.

The hub's own library has the key and sends the files. Nothing here reads a key, and errors are shortened to their kind.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils._validators import validate_repo_id

from rewardlm.errors import ConfigError, RunError, ServiceError
from rewardlm.measuring.comparison import Comparison
from rewardlm.reporting.model_card import Base, model_card
from rewardlm.runs import TRAININGS, Run, write_atomically

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def prepare(
    run: Run, repo: str, out: Path, *, measured: Sequence[Path] | None = None, licence: str | None = None
) -> Path:
    """Write what will be uploaded into ``out``: the adapter, its card, the comparison and the training's numbers.

    ``measured`` are the measurements to compare, the baseline first; None takes those of the training's experiment.
    Raises RunError for a training that is not finished, ConfigError for an invalid ``repo``.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise ConfigError(f"{repo!r} is not the name of a repository: expected OWNER/NAME") from None
    if "/" not in repo:
        raise ConfigError(f"{repo!r}: expected OWNER/NAME")
    if run.meta["kind"] not in TRAININGS:
        raise RunError(f"{run.path} is a run of kind {run.meta['kind']!r}: give a training ({', '.join(TRAININGS)})")
    adapter = run.adapter
    if not run.finished or not (adapter / "adapter_model.safetensors").exists():
        raise RunError(f"{run.path} is not finished: run its command again first")
    base = _base(run)
    paths = _measured(run) if measured is None else list(measured)
    found: Comparison | None = None
    rewards: dict[str, Any] = {}
    if paths:
        from rewardlm.measuring.compare import compare

        found = compare(paths)
        rewards = {
            model.label: Run.open(path).meta.get("rewards") for model, path in zip(found.models, paths, strict=True)
        }
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(adapter / "adapter_model.safetensors", out / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    # It holds the base's path on this machine.
    config["base_model_name_or_path"] = base.name
    write_atomically(out / "adapter_config.json", json.dumps(config, indent=1).encode())
    records = "".join(json.dumps(record) + "\n" for record in run.read("metrics"))
    write_atomically(out / "metrics.jsonl", records.encode())
    if found is not None:
        write_atomically(out / "comparison.json", json.dumps(found.to_dict(), indent=1, allow_nan=False).encode())
    about = ModelCardData(
        base_model=base.name if base.on_hub else None,
        library_name="peft",
        pipeline_tag="text-generation",
        license=licence,
        tags=["rewardlm", "lora", "detoxification", run.meta["kind"]],
    )
    card = f"---\n{about.to_yaml()}\n---\n\n{model_card(run, repo, base, found, rewards)}"
    write_atomically(out / "README.md", card.encode("utf-8", "replace"))
    return out


def upload(folder: Path, repo: str, *, private: bool) -> str:
    """Create ``repo`` on the hub if it isn't there, and upload ``folder`` in one commit. Returns its address.

    Raises ServiceError if the hub can't be reached, or refuses.
    """
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Adapter, card and numbers by RewardLM"
        )
    except LocalTokenNotFoundError:
        raise ServiceError("the hub needs a key: log in with `hf auth login`, or set HF_TOKEN") from None
    except OfflineModeIsEnabled:
        raise ServiceError("HF_HUB_OFFLINE is set: unset it to upload, or use --dry-run") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        what = {401: "it does not know the key", 403: "the key may not write there"}.get(
            status or 0, f"status {status}"
        )
        raise ServiceError(f"the hub refused {repo}: {what}; the folder is kept in {folder}") from None
    except OSError as error:
        raise ServiceError(f"can't reach the hub ({type(error).__name__}); the folder is kept in {folder}") from None
    return str(done.repo_url)


def _base(run: Run) -> Base:
    """The base model by a name that others know: its hub id, else the last part of its path."""
    from rewardlm.packaged import SMOLLM2_HUB

    spec, source = str(run.meta.get("model", "")), str(run.meta.get("model_source", "not recorded"))
    if spec == "smollm2-135m":
        return Base(SMOLLM2_HUB[0], True, source)
    if _HUB_ID.fullmatch(spec) and not Path(spec).exists():
        return Base(spec, True, source)
    name = Path(spec).name or "an unnamed model"
    return Base(name, False, "built into RewardLM" if spec == "tiny" else "a local folder of the adapter's author")


def _measured(run: Run) -> list[Path]:
    """The experiment's measurements of the base and of this training; none outside an experiment."""
    home = run.path.absolute().parent.parent
    pair = [home / "measure" / "PT", home / "measure" / run.path.absolute().name]
    return pair if all((path / "run.json").exists() and Run.open(path).finished for path in pair) else []
