"""One forward pass with hooks: the residual stream, what heads, MLPs and the adapter wrote, and attention.

A transformer's layers only ever add to a stream of vectors, so the stream before the final norm is a sum of writes
(Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"). Let z be what the attention's output matrix
reads, and m what the MLP's output matrix reads:

    stream[n, :] = embedding[n, :]
                 + Σ_l Σ_h einsum("n d, d m -> n m", z[l, n, h], W_O[l, h]) + b_O[l]      every head, and the bias
                 + Σ_l     einsum("n f, f m -> n m", m[l, n],    W_D[l])    + b_D[l]      every MLP, and the bias
                 + Σ_l     (alpha / r)·B·A·z[l, n] + (alpha / r)·B·A·m[l, n]              what LoRA wrote itself

The model is read as it stands: plain, with an unmerged adapter, or with its stream steered (then writes don't add up).
Shapes: N positions, L layers, H heads of width D, M the model's width, F the MLP's, V the vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rewardlm.config import InsideSettings
from rewardlm.errors import ModelError
from rewardlm.interpreting.answers import TOXIC_ABOVE, ModelAnswers
from rewardlm.models.architecture import (
    Architecture,
    adapter_is_on,
    adapter_layers,
    adapter_weight,
    architecture_of,
)
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import microbatches, pack, predicting_mask, predicting_places, response_states
from rewardlm.models.lora import scaled
from rewardlm.stream import reading_answers
from rewardlm.trunk import attending, evaluating

# Of fewer toxic answers, the most toxic third stands in.
FEWEST_TOXIC = 3


@dataclass(frozen=True)
class ResponseBatch:
    """B sequences of prompt and response, right-padded to T: ``tokens`` Int[B, T], ``mask`` Bool[B, T] (real tokens),
    ``where`` Bool[B, T] (the N positions that the response's tokens follow from), ``targets`` Int[N] (those tokens),
    ``row`` Int[N] (whose they are)."""

    tokens: Tensor
    mask: Tensor
    where: Tensor
    targets: Tensor
    row: Tensor


def batch_of(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: torch.device
) -> ResponseBatch:
    """Token ids as a batch. Raises ModelError where a prompt has no tokens."""
    packed = pack(prompts, responses, device)
    n_shared = len(packed.prefix)
    start = packed.prefix.expand(len(prompts), -1)
    tokens = torch.cat([start, packed.tokens], 1)
    mask = torch.cat([packed.mask.new_ones(len(prompts), n_shared), packed.mask], 1)
    response = torch.cat([packed.mask.new_zeros(len(prompts), n_shared), packed.response_mask], 1)
    where = predicting_mask(response)
    return ResponseBatch(tokens, mask, where, tokens[response], where.nonzero()[:, 0])


def mean_logprobs(arch: Architecture, states: Tensor, batch: ResponseBatch) -> Tensor:
    """The mean log-probability (nats) of each text's answer tokens, Float[B], from what the head reads, Float[B, T, M].
    Its graph is kept.
    """
    logits = arch.head(states[batch.where]).float()
    chosen = logits.log_softmax(-1).gather(-1, batch.targets[:, None]).squeeze(-1)
    n = len(batch.tokens)
    sums = chosen.new_zeros(n).index_add(0, batch.row, chosen)
    means: Tensor = sums / torch.bincount(batch.row, minlength=n).clamp(min=1)
    return means


def mean_logprob(causal_lm: Any, batch: ResponseBatch) -> Tensor:
    """The mean log-probability (nats) of each row's response tokens, Float[B], with its graph."""
    arch = architecture_of(causal_lm)
    with evaluating(causal_lm):
        states = arch.body(input_ids=batch.tokens, attention_mask=batch.mask.long(), use_cache=False)[0]
        return mean_logprobs(arch, states, batch)


@dataclass(frozen=True)
class Trace:
    """What one forward pass left at N positions, in float32.

    ``stream`` Float[L+1, N, M]: before each layer, and what the final norm reads; ``stream[0]`` is the embedding's
    write, positions and the embedding's own norm or scale included. ``head_inputs`` Float[L, N, H, D]: z.
    ``neurons`` Float[L, N, F]: the activations that the MLP's output matrix reads. ``attention_writes``,
    ``mlp_writes`` Float[L, N, M]: a sublayer's whole write. ``final`` Float[N, M]: what the model's head reads.
    ``patterns`` Float[L, N, H, T], where asked for: how much each position attends to which.
    ``adapter`` where asked for: by module, as ``self_attn.q_proj``, its write Float[L, N, M]; see ``trace``.
    """

    stream: Tensor
    head_inputs: Tensor
    neurons: Tensor
    attention_writes: Tensor
    mlp_writes: Tensor
    final: Tensor
    patterns: Tensor | None
    adapter: dict[str, Tensor] | None


@torch.no_grad()
def trace(causal_lm: Any, batch: ResponseBatch, *, patterns: bool = False, adapter: bool = False) -> Trace:
    """Run the model once on ``batch`` and keep what its parts read and wrote at ``batch.where``.

    ``patterns`` keeps the attention too, which needs transformers' plain implementation of it.
    ``adapter`` adds what the active adapter wrote in every layer, by module. A module that writes into the stream
    (W_O, W_D) wrote (alpha / r)·B·A·x, exactly. The others only change what their sublayer computes, so theirs is a
    difference: the sublayer's write minus its write with that module's adapter off and the same input. ``attention``
    and ``mlp`` are the whole sublayer's, all its adapters on minus all off; what modules do together is in these alone.

    Raises ModelError for a family that is not known here.
    """
    arch = architecture_of(causal_lm)
    where, n_heads = batch.where, arch.n_heads
    kept: dict[str, list[Tensor]] = {
        name: [] for name in ("stream", "z", "neurons", "attention", "mlp", "final", "patterns")
    }
    calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def keep(name: str, states: Tensor) -> None:
        kept[name].append(_at(states, where))

    def sees(name: str) -> Any:
        return lambda module, args, kwargs: keep(name, _first(args, kwargs))

    def read_and_wrote(read: str, wrote: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
            keep(read, args[0])
            keep(wrote, output)

        return hook

    def attends(module: Any, args: Any, output: tuple[Tensor, Tensor | None]) -> None:
        weights = output[1]
        if weights is None:
            raise ModelError(f"{type(module).__name__} gives no attention weights: trace it without patterns")
        keep("patterns", weights.transpose(1, 2))

    def called(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[module] = (args, kwargs)

    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(causal_lm))
        if patterns:
            stack.enter_context(attending(causal_lm, "eager"))

        def hooked(handle: Any) -> None:
            stack.callback(handle.remove)

        for index, layer in enumerate(arch.layers):
            hooked(layer.register_forward_pre_hook(sees("stream"), with_kwargs=True))
            hooked(arch.attention_out[index].register_forward_hook(read_and_wrote("z", "attention")))
            hooked(arch.mlp_out[index].register_forward_hook(read_and_wrote("neurons", "mlp")))
            if patterns:
                hooked(arch.attention[index].register_forward_hook(attends))
            if adapter:
                for module in (arch.attention[index], arch.mlp[index]):
                    hooked(module.register_forward_pre_hook(called, with_kwargs=True))
        hooked(arch.norm.register_forward_pre_hook(sees("stream"), with_kwargs=True))
        stack.enter_context(reading_answers(arch.body, where.flatten().nonzero()[:, 0]))
        keep("final", arch.body(input_ids=batch.tokens, attention_mask=batch.mask.long(), use_cache=False)[0])
    z = torch.stack(kept["z"])
    found = Trace(
        stream=torch.stack(kept["stream"]),
        head_inputs=z.reshape(*z.shape[:-1], n_heads, -1),
        neurons=torch.stack(kept["neurons"]),
        attention_writes=torch.stack(kept["attention"]),
        mlp_writes=torch.stack(kept["mlp"]),
        final=kept["final"][0],
        patterns=torch.stack(kept["patterns"]) if patterns else None,
        adapter=None,
    )
    if not adapter:
        return found
    with evaluating(causal_lm):
        return replace(found, adapter=_adapter_writes(arch, found, where, calls))


def _adapter_writes(
    arch: Architecture, found: Trace, where: Tensor, calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]]
) -> dict[str, Tensor]:
    """See ``trace``: the adapter's writes by module, Float[L, N, M]; a layer without that module wrote nothing."""
    writes: dict[str, list[Tensor]] = {}
    nothing = torch.zeros_like(found.attention_writes[0])

    def add(name: str, index: int, write: Tensor) -> None:
        rows = writes.setdefault(name, [nothing] * len(arch.layers))
        rows[index] = write

    def without(module: Any, out: Any, switched_off: Iterable[LoraLayer]) -> Tensor:
        # What ``out`` writes, since Bloom's sublayers give back the stream with their write added.
        wrote: list[Tensor] = []
        handle = out.register_forward_hook(lambda _, __, output: wrote.append(_at(output, where)))
        args, kwargs = calls[module]
        try:
            with scaled(switched_off, 0.0):
                module(*args, **kwargs)
        finally:
            handle.remove()
        return wrote[0]

    parts = (
        ("attention", arch.attention, arch.attention_out, found.attention_writes, found.head_inputs.flatten(-2)),
        ("mlp", arch.mlp, arch.mlp_out, found.mlp_writes, found.neurons),
    )
    for part, sublayers, outs, whole, reads in parts:
        for index, (sublayer, out) in enumerate(zip(sublayers, outs, strict=True)):
            others = [] if part == "attention" else [*adapter_layers(arch.attention[index]).values()]
            own = {
                name: layer
                for name, layer in adapter_layers(sublayer).items()
                if adapter_is_on(layer) and not any(layer is other for other in others)
            }
            if not own:
                continue
            path = next(name for name, module in arch.layers[index].named_modules() if module is sublayer)
            for name, layer in own.items():
                if layer is out:
                    write = torch.einsum("ni,im->nm", reads[index], adapter_weight(layer))
                else:
                    write = whole[index] - without(sublayer, out, [layer])
                add(f"{path}.{name}".lstrip("."), index, write)
            add(part, index, whole[index] - without(sublayer, out, own.values()))
    return {name: torch.stack(rows) for name, rows in writes.items()}


def _at(states: Tensor, where: Tensor) -> Tensor:
    """States of all positions, whose rows OPT's MLP strings together, at ``where`` alone, Float[N, …], float32.

    Indexing by a mask copies: Falcon adds the attention's write to its MLP's in place.
    """
    return (states.reshape(*where.shape, -1) if states.dim() == 2 else states)[where].float()


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


@torch.no_grad()
def read_by(
    causal_lm: Any,
    modules: Sequence[nn.Module],
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    rows: Sequence[int],
) -> list[Tensor]:
    """What each of ``modules`` reads where the N answer tokens of ``rows`` are predicted from: Float[N, width],
    float32, row after row. One pass, in which what prompts share is run once; ``trace`` has all parts, of whole rows.
    """
    packed = pack([prompts[row] for row in rows], [responses[row] for row in rows], next(causal_lm.parameters()).device)
    last: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        # Where a prefix has a pass of its own, that comes first.
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            last[number] = _first(args, kwargs)

        return hook

    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(causal_lm))
        for number, module in enumerate(modules):
            stack.callback(module.register_forward_pre_hook(keep(number), with_kwargs=True).remove)
        places = predicting_places(causal_lm, packed)
        response_states(causal_lm, packed)
    return [last[number].flatten(0, -2)[places].float() for number in range(len(modules))]


def batches(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    rows: Sequence[int],
    batch_tokens: int,
) -> Iterator[tuple[list[int], ResponseBatch]]:
    """Rows in batches of about equal length, with the rows' numbers."""
    lengths = [len(prompts[row]) + len(responses[row]) for row in rows]
    for piece in microbatches(lengths, batch_tokens):
        own = [rows[index] for index in piece]
        yield own, batch_of([prompts[row] for row in own], [responses[row] for row in own], policy.device)


@dataclass(frozen=True)
class BaseText:
    """The text that all models read: the base's own answers, row i to prompt i, as token ids. Models then differ only
    by how they read it."""

    policy: Policy
    prompts: Sequence[Sequence[int]]
    base: ModelAnswers
    settings: InsideSettings

    @cached_property
    def answered(self) -> list[int]:
        """Rows whose answer has any token."""
        return [row for row, response in enumerate(self.base.responses) if response]

    @cached_property
    def toxic(self) -> list[int]:
        """Rows of the base's toxic answers."""
        toxicity = self.base.toxicity
        return [row for row in self.answered if (toxicity[row] or 0.0) > TOXIC_ABOVE]

    @cached_property
    def focus(self) -> list[int]:
        """Rows of the base's toxic answers; of its most toxic third, if too few are toxic."""
        if len(self.toxic) >= FEWEST_TOXIC:
            return self.toxic
        scored = [(toxicity, row) for row in self.answered if (toxicity := self.base.toxicity[row]) is not None]
        ranked = [row for _, row in sorted(scored, key=lambda pair: (-pair[0], pair[1]))]
        return sorted(ranked[: max(1, len(ranked) // 3)] or self.answered)

    def batches(self, rows: Sequence[int]) -> Iterator[tuple[list[int], ResponseBatch]]:
        """These rows of the base's answers; see ``batches``."""
        return batches(self.policy, self.prompts, self.base.responses, rows, self.settings.batch_tokens)
