"""Activation patching against nnsight, on the same weights: head by head, MLP by MLP, stream by stream.

nnsight runs the two models apart: the base, and the base with the adapter merged into its weights. The adapter is on
queries, keys, values and the MLP's inputs. So W_O and the MLP's output matrix are the same in both, and to put in what
a head's slice of W_O reads is to put in what the head writes. Skipped where nnsight isn't installed; README.md says how
to put it beside the project.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

nnsight = pytest.importorskip("nnsight", reason="nnsight is not installed: see README.md")

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from small_models import random_policy  # noqa: E402

from rewardlm.config import LoraSettings  # noqa: E402
from rewardlm.interpreting.causes.pairs import AskedOnce, JudgedPair, pair_batches  # noqa: E402
from rewardlm.interpreting.causes.sites import Patch, Site, record, with_patch, with_stream  # noqa: E402
from rewardlm.models.load import Policy  # noqa: E402
from rewardlm.models.lora import add_lora, using  # noqa: E402

PROMPT, TOXIC, HARMLESS = (1, 300, 301, 302, 40), (2, 17, 900), (5, 6, 81)
HEADS, WIDTH = 4, 8


@pytest.fixture(scope="module")
def policy() -> Policy:
    policy = random_policy("qwen2")
    targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]
    add_lora(policy, LoraSettings(r=4, alpha=6, targets=targets), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    policy.model.eval()
    return policy


@pytest.fixture(scope="module")
def models(policy: Policy) -> tuple[Any, Any]:
    """Base and merged model as plain transformers models, in nnsight's wrapper."""
    tuned = copy.deepcopy(policy.model).merge_and_unload()
    base = copy.deepcopy(policy.model).unload()
    return nnsight.NNsight(base), nnsight.NNsight(tuned)


def logprob(logits: torch.Tensor, answer: tuple[int, ...]) -> float:
    plain = logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    return float(plain.gather(-1, torch.tensor(answer)[:, None]).mean())


def value_at(model: Any, ids: torch.Tensor, site: Site) -> torch.Tensor:
    with torch.no_grad(), model.trace(input_ids=ids):
        layer = model.model.layers[site.layer] if site.layer < 2 else None
        if site.kind == "head":
            found = layer.self_attn.o_proj.input.save()
        elif site.kind == "mlp":
            found = layer.mlp.output.save()
        else:
            found = (model.model.norm.input if layer is None else layer.input).save()
    return found


def patched_logits(model: Any, ids: torch.Tensor, site: Site, value: torch.Tensor, at: slice) -> torch.Tensor:
    with torch.no_grad(), model.trace(input_ids=ids):
        layer = model.model.layers[site.layer] if site.layer < 2 else None
        if site.kind == "head":
            slot = slice(site.head * WIDTH, (site.head + 1) * WIDTH)
            layer.self_attn.o_proj.input[:, at, slot] = value[:, at, slot]
        elif site.kind == "mlp":
            layer.mlp.output[:, at] = value[:, at]
        elif layer is None:
            model.model.norm.input[:, at] = value[:, at]
        else:
            layer.input[:, at] = value[:, at]
        found = model.lm_head.output.save()
    return found  # noqa: RET504 (nnsight gives it a value as the block ends)


SITES = [
    *(Site("head", layer, head) for layer in range(2) for head in range(HEADS)),
    Site("mlp", 0), Site("mlp", 1), Site("stream", 1), Site("stream", 2),
]  # fmt: skip


# Everywhere, and at the prompt's second and third token alone.
@pytest.mark.parametrize("at", [slice(None), slice(1, 3)], ids=["everywhere", "some positions"])
@pytest.mark.parametrize("into", ["base", "tuned"])
@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_a_patched_pass_is_nnsights(policy: Policy, models: tuple[Any, Any], site: Site, into: str, at: slice) -> None:
    pair = JudgedPair(AskedOnce(PROMPT, ("prompt",) * len(PROMPT)), TOXIC, HARMLESS)
    (piece,) = pair_batches([pair], policy.device, 10**6)
    with using(policy, None):
        base = record(policy.causal_lm, piece.batch)
    with using(policy, "default"):
        tuned = record(policy.causal_lm, piece.batch)
    where = torch.zeros_like(piece.batch.mask)
    where[:, at] = True
    receiver, donor, name = (base, tuned, None) if into == "base" else (tuned, base, "default")
    with using(policy, name):
        if site.kind == "stream":
            ours = with_stream(policy.causal_lm, piece.batch, receiver, donor, site.layer, where)
        else:
            ours = with_patch(policy.causal_lm, piece.batch, receiver, Patch.of(donor, [site], where))
    theirs = models if into == "base" else models[::-1]
    for row, answer in enumerate((TOXIC, HARMLESS)):
        ids = torch.tensor([[*PROMPT, *answer]])
        value = value_at(theirs[1], ids, site)
        expected = logprob(patched_logits(theirs[0], ids, site, value, at), answer)
        assert float(ours[row]) == pytest.approx(expected, abs=1e-4)
        # The last layer's writes at the prompt's second and third token are read by no answer.
        reaches = at == slice(None) or (site.layer == 0 if site.kind != "stream" else site.layer == 1)
        assert (abs(float(ours[row]) - float(receiver.logprobs[row])) > 1e-5) is reaches
