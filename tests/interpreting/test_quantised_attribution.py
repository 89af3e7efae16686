"""Attribution of a model with 4-bit and 8-bit weights; skipped without bitsandbytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import PROMPTS, RESPONSES
from small_models import tiny_policy

from rewardlm.config import LoraSettings, ModelSettings
from rewardlm.interpreting.attribution import attribute, embeddings_changed
from rewardlm.models.load import Policy, load_policy
from rewardlm.models.lora import add_lora

POSITIONS = [[0, 2], [1], [0, 5]]
NOTHING = 700


def with_adapter(policy: Policy) -> Any:
    add_lora(policy, LoraSettings(r=4), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(policy.model.named_parameters()):
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    policy.model.eval()
    return policy.causal_lm


@pytest.fixture(params=["4bit", "8bit"])
def models(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    """tiny with quantised weights and an adapter, and the same in plain floats, for small steps.

    Quantised products round (8-bit ones their inputs too), so small steps in them are noise.
    """
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install rewardlm[quantised]")
    plain = tiny_policy()
    plain.model.save_pretrained(tmp_path / "tiny")
    plain.tokenizer.save_pretrained(tmp_path / "tiny")
    settings = ModelSettings(model=str(tmp_path / "tiny"), load=request.param, dtype="float32", device="cpu")
    quantised = with_adapter(load_policy(settings))
    if request.param == "4bit":
        from bitsandbytes.functional import dequantize_4bit

        for name, layer in load_policy(settings).model.named_modules():
            if type(layer).__name__ == "Linear4bit":
                weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
                plain.model.get_submodule(name).weight.data.copy_(weight)
    return quantised, with_adapter(plain)


def logprob(model: Any, embeddings: torch.Tensor, row: int, position: int) -> float:
    ids = torch.tensor([[*PROMPTS[row], *RESPONSES[row]]])
    with torch.no_grad(), embeddings_changed(model, lambda _: embeddings):
        logits = model(input_ids=ids).logits[0, len(PROMPTS[row]) + position - 1]
    return float(logits.float().log_softmax(-1)[RESPONSES[row][position]])


def test_slopes_and_occlusions_of_quantised_weights_under_an_adapter(models: tuple[Any, Any]) -> None:
    model, stepped = models
    slopes = attribute(model, PROMPTS, RESPONSES, POSITIONS)
    lost = attribute(model, PROMPTS, RESPONSES, POSITIONS, method="occlusion", baseline=NOTHING)
    nothing = model.get_input_embeddings()(torch.tensor(NOTHING)).detach()
    compared = 0
    for row, where in enumerate(POSITIONS):
        x = model.get_input_embeddings()(torch.tensor([[*PROMPTS[row], *RESPONSES[row]]])).detach()
        for k, position in enumerate(where):
            whole = logprob(model, x, row, position)
            by_steps = torch.zeros(x.shape[1])
            for token in range(x.shape[1]):
                without = x.clone()
                without[0, token] = nothing
                without_it = logprob(model, without, row, position)
                assert float(lost[row].scores[k, token]) == pytest.approx(whole - without_it, abs=0.05)
                step = torch.zeros_like(x)
                step[0, token] = 0.01 * x[0, token]
                ahead, behind = (logprob(stepped, x + way * step, row, position) for way in (1, -1))
                by_steps[token] = (ahead - behind) / 0.02
            # A token that rests on nothing has no slope to compare.
            if float(by_steps.norm()) > 0.03:
                compared += 1
                assert float(torch.cosine_similarity(slopes[row].scores[k], by_steps, dim=0)) > 0.95
    assert compared >= 3
