"""What a model takes in memory, from its configuration alone: no weights are read and nothing is computed.

The model's own code runs on PyTorch's meta device, whose tensors have shapes and no contents, and the bytes that would
be alive at each moment are added up. So the figures hold for every architecture that transformers knows, and for the
way in which this package runs it; there is no formula to keep up to date. Kernels' own scratch space, allocators'
rounding and the process itself are not counted.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, Conv1D, DynamicCache

from rewardlm import fastpath
from rewardlm.config import GenerationSettings, LoraSettings
from rewardlm.models.load import configuration
from rewardlm.models.logprobs import body_and_head, frozen_head_stats, recomputed
from rewardlm.models.lora import add_lora
from rewardlm.models.sampling import Sampler
from rewardlm.models.shapes import META, SHAPES
from rewardlm.trunk import trunk_states

# NF4 with double quantisation (Dettmers et al. 2023): 4 bits a weight, a byte for each block of 64 weights, and a
# float32 for every 256 of these bytes.
_FOUR_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)
_CHUNK = 128  # tokens whose logits are in memory together: token_stats' default


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, ``now`` is the bytes of all live tensors that were made on the meta device, ``peak`` their maximum."""

    def __init__(self, before: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}
        # What was there before is known and counts as 0 bytes.
        self._before = [tensor.untyped_storage() for tensor in before]
        self._alive.update((id(storage), 0) for storage in self._before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = SHAPES.run(func, args, kwargs or {})
        for tensor in tree_iter(found):
            if isinstance(tensor, Tensor) and tensor.device == META:
                self._note(tensor.untyped_storage())
        return found

    def _note(self, storage: Any) -> None:
        key = id(storage)  # A storage is one object for as long as it lives.
        if key in self._alive:
            return
        self._alive[key] = size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)


class _FusedAttention(TorchFunctionMode):
    """Attention with what its fused kernels keep: on the meta device PyTorch would make all scores too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__bool__ and args[0].device == META:
            # transformers asks whether all tokens are real, and would then leave the mask out. They rarely all are.
            return False
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        more = kwargs or {}
        if args[0].shape[1] != args[1].shape[1] and not more.get("enable_gqa"):
            return func(*args, **more)  # No kernel takes fewer keys than queries (Falcon): all scores are made.
        mask = more.get("attn_mask")
        return _Attention.apply(*args[:3], mask)  # type: ignore[no-untyped-call]


class _Attention(torch.autograd.Function):
    """Saved for the backward pass: inputs and output, a number for each row of scores, and the mask as numbers."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        result = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        added = None if mask is None else torch.empty_like(mask, dtype=query.dtype)
        ctx.save_for_backward(query, key, value, result, sums, *([] if added is None else [added]))
        return result

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (*(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3]), None)


class _QuantisedLinear(nn.Linear):
    """A linear layer as bitsandbytes computes it; its weight counts nothing here, but in ``weight_bytes``."""

    def __init__(self, like: Any, load: str) -> None:
        out_features, in_features = like.weight.shape[::-1] if isinstance(like, Conv1D) else like.weight.shape
        super().__init__(in_features, out_features, like.bias is not None, device=META, dtype=like.weight.dtype)
        self.load = load
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        # In training bitsandbytes unpacks 8-bit weights on a CPU; otherwise it multiplies integers.
        unpacks = self.load == "4bit" or self.training
        found: Tensor = _QuantisedMap.apply(x, self.weight, self.bias, unpacks)  # type: ignore[no-untyped-call]
        return found


class _QuantisedMap(torch.autograd.Function):
    """W·x + b, with W unpacked where it is multiplied. W doesn't learn, so x isn't kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, unpacks: bool) -> Tensor:
        ctx.save_for_backward(weight)
        if unpacks:
            return linear(x, torch.empty_like(weight), bias)
        codes = torch.empty_like(x.to(torch.float16), dtype=torch.int8)
        product = torch.empty(*codes.shape[:-1], len(weight), dtype=torch.int32, device=META)
        return product.float().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return gradient @ torch.empty_like(weight), None, None, None


@dataclass(frozen=True)
class Skeleton:
    """A model without weights; with an adapter once ``adapted``."""

    model: Any
    dtype: torch.dtype
    stored: torch.dtype

    @property
    def causal_lm(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @contextlib.contextmanager
    def traced(self) -> Iterator[LiveBytes]:
        """What runs inside is counted, without weights and adapter."""
        with LiveBytes([*self.model.parameters(), *self.model.buffers()]) as live, _FusedAttention():
            yield live


def skeleton(spec: str, dtype: torch.dtype, load: str | None = None) -> Skeleton:
    """The model ``spec`` (alias, hub id, folder) without weights, with the layers of bitsandbytes if ``load`` is 8bit
    or 4bit. Raises ModelError without a configuration.
    """
    config = configuration(spec)
    stored = getattr(config, "dtype", None) or torch.float32
    with META:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if load is not None:
        taken = {id(module) for module in quantisable(model)}
        for name, module in [*model.named_modules()]:
            if id(module) in taken:
                model.set_submodule(name, _QuantisedLinear(module, load))
    model.eval().requires_grad_(False)
    return Skeleton(model, dtype, stored)


def adapted(spec: str, dtype: torch.dtype, settings: LoraSettings, load: str | None = None) -> Skeleton:
    """As ``skeleton``, with a fresh adapter as training puts one on."""
    bare = skeleton(spec, dtype, load)
    policy: Any = SimpleNamespace(model=bare.model, spec=spec)
    with META:
        add_lora(policy, settings, seed=0)
    policy.model.eval()
    return Skeleton(policy.model.to(META), dtype, bare.stored)


def weight_bytes(causal_lm: nn.Module, load: str | None = None) -> float:
    """Bytes of all parameters and buffers but an adapter's; with ``load`` 8bit or 4bit, as bitsandbytes quantises them.

    It quantises linear layers, and leaves the language-model head (and the embeddings that it is tied to), embeddings,
    norms and biases as they are.
    """
    total = sum(tensor.nbytes for name, tensor in _unique(causal_lm) if "lora_" not in name)
    if load is None:
        return total
    return float(total - sum(module.weight.nbytes - _quantised(module, load) for module in quantisable(causal_lm)))


def quantisable(causal_lm: Any) -> list[Any]:
    """The linear layers that quantisation takes: all but the head."""
    head = causal_lm.get_output_embeddings()
    return [
        module
        for name, module in causal_lm.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and "lora_" not in name
    ]


def _quantised(module: Any, load: str) -> float:
    size = int(module.weight.numel())
    rows = module.weight.shape[1] if isinstance(module, Conv1D) else module.weight.shape[0]
    # 8 bit: a float32 for each row as well.
    return size * _FOUR_BIT if load == "4bit" else size + 4 * rows


def _unique(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def adapter_bytes(adapted: Skeleton) -> int:
    """The adapter's weights; its gradient and Adam's two moments are as large each."""
    return sum(parameter.nbytes for name, parameter in adapted.model.named_parameters() if "lora_" in name)


def copied_bytes(adapted: Skeleton) -> int:
    """What is kept beside the weights while answers are drawn. For a model that decodes without its modules, that is a
    copy of them in another layout, the head's too. Otherwise it is what lora.merged keeps in float32: copies of the
    adapted weights and one layer's change.
    """
    body, head = body_and_head(adapted.causal_lm)
    if fastpath.copies_weights(body):
        return int(head.weight.nbytes + sum(module.weight.nbytes for module in quantisable(adapted.causal_lm)))
    if adapted.dtype != torch.float32:
        return 0
    layers = [module for module in adapted.model.modules() if isinstance(module, LoraLayer)]
    sizes = [layer.get_base_layer().weight.nbytes for layer in layers]
    return int(sum(sizes) + 2 * max(sizes))


@torch.no_grad()
def cache_bytes(bare: Skeleton, positions: int = 64) -> int | None:
    """Keys and values of one position, in bytes; None for a model that keeps something else."""
    cache = DynamicCache(config=bare.causal_lm.config)
    with bare.traced():
        _states(bare.causal_lm, 1, positions, cache)
    layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    if len(layers) != len(cache.layers):
        return None
    return int(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)) // positions


@torch.no_grad()
def generating_bytes(bare: Skeleton, rows: int, prompt: int, new: int) -> int:
    """Peak bytes while ``rows`` answers of ``new`` tokens are drawn: prompts' pass, both caches, first token's draw.

    Later steps hold less: the prompts' own cache is gone by then. With transformers' cache, while the fast path is
    shut, the last step holds the most.
    """
    with bare.traced() as live:
        lm = bare.causal_lm
        cache = DynamicCache()
        body, head = body_and_head(lm)
        if fastpath.runs_trees(body):
            _, hidden = fastpath.prefill(body, [[row] * prompt for row in range(rows)], cache, 0)
        else:
            hidden = _states(lm, rows, prompt, cache)[:, -1]
        if fastpath.is_open():
            slots = fastpath.Slots(lm.config.get_text_config().num_hidden_layers, META)
            prompts_mask = torch.ones(rows, prompt, dtype=torch.long, device=META)
            slots.rebuild([], new, (cache, prompts_mask, torch.arange(rows, device=META)))
            del cache, prompts_mask
        else:
            hidden = _last_step(body, cache, rows, prompt + new - 1)
        logits = head(hidden).float()
        uniforms = torch.zeros(rows, dtype=torch.float64, device=META)
        Sampler(GenerationSettings(), _zeros(1)).draw(logits, uniforms)
    return live.peak


def _last_step(body: Any, cache: DynamicCache, rows: int, positions: int) -> Tensor:
    """States after one more token a row, the last of ``positions``; transformers' cache copies itself for each one."""
    for layer in cache.layers:
        for name in ("keys", "values"):
            kept = getattr(layer, name)
            setattr(layer, name, kept.new_empty(*kept.shape[:2], positions - 1, kept.shape[3]))
    tokens = _zeros(rows, 1)
    return trunk_states(body, tokens, torch.ones_like(_zeros(rows, positions)), tokens, cache)[:, -1]


@torch.no_grad()
def scoring_bytes(bare: Skeleton, rows: int, width: int, answer: int, *, compared: bool) -> int:
    """Peak bytes while answers' log-probabilities are computed; ``compared``: with the exact KL to other states."""
    with bare.traced() as live:
        lm = bare.causal_lm
        head = body_and_head(lm)[1]
        hidden = _response_states(lm, rows, width, answer)
        other = torch.empty_like(hidden) if compared else None
        frozen_head_stats(head, hidden, _zeros(len(hidden)), _CHUNK, other)
    return live.peak


def updating_bytes(adapted: Skeleton, rows: int, width: int, answer: int, *, recompute: bool) -> int:
    """Peak bytes while a microbatch of RL goes forwards and backwards, its gradient included."""
    with _as_it_was(adapted), adapted.traced() as live:
        lm = adapted.causal_lm
        body, head = body_and_head(lm)
        if recompute:
            with _again(body):
                hidden = _of_answers(_states(lm, rows, width, None), answer)
        else:
            hidden = _response_states(lm, rows, width, answer)
        logprobs = frozen_head_stats(head, hidden, _zeros(len(hidden)), _CHUNK)[0]
        logprobs.sum().backward()  # type: ignore[no-untyped-call]
    return live.peak


def finetuning_bytes(adapted: Skeleton, rows: int, width: int, *, recompute: bool, kernels: bool) -> int:
    """As ``updating_bytes``, for fine-tuning; ``kernels``: TRL's head runs in Triton's kernels, as on CUDA."""
    adapted.model.train()  # with dropout
    with _as_it_was(adapted), adapted.traced() as live:
        lm = adapted.causal_lm
        body, head = body_and_head(lm)
        with _again(body) if recompute else contextlib.nullcontext():
            states = _states(lm, rows, width, None)
        _TrlHead.apply(states, len(head.weight), kernels).backward()  # type: ignore[no-untyped-call]
    return live.peak


class _TrlHead(torch.autograd.Function):
    """TRL's language-model head (trl.kernels.chunked_logprob), which runs forwards again in its backward pass.

    It works on tiles of at most 4,096 tokens by 32,768 words. One is in the model's precision. Where plain PyTorch does
    what Triton's kernels do in place, there are at one moment seven more in float32 and one of truth values.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, vocabulary: int, kernels: bool) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.vocabulary, ctx.kernels = vocabulary, kernels
        return hidden.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None, None]:
        (hidden,) = ctx.saved_tensors
        tokens = min(hidden.shape[0] * hidden.shape[1], 4096)
        tile = hidden.new_empty(tokens, 32_768)
        others = torch.empty(
            0 if ctx.kernels else tokens * min(ctx.vocabulary, 32_768), 29, dtype=torch.int8, device=META
        )
        gradient = torch.empty_like(hidden, dtype=torch.float32)
        del tile, others
        return gradient.to(hidden.dtype), None, None


def _response_states(causal_lm: Any, rows: int, width: int, answer: int) -> Tensor:
    """As logprobs.response_states, for rows that have nothing in common."""
    body, _ = body_and_head(causal_lm)
    if fastpath.runs_trees(body):
        prompts = [[row] * (width - answer) for row in range(rows)]
        return fastpath.predicting_states(body, fastpath.tree_of(prompts, [[0] * answer] * rows, 0, META))
    return _of_answers(_states(causal_lm, rows, width, DynamicCache(config=causal_lm.config)), answer)


def _states(causal_lm: Any, rows: int, width: int, cache: Any) -> Tensor:
    tokens = _zeros(rows, width)
    positions = torch.arange(width, device=META)[None].expand(rows, -1)
    return trunk_states(body_and_head(causal_lm)[0], tokens, torch.ones_like(tokens), positions, cache)


def _again(body: Any) -> contextlib.AbstractContextManager[None]:
    """``recomputed``; PyTorch drops function modes in the backward pass, so ours is entered again there."""
    return recomputed(body, context_fn=lambda: (contextlib.nullcontext(), _FusedAttention()))


def _of_answers(states: Tensor, answer: int) -> Tensor:
    return states[:, -1 - answer : -1].reshape(-1, states.shape[-1])


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.long, device=META)


@contextlib.contextmanager
def _as_it_was(adapted: Skeleton) -> Iterator[None]:
    """Afterwards the model has no gradients and is in evaluation mode."""
    try:
        yield
    finally:
        adapted.model.eval()
        for parameter in adapted.model.parameters():
            parameter.grad = None
