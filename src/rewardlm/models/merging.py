"""Merges an adapter into a model in full precision, as a folder that any tool can load, and measures what that changed.

The adapter is merged into the weights that it was trained on. For a base held in 4 or 8 bits (``--load``) these are the
weights that the codes stand for, because the adapter has also learnt to make up for their rounding. Merging *into*
quantised weights would round the adapter away, and isn't done.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from rewardlm.config import MergeSettings, QuantisationSettings
from rewardlm.data.dialogues import load_dialogues, pairs
from rewardlm.disk import nothing_left, writing
from rewardlm.errors import ConfigError, ModelError
from rewardlm.models.load import Policy, load_policy, resolve_device, resolve_dtype
from rewardlm.models.logprobs import vocabulary_kl
from rewardlm.models.lora import adapter_hash, load_adapter, set_strength
from rewardlm.models.quantised import full_weight, quantised_layers
from rewardlm.progress import ProgressCallback
from rewardlm.runs import training_of, write_atomically

RECORD = "merged"
# Where the two models are compared: so many positions in each of so many packaged answers.
_ANSWERS, _POSITIONS = 16, 16
_TOGETHER = 4  # answers in a pass: quantised weights are unpacked in each
# A change of more nats a token, or of a larger share of likeliest tokens, is a warning on another base.
_NOTABLE = 0.01


def merge(
    settings: MergeSettings, out: Path, *, say: Callable[[str], None], report: ProgressCallback | None = None
) -> dict[str, Any]:
    """Write ``settings.model`` with ``settings.adapter`` merged into the folder ``out``, in ``settings.dtype`` (auto:
    float32), and return its record, which lies beside the weights. What the adapter adds is multiplied by
    ``settings.adapter_strength`` first.

    ``say`` gets a sentence on how far the folder's next-token distributions are from those of the model that was
    trained: the adapter unmerged, on the base in its training's precision as far as that is known. A notable
    difference is a warning where another base was merged into. Raises ConfigError without an adapter, and ModelError
    where ``out`` holds something else or the adapter's strength can't be set.
    """
    if settings.adapter is None:
        raise ConfigError("nothing to merge: name the adapter with --adapter")
    if out.exists() and not (out.is_dir() and ((out / f"{RECORD}.json").exists() or not any(out.iterdir()))):
        raise ModelError(f"{out} exists and was not written by merge: choose another --out")
    trained_in = _trained_in(settings)
    dtype = resolve_dtype("float32" if settings.dtype == "auto" else settings.dtype, resolve_device(settings.device))
    steps = _Steps(report)
    steps.next("loading the base")
    # Merged in float32 whatever it is saved in: a small product of two matrices is below half precision's rounding.
    plain = load_policy(settings.model_copy(update={"load": None, "dtype": "float32"}))
    if settings.load is None and trained_in["load"] is None:
        # The adapter was trained on the very weights that it is merged into, so they are read once.
        _put_on(plain, settings)
        steps.next("reading answers with the adapter")
        before = logits_of_answers(plain)
    else:
        original = load_policy(settings.model_copy(update=trained_in))
        _put_on(original, settings)
        steps.next("reading answers with the adapter")
        before = logits_of_answers(original)
        if settings.load is not None:
            held = original if trained_in["load"] == settings.load else load_policy(settings)
            _fill(plain, held)
        _put_on(plain, settings)
    steps.next("merging")
    plain.model = plain.model.merge_and_unload(safe_merge=True).to(dtype)
    steps.next("reading answers with merged weights")
    change = change_between(before, logits_of_answers(plain))
    steps.next("writing")
    record = {
        "model": settings.model,
        "model_source": plain.source,
        "adapter_hash": adapter_hash(settings.adapter),
        "adapter_strength": settings.adapter_strength,
        "base": settings.load or "full precision",
        "trained_on": trained_in["load"] or "full precision",
        "dtype": str(dtype).removeprefix("torch."),
        **change,
    }
    _write(plain, out, record)
    steps.next("")
    _tell(record, say)
    return record


class _Steps:
    """Reports which of its five steps the merge is at."""

    def __init__(self, report: ProgressCallback | None) -> None:
        self._report, self._done = report, 0

    def next(self, text: str) -> None:
        if self._report is not None:
            self._report(self._done, 5, text)
        self._done += 1


def _trained_in(settings: MergeSettings) -> dict[str, Any]:
    """What the adapter's own run says of the base that it was trained on; without a run, what was asked for."""
    assert settings.adapter is not None
    run = training_of(settings.adapter)
    recorded = settings.model_dump() if run is None else run.meta["settings"]
    load = recorded.get("load")
    return {
        "load": load,
        "quantisation": QuantisationSettings(**recorded.get("quantisation", {})),
        # Codes depend on the precision that they were made from. Without codes it would only add rounding.
        "dtype": recorded.get("dtype", "auto") if load else "float32",
    }


def _put_on(policy: Policy, settings: MergeSettings) -> None:
    assert settings.adapter is not None
    load_adapter(policy, settings.adapter)
    if settings.adapter_strength is not None:
        set_strength(policy, settings.adapter_strength)


@torch.no_grad()
def _fill(plain: Policy, held: Policy) -> None:
    """Replace ``plain``'s weights with those that ``held``'s codes stand for."""
    for name, layer in quantised_layers(held.causal_lm).items():
        # An adapter's layer wraps the base's.
        module = plain.model.get_submodule(name.removesuffix(".base_layer"))
        weight = full_weight(layer)
        module.weight.copy_(weight.T if isinstance(module, Conv1D) else weight)


@torch.no_grad()
def logits_of_answers(policy: Policy) -> Tensor:
    """Next-token logits in packaged answers, Float[N, V], on the CPU."""
    policy.model.eval()
    found = pairs(load_dialogues("starter").dialogues).pairs[:_ANSWERS]
    encoded = [policy.chat.encode_pair([*pair.history], pair.answer) for pair in found]
    rows = []
    for at in range(0, len(encoded), _TOGETHER):
        batch = encoded[at : at + _TOGETHER]
        starts = [one.completion_mask.index(1) for one in batch]
        ids = [one.input_ids[: start + _POSITIONS] for one, start in zip(batch, starts, strict=True)]
        # Padded on the right, where no real token looks.
        width = max(map(len, ids))
        tokens = torch.tensor([one + [0] * (width - len(one)) for one in ids], device=policy.device)
        mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in ids], device=policy.device)
        logits = policy.model(input_ids=tokens, attention_mask=mask).logits
        rows += [
            logits[row, start : len(one)].float().cpu()
            for row, (start, one) in enumerate(zip(starts, ids, strict=True))
        ]
    return torch.cat(rows)


def change_between(before: Tensor, after: Tensor) -> dict[str, Any]:
    """How far next-token distributions moved, given logits Float[N, V]: the mean KL(before ‖ after) in nats, and the
    share of positions at which another token is the likeliest."""
    changed = before.argmax(-1) != after.argmax(-1)
    return {
        "positions": len(before),
        "kl": float(vocabulary_kl(before, after).mean()),
        "likeliest_token_changed": float(changed.float().mean()),
    }


def _write(plain: Policy, out: Path, record: dict[str, Any]) -> None:
    """The whole folder or nothing: it is put in place when it is complete."""
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with writing(out, safe="model and adapter are as they were"), nothing_left(temporary):
        plain.model.save_pretrained(temporary)
        plain.tokenizer.save_pretrained(temporary)
        write_atomically(temporary / f"{RECORD}.json", json.dumps(record, indent=1, allow_nan=False).encode())
    shutil.rmtree(out, ignore_errors=True)
    os.replace(temporary, out)


def _tell(record: dict[str, Any], say: Callable[[str], None]) -> None:
    base, trained_on = record["base"], record["trained_on"]
    kl, moved = record["kl"], record["likeliest_token_changed"]
    text = (
        f"compared with the adapter on the base it was trained on ({trained_on}), next-token distributions are "
        f"{kl:.2g} nats away, and the likeliest token differs at {moved:.1%} of {record['positions']} positions"
    )
    if base == trained_on or max(kl, moved) <= _NOTABLE:
        say(text)
        return
    better = "leave --load out" if trained_on == "full precision" else f"add --load {trained_on}"
    warnings.warn(f"{text}: it was merged into another base ({base}); {better} to get what was trained", stacklevel=3)
