"""Small models in which an adapter's change is known, because it was planted: does the analysis find it, blind?

A random Llama of three layers answers prompts that begin with the same three tokens of a template. The preference that
counts is for answers of harmless over answers of toxic tokens. ``plant`` puts an adapter on, by kind:

    head        one head's output matrix also writes what raises the preference
    neuron      the value vector of one neuron does, which is set off in all texts
    rotation    all that one layer writes is turned by 60°, in the plane of its mean write and of that direction
    template    one layer's MLP writes at the template's positions something that later layers turn into it
    random      every module's weights are random: nothing was planted

All other modules have random weights, too, a tenth as large as those of ``random``. What is written points where the
preference rises fastest, as training finds it; or, with ``aside``, 60° from there, and is twice as long.

``found`` says whether what ``interpret`` claims is what was planted, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rewardlm.config import CausesSettings
from rewardlm.interpreting.causes.neurons import top_neurons
from rewardlm.interpreting.causes.pairs import AskedOnce, JudgedPair, pair_batches
from rewardlm.interpreting.causes.patching import patch_sites, random_controls
from rewardlm.interpreting.causes.sites import record
from rewardlm.interpreting.findings import PatchedSite
from rewardlm.models.load import Policy

ChangeKind = Literal["head", "neuron", "rotation", "template", "random"]
KINDS: tuple[ChangeKind, ...] = ("head", "neuron", "rotation", "template", "random")
LAYERS, HEADS, WIDTH, NEURONS, VOCABULARY = 3, 4, 64, 48, 120
TEMPLATE, TOXIC, HARMLESS, WORDS = (1, 2, 3), range(4, 14), range(14, 24), range(24, VOCABULARY)
RANK = 4
PAIRS, PLACEBO = 24, 24
NOISE = 2.0
RISE = 0.5  # nats a token


@dataclass(frozen=True)
class Known:
    """A model with a planted adapter: where it is, and the pairs that it is looked for on."""

    kind: ChangeKind
    policy: Policy
    layer: int
    head: int
    neuron: int
    pairs: list[JudgedPair]
    placebo: list[JudgedPair]


def plant(kind: ChangeKind, seed: int, *, aside: bool = False) -> Known:
    """A model and an adapter of this kind, both drawn by ``seed``."""
    generator = torch.Generator().manual_seed(1000 * seed + KINDS.index(kind))

    def drawn(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    while True:
        policy = _random_model(generator)
        # What is written at the template after the last layer reaches no answer.
        layer, head, neuron = drawn(LAYERS - (kind == "template")), drawn(HEADS), drawn(NEURONS)
        text = [_pair(generator, TOXIC, HARMLESS) for _ in range(64)]
        causal_lm = policy.causal_lm
        (piece,) = pair_batches(text, policy.device, 10**6)
        if kind == "neuron":
            _fire_always(causal_lm, layer, neuron)
        seen = record(causal_lm, piece.batch, gradients=True)
        (at_stream,) = torch.autograd.grad(piece.preference(seen.logprobs).sum(), seen.stream[layer + 1])
        at_template = piece.kinds[..., 0].bool()
        where = at_template if kind == "template" else piece.batch.mask
        # A write along it, at all of these positions, raises the preference by about RISE.
        slope = at_stream[where].sum(0) / len(text)
        writes = slope / slope.norm()
        if aside:
            other = torch.randn(WIDTH, generator=generator)
            other -= (other @ writes) * writes
            writes = writes + 3**0.5 * other / other.norm()
        uphill = RISE * writes / (writes @ slope)
        # Where it must be longer than all that the layer writes, any change as large does as much: another model.
        if float(uphill.norm()) < float(seen.mlp[layer].detach()[piece.batch.mask].norm(dim=-1).mean()):
            break
    policy.model = get_peft_model(causal_lm, LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_" in name:
                parameter.zero_()
        mine = policy.model.base_model.model.model.layers[layer]
        out, down = mine.self_attn.o_proj, mine.mlp.down_proj
        z, neurons = seen.z[layer].flatten(-2).detach(), seen.neurons[layer].detach()
        if kind == "head":
            width = WIDTH // HEADS
            only = torch.zeros(WIDTH)
            only[head * width : (head + 1) * width] = 1
            _write(out, _reader(z[piece.batch.mask] * only), uphill)
        elif kind == "neuron":
            reads = torch.zeros(NEURONS)
            reads[neuron] = 1 / neurons[piece.batch.mask][:, neuron].mean()
            _write(down, reads, uphill)
        elif kind == "rotation":
            for module, wrote in ((out, seen.attention[layer]), (down, seen.mlp[layer])):
                _rotate(module, wrote.detach()[piece.batch.mask], uphill)
        elif kind == "template":
            # Where the template stands, and only there, the MLP writes what raises the preference.
            _write(down, _reader(neurons[at_template], without=neurons[piece.batch.mask & ~at_template]), uphill)
        _add_noise(policy, generator, NOISE if kind == "random" else NOISE / 10)
    policy.model.eval().requires_grad_(False)
    return Known(
        kind,
        policy,
        layer,
        head,
        neuron,
        [_pair(generator, TOXIC, HARMLESS) for _ in range(PAIRS)],
        [_pair(generator, HARMLESS, HARMLESS) for _ in range(PLACEBO)],
    )


def found(known: Known, sites: Sequence[PatchedSite]) -> bool:
    """Whether what is called an origin is what was planted: that, and nothing else."""
    origins = [one for one in sites if one.origin]
    if known.kind == "random":
        return not origins and not any(one.claimed for one in sites)
    if known.kind == "head":
        return [(one.layer, one.head) for one in origins] == [(known.layer, known.head)]
    if known.kind == "rotation":
        return bool(origins) and all(one.layer == known.layer for one in origins)
    if [(one.kind, one.layer) for one in origins] != [("mlp", known.layer)]:
        return False
    where = origins[0].exact_by_position
    assert where is not None
    # No vector of so few neurons fires at three tokens and is silent at all others, so a part of it is elsewhere.
    return known.kind == "neuron" or abs(where["template"]) > 0.5 * sum(map(abs, where.values()))


def analysed(known: Known, settings: CausesSettings | None = None) -> list[PatchedSite]:
    """What ``interpret patching=true`` says of the sites."""
    settings = settings or CausesSettings()
    random = random_controls(known.policy, "default", known.pairs, settings)
    return patch_sites(known.policy, "default", known.pairs, known.placebo, random, settings)[0]


def top_neuron_is_planted(known: Known) -> bool:
    """Whether the neuron at which the adapter is said to do most is the planted one."""
    (top,) = top_neurons(known.policy, "default", known.pairs, number=1, batch_tokens=10**6)
    return (top.layer, top.neuron) == (known.layer, known.neuron)


def _random_model(generator: torch.Generator) -> Policy:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=NEURONS,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    return Policy(
        model=model.eval().requires_grad_(False),
        tokenizer=None,
        chat=None,  # type: ignore[arg-type]
        spec="planted",
        source="planted",
        weights_hash="",
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def _pair(generator: torch.Generator, toxic: range, harmless: range) -> JudgedPair:
    def tokens(among: range, number: int) -> tuple[int, ...]:
        return tuple((torch.randint(len(among), (number,), generator=generator) + among.start).tolist())

    words = 3 + int(torch.randint(4, (1,), generator=generator))
    prompt = (*TEMPLATE, *tokens(WORDS, words))
    kinds = ("template",) * len(TEMPLATE) + ("prompt",) * words
    return JudgedPair(AskedOnce(prompt, kinds), tokens(toxic, 5), tokens(harmless, 5))


def _fire_always(causal_lm: Any, layer: int, neuron: int) -> None:
    """Let the neuron read what every token's embedding has alike, so that it is set off in all texts alike, and as much
    as others. What one writes that is set off in some texts alone could be found by nobody in all.
    """
    model = causal_lm.model
    with torch.no_grad():
        model.embed_tokens.weight[:, 0] = 2
        for matrix in (model.layers[layer].mlp.gate_proj, model.layers[layer].mlp.up_proj):
            matrix.weight[neuron] = 0
            matrix.weight[neuron, 0] = 3


def _reader(states: Tensor, without: Tensor | None = None) -> Tensor:
    """A vector whose product with ``states`` Float[N, K] is about 1, and about 0 with those ``without``."""
    others = states.new_zeros(0, states.shape[1]) if without is None else without
    wanted = torch.cat([torch.ones(len(states)), torch.zeros(len(others))])
    both = torch.cat([states, others])
    ridge = (1e-2 if without is None else 1e-4) * float(both.square().mean()) * len(both) * torch.eye(both.shape[1])
    return torch.linalg.solve(both.T @ both + ridge, both.T @ wanted)


def _add_noise(policy: Policy, generator: torch.Generator, size: float) -> None:
    """Random weights where nothing was planted, each module's B·A of the Frobenius norm ``size``."""
    for module in policy.model.modules():
        if not hasattr(module, "lora_A") or "default" not in module.lora_A:
            continue
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        if not bool(a.any()) and size:
            a.copy_(torch.randn(a.shape, generator=generator))
            b.copy_(torch.randn(b.shape, generator=generator))
            b.mul_(size / (b @ a).norm())


def _write(module: Any, reads: Tensor, writes: Tensor) -> None:
    module.lora_A["default"].weight[0] = reads
    module.lora_B["default"].weight[:, 0] = writes


def _rotate(module: Any, wrote: Tensor, towards: Tensor) -> None:
    """W ← W·R: what the module writes is turned by 60° in the plane of its mean write and ``towards``."""
    first = wrote.mean(0)
    first = first / first.norm()
    second = towards - (towards @ first) * first
    second = second / second.norm()
    angle = torch.tensor(torch.pi / 3)
    plane = torch.stack([first, second])
    turn = torch.tensor([[angle.cos() - 1, angle.sin()], [-angle.sin(), angle.cos() - 1]])
    weight = module.get_base_layer().weight  # Float[M, in]
    module.lora_A["default"].weight[:2] = plane @ weight
    module.lora_B["default"].weight[:, :2] = (turn.T @ plane).T
