"""Sampling answers: the shared prefix prefilled once, ended rows taken out, their places given to the next prompts.

Each row draws its randomness from a seed of its own, so an answer depends on (seed, prompt, sample) and not on which
other prompts happened to be beside it. (Floating-point sums may still differ in the last bit between batch shapes,
which now and then changes a token.) The log-probability kept with every token is the model's own, at temperature 1 and
before any truncation.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections import deque
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from rewardlm import fastpath
from rewardlm.config import GenerationSettings
from rewardlm.errors import ModelError
from rewardlm.models.budget import Budget, free_cached, ran_out
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import body_and_head, shared_prefix
from rewardlm.models.lora import adapter_on, merged
from rewardlm.models.sampling import Sampler
from rewardlm.trunk import has_window, keeps_keys_and_values, trunk_states
from rewardlm.types import Finish

# How many times a group of requests fills its slots. With few groups, slots are seldom nearly empty; a resumed run does
# at most one group again.
_REFILLS = 4
# New prompts are put in once one slot in _FREE is free; ended rows are taken out once one row in _ENDED has ended.
_FREE, _ENDED = 8, 16
# Steps between two looks at what was drawn. A device that works ahead of the CPU has to wait at each look.
_LOOK = {"cpu": 1}
_LOOK_ELSEWHERE = 8


@dataclass(frozen=True)
class Request:
    """One answer to sample: the prompt's token ids and the seed of its own random stream.

    While the policy is steered: ``strength`` says how much, and ``beside`` are the prompts of the request's further
    views, where they read another one.
    """

    prompt: tuple[int, ...]
    seed: int
    strength: float = 1.0
    beside: tuple[tuple[int, ...], ...] = ()

    def views(self, number: int) -> tuple[tuple[int, ...], ...]:
        """The prompts of its ``number`` views. Without prompts of their own, all read ``prompt``."""
        return (self.prompt, *(self.beside or (self.prompt,) * (number - 1)))


class Guide:
    """What decoding asks of a steering, which ``policy.guide`` is while it is on. This one changes nothing.

    Each request is ``views`` rows of a batch, side by side. ``by_rows``: prompts are steered while they are read, and
    all views read the same one. ``shares``: a beginning that all prompts share has no strength, so it is run once.
    """

    views = 1
    by_rows = True
    shares = True

    def begin(self, strengths: Float[Tensor, "B"] | None) -> None:
        """Passes that follow have B requests of these strengths; None: they are those of the model itself."""

    def alone(self, view: int) -> contextlib.AbstractContextManager[None]:
        """Inside, all rows of a pass are of one view; with ``by_rows`` only."""
        return contextlib.nullcontext()

    def logits(
        self,
        logits: Float[Tensor, "B views V"],
        strengths: Float[Tensor, "B"],
        barred: Bool[Tensor, "B V"] | None = None,
    ) -> Float[Tensor, "B V"]:
        """The logits that tokens are drawn from. ``barred`` are tokens that the settings then bar from being drawn."""
        return logits[:, 0]

    def answers(self, call: Call, group: Group) -> GroupAnswers | None:
        """Who draws a group's answers, for a method that does more than to change what is read and drawn from."""
        return None


@dataclass(frozen=True)
class Sampled:
    """One answer: ``tokens`` R (the end token included, if it came), ``logprobs`` and ``entropy`` Float[R],
    ``hidden`` Float[R, H].

    ``sampling_logprobs`` Float[R] are those of the distribution that was drawn from. They differ from ``logprobs`` only
    where temperature, truncation or a ban changed it, and are 0 in greedy decoding.
    """

    index: int
    tokens: list[int]
    logprobs: Tensor
    sampling_logprobs: Tensor
    entropy: Tensor
    hidden: Tensor | None
    finish: Finish


@dataclass(frozen=True)
class Group:
    """Requests that are answered together, by their indices, longest prompt first: ``slots`` of them at a time.

    All begin with the same ``shared`` tokens.
    """

    indices: list[int]
    slots: int
    shared: int


def stream_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable: the same parts give the same stream on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def groups(
    requests: Sequence[Request],
    max_new_tokens: int,
    batch_tokens: int,
    done: Set[int] = frozenset(),
    *,
    views: int = 1,
    share: bool = True,
) -> list[Group]:
    """All requests but ``done``, in groups whose slots have at most ``batch_tokens`` positions. These include padding
    and answers, all ``views`` of a request, but not the beginning that all prompts of the call ``share``.

    Requests are sorted by length and prompt, longest first: so there is little padding, equal prompts are side by side,
    and what does not fit in memory shows at once.
    """
    if not requests:
        return []
    shared = shared_prefix([prompt for request in requests for prompt in request.views(1)]) if share else 0
    left = [i for i in range(len(requests)) if i not in done]
    order = sorted(left, key=lambda i: (-_longest(requests[i]), requests[i].prompt))
    result = []
    while order:
        width = _longest(requests[order[0]]) - shared + max_new_tokens
        slots = max(1, batch_tokens // (width * views))
        result.append(Group(order[: slots * _REFILLS], slots, shared))
        order = order[slots * _REFILLS :]
    return result


def _longest(request: Request) -> int:
    return max(map(len, request.views(1)))


def answering(policy: Policy) -> contextlib.AbstractContextManager[None]:
    """Inside, the adapter that is on is merged where that makes answers faster and decoding has no merged copy of its
    own."""
    body, _ = body_and_head(policy.causal_lm)
    adapter = adapter_on(policy)
    return contextlib.nullcontext() if adapter is None or fastpath.copies_weights(body) else merged(policy, adapter)


@torch.inference_mode()
def generate(
    policy: Policy,
    requests: Sequence[Request],
    *,
    max_new_tokens: int,
    sampling: GenerationSettings,
    batch_tokens: int | Budget = 4096,
    keep_hidden: bool = False,
    entropy: bool = True,
    known: Set[int] = frozenset(),
) -> Iterator[Sampled]:
    """Answers as they end. Raises ModelError for NaN logits or a prompt that leaves no room.

    ``known`` are indices of requests whose answers the caller has. A group of known ones only is skipped; any other is
    run whole, so that a resumed run has the batches, and with them the rounding, of the first time.

    ``keep_hidden`` keeps the trunk's last state that each token was drawn from, for a value head. ``entropy`` False
    leaves the entropies 0, which saves time.

    Where memory runs out, ``batch_tokens`` is halved and unanswered requests are run again. A Budget stays halved for
    the next call.

    A model that caches more than keys and values (Mamba, RecurrentGemma) is sampled by transformers' own ``generate``,
    with a warning: the same answers, more slowly. So is every model while the fast path is shut.
    """
    limit = policy.max_positions
    for request in requests:
        if _longest(request) + max_new_tokens > limit:
            raise ModelError(
                f"a prompt of {_longest(request)} tokens and {max_new_tokens} new ones exceed the model's "
                f"{limit} positions: shorten the prompt or --max-new-tokens"
            )
    standard = keeps_keys_and_values(policy.causal_lm.config)
    if requests and not standard:
        warnings.warn(
            f"{policy.spec} ({type(policy.causal_lm).__name__}) keeps more than keys and values: it is sampled by "
            "transformers' generate, which is slower",
            stacklevel=2,
        )
    guide: Guide | None = policy.guide
    if guide is not None and guide.views > 1 and not standard:
        raise ModelError(
            f"{policy.spec} ({type(policy.causal_lm).__name__}) keeps more than keys and values: it can't answer a "
            "request in several rows, as this way of steering does; choose another one"
        )
    # transformers' generate has no place for a request's further rows.
    own = standard and (fastpath.is_open() or (guide is not None and guide.views > 1))
    how: dict[str, Any] = {} if guide is None else {"views": guide.views, "share": guide.shares}
    budget = batch_tokens if isinstance(batch_tokens, Budget) else Budget(batch_tokens, "batch_tokens")
    call = Call(policy, requests, max_new_tokens, sampling, keep_hidden, entropy)
    steps: fastpath.Steps | None = None
    done: set[int] = set()
    while len(done) < len(requests):
        size = budget.size
        for group in groups(requests, max_new_tokens, size, done, **how):
            if not all(index in known for index in group.indices):
                try:
                    if own and steps is None:
                        steps = fastpath.decoder(*body_and_head(policy.causal_lm))
                    batch: GroupAnswers | None = None if guide is None else guide.answers(call, group)
                    if batch is None:
                        batch = _ByTransformers(call, group) if steps is None else _Decoder(call, group, steps)
                    for answer in batch.answers():
                        done.add(answer.index)
                        yield answer
                except (RuntimeError, MemoryError) as error:
                    if not ran_out(error):
                        raise
                    budget.shrink(size if group.slots == 1 else size // group.slots, error)
            if budget.size < size:
                # The rest, in smaller groups.
                free_cached()
                break
            done.update(group.indices)


@dataclass(frozen=True)
class Call:
    """What ``generate`` was called with: its arguments."""

    policy: Policy
    requests: Sequence[Request]
    max_new_tokens: int
    sampling: GenerationSettings
    keep_hidden: bool
    entropy: bool


class GroupAnswers:
    """One group's answers, by row of the group, on the device; ``who`` are the rows that hold a slot now."""

    def answers(self) -> Iterator[Sampled]:
        """Each answer once it has ended."""
        raise NotImplementedError

    def __init__(self, call: Call, group: Group) -> None:
        self.policy, self.requests, self.group = call.policy, call.requests, group
        self.max_new_tokens, self.keep_hidden = call.max_new_tokens, call.keep_hidden
        self.body, self.head = body_and_head(self.policy.causal_lm)
        device = self.device = self.policy.device
        rows = len(group.indices)
        uniforms = [np.random.default_rng(self.requests[i].seed).random(self.max_new_tokens) for i in group.indices]
        self.uniforms = torch.from_numpy(np.stack(uniforms)).to(device)
        self.end_ids = torch.tensor(sorted(self.policy.end_ids), dtype=torch.long, device=device)
        self.sampler = Sampler(call.sampling, self.end_ids, entropy=call.entropy)
        self.tokens = torch.zeros(rows, self.max_new_tokens, dtype=torch.long, device=device)
        # logprobs, sampling_logprobs and entropy
        self.statistics = torch.zeros(3, rows, self.max_new_tokens, device=device)
        self.states: Tensor | None = None
        # For each slot: its row, how many tokens that has, and whether its answer has ended.
        self.who: list[int] = []
        self.ages: list[int] = []
        self.ended: list[bool] = []
        self.looked_at = [0] * rows
        self.guide: Guide | None = self.policy.guide
        self.views = 1 if self.guide is None else self.guide.views
        strengths = [self.requests[i].strength for i in group.indices]
        self.strengths = torch.tensor(strengths, dtype=torch.float32, device=device)

    def begin(self, strengths: Tensor | None) -> None:
        """Passes that follow have these requests, by their strengths; None: they are not steered."""
        if self.guide is not None:
            self.guide.begin(strengths)

    def record(self, logits: Tensor, hidden: Tensor) -> Tensor:
        """The next token of every slot, Int[B], stored with its statistics; by all views' ``logits``
        Float[B·views, V]."""
        who = torch.tensor(self.who, device=self.device)
        # A row that ended since the last look goes on drawing; these tokens are cut off later.
        ages = torch.tensor(self.ages, device=self.device).clamp(max=self.max_new_tokens - 1)
        barred = self.sampler.barred(logits[:: self.views], *self._so_far())
        if self.guide is not None:
            logits = self.guide.logits(logits.view(len(who), self.views, -1), self.strengths[who], barred)
        found = self.sampler.draw(logits, self.uniforms[who, ages], barred)
        self.tokens[who, ages] = found.tokens
        self.statistics[:, who, ages] = torch.stack([found.logprobs, found.sampling_logprobs, found.entropy])
        if self.keep_hidden:
            if self.states is None:
                shape = (*self.tokens.shape, hidden.shape[-1])
                self.states = torch.zeros(shape, device=self.device)
            self.states[who, ages] = hidden.float()
        self.ages = [min(age + 1, self.max_new_tokens) for age in self.ages]
        return found.tokens

    def _so_far(self) -> tuple[list[int], list[list[int]]]:
        """How many tokens each slot has, and, where a setting depends on it, which, prompt included."""
        if not self.sampler.settings.no_repeat_ngram_size:
            return self.ages, []
        drawn = self.tokens[torch.tensor(self.who, device=self.device)].tolist()
        return self.ages, [
            [*self.requests[self.group.indices[row]].prompt, *tokens[:age]]
            for row, tokens, age in zip(self.who, drawn, self.ages, strict=True)
        ]

    def _look(self) -> Iterator[Sampled]:
        """The answers that have ended since the last look."""
        who = torch.tensor(self.who, device=self.device)
        tokens = self.tokens[who]
        ends = torch.isin(tokens, self.end_ids).tolist()
        broken = (~torch.isfinite(self.statistics[:, who]).all(0)).tolist()
        drawn = tokens.tolist()
        for slot, row in enumerate(self.who):
            if self.ended[slot]:
                continue
            age, since = self.ages[slot], self.looked_at[row]
            self.looked_at[row] = age
            for position in range(since, age):
                if broken[slot][position]:
                    raise ModelError(
                        f"the logits of {self.policy.spec} hold NaN or infinity at new token {position + 1} "
                        f"(dtype {self.policy.dtype}): the adapter is broken or the precision too low; "
                        "try --dtype float32"
                    )
                stopped = ends[slot][position] or self._says_stop(drawn[slot][: position + 1])
                if stopped or position + 1 == self.max_new_tokens:
                    self.ended[slot] = True
                    yield self._sampled(row, drawn[slot][: position + 1], "stop" if stopped else "length")
                    break

    def _says_stop(self, tokens: list[int]) -> bool:
        stops = self.policy.chat.stop_strings
        if not stops:
            return False
        # A stop string is short: the last 16 tokens hold it.
        text = self.policy.tokenizer.decode(tokens[-16:], skip_special_tokens=True)
        return any(stop in text for stop in stops)

    def _sampled(self, row: int, tokens: list[int], finish: Finish) -> Sampled:
        logprobs, sampling_logprobs, entropy = self.statistics[:, row, : len(tokens)].cpu().clone()
        hidden = None if self.states is None else self.states[row, : len(tokens)].cpu().clone()
        return Sampled(self.group.indices[row], tokens, logprobs, sampling_logprobs, entropy, hidden, finish)


class _Decoder(GroupAnswers):
    """The answers by our own cache: a slot holds one row, and the next one when that has ended."""

    def __init__(self, call: Call, group: Group, steps: fastpath.Steps) -> None:
        super().__init__(call, group)
        self.steps, self.slots = steps, steps.slots()
        # Sliding windows count columns of the cache, pads too, so such models get whole prompts.
        self.shared = 0 if has_window(self.policy.causal_lm.config) else group.shared
        self.prefixes: list[_Prefix] = []
        self.look_every = _LOOK.get(self.device.type, _LOOK_ELSEWHERE)

    def answers(self) -> Iterator[Sampled]:
        self.prefixes = self._run_prefixes()
        waiting = deque(range(len(self.group.indices)))
        hidden = self._admit(waiting, None)
        step = 0
        while True:
            chosen = self.record(self.steps.logits(hidden), hidden[:: self.views])
            step += 1
            if step % self.look_every == 0 or self.max_new_tokens in self.ages:
                yield from self._look()
            live = [slot for slot, ended in enumerate(self.ended) if not ended]
            if not live:
                if not waiting:
                    return
                hidden = self._admit(waiting, None)
                continue
            refill = bool(waiting) and (self.group.slots - len(live)) * _FREE >= self.group.slots
            ended = len(self.who) - len(live)
            if self.slots.is_full or (ended * _ENDED >= len(self.who) and ended and not refill):
                chosen = chosen[torch.tensor(live, device=self.device)]
                self._rebuild(live)
            hidden = self.steps.states(chosen.repeat_interleave(self.views), self.slots)
            if refill:
                hidden = self._admit(waiting, hidden)

    def _rebuild(self, keep: list[int], new: tuple[DynamicCache, Tensor, Tensor] | None = None) -> None:
        self.who, self.ages = [self.who[slot] for slot in keep], [self.ages[slot] for slot in keep]
        self.ended = [self.ended[slot] for slot in keep]
        room = self.max_new_tokens - (0 if new is not None else min(self.ages))
        self.slots.rebuild(self._rows(keep), room, new)
        if new is None:
            self.begin(self.strengths[self.who])

    def _rows(self, slots: Sequence[int]) -> list[int]:
        """The rows of the store that these slots' views are."""
        return [slot * self.views + view for slot in slots for view in range(self.views)]

    def _admit(self, waiting: deque[int], hidden: Tensor | None) -> Tensor:
        """Take ended rows out and waiting ones in; returns the states that the slots' next tokens follow, Float[B, H].

        ``hidden`` are the states of the slots as they were; None where all have ended.
        """
        live = [] if hidden is None else [slot for slot, ended in enumerate(self.ended) if not ended]
        rows = [waiting.popleft() for _ in range(min(len(waiting), self.group.slots - len(live)))]
        cache, mask, states, index = self._prefill(rows)
        self._rebuild(live, (cache, mask, index))
        self.who += rows
        self.ages += [0] * len(rows)
        self.ended += [False] * len(rows)
        self.begin(self.strengths[self.who])
        fresh = states[index]
        if hidden is None:
            return fresh
        return torch.cat([hidden[torch.tensor(self._rows(live), device=self.device)], fresh])

    def _run_prefixes(self) -> list[_Prefix]:
        """The beginning that all prompts share (the template's system turn): once where all views read it alike, else
        once for each view."""
        if not self.shared:
            return [[] for _ in self._apart()]
        prompt = self.requests[self.group.indices[0]].prompt
        prefix = torch.tensor([prompt[: self.shared]], device=self.device)
        positions = torch.arange(self.shared, device=self.device)[None]
        found: list[_Prefix] = []
        self.begin(None)
        for view in self._apart():
            cache = DynamicCache()
            with self._alone(view):
                trunk_states(self.body, prefix, torch.ones_like(prefix), positions, cache)
            found.append([(layer.keys, layer.values) for layer in cache.layers])
        return found

    def _apart(self) -> range:
        """The views whose passes differ by more than their prompts; one stands for all where none does."""
        return range(self.views if self.guide is not None and self.guide.by_rows else 1)

    def _alone(self, view: int) -> contextlib.AbstractContextManager[None]:
        if self.guide is None or not self.guide.by_rows:
            return contextlib.nullcontext()
        return self.guide.alone(view)

    def _prefill(self, rows: list[int]) -> tuple[DynamicCache, Tensor, Tensor, Tensor]:
        """Cache, mask and last states Float[N, H] of the N distinct prompts of ``rows``, and which of them each view
        of each row is, Int[B·views].

        Prompts that occur more than once (k samples) are run once, if they are steered alike. Between prefix and rest
        stands left padding, which mask and positions skip.
        """
        requests = [self.requests[self.group.indices[row]] for row in rows]
        if self.guide is not None and self.guide.by_rows:
            return self._prefill_by_strength([(request.prompt, request.strength) for request in requests])
        prompts = [prompt for request in requests for prompt in request.views(self.views)]
        places = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        index = torch.tensor([places[prompt] for prompt in prompts], device=self.device)
        if not fastpath.runs_trees(self.body):
            return *self._run_padded(list(places)), index
        return *self._run_tree(list(places), 0), index

    def _prefill_by_strength(
        self, keys: list[tuple[tuple[int, ...], float]]
    ) -> tuple[DynamicCache, Tensor, Tensor, Tensor]:
        """As ``_prefill``, of requests that are steered while they are read: prompts with their strengths."""
        where = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        prompts = [prompt for prompt, _ in where]
        self.begin(torch.tensor([strength for _, strength in where], dtype=torch.float32, device=self.device))
        with self._alone(0):
            # In one sequence, a prompt that occurs twice is there once.
            in_trees = len(set(prompts)) == len(prompts) and fastpath.runs_trees(self.body)
        if not in_trees:
            index = torch.tensor(self._rows([where[key] for key in keys]), device=self.device)
            return *self._run_padded([prompt for prompt in prompts for _ in range(self.views)]), index
        parts = []
        for view in range(self.views):
            with self._alone(view):
                parts.append(self._run_tree(prompts, view))
        own = [where[key] + view * len(prompts) for key in keys for view in range(self.views)]
        index = torch.tensor(own, device=self.device)
        return *(parts[0] if len(parts) == 1 else _side_by_side(parts)), index

    def _run_tree(self, prompts: list[tuple[int, ...]], view: int) -> tuple[DynamicCache, Tensor, Tensor]:
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self.prefixes[view]):
            cache.update(keys, values, number)
        return cache, *fastpath.prefill(self.body, prompts, cache, self.shared)

    def _run_padded(self, prompts: list[tuple[int, ...]]) -> tuple[DynamicCache, Tensor, Tensor]:
        """``prompts`` are those of all views, side by side, where these are apart."""
        cache = DynamicCache()  # Without the configuration: layers with a window would drop what a row's slot needs.
        apart = len(self.prefixes)
        for number, own in enumerate(zip(*self.prefixes, strict=True)):
            # Float[views, heads, T, D], again and again.
            keys, values = (torch.cat(parts).repeat(len(prompts) // apart, 1, 1, 1) for parts in zip(*own, strict=True))
            cache.update(keys, values, number)
        rests = [prompt[self.shared :] for prompt in prompts]
        tokens = _left_padded(rests, self.device)
        lengths = torch.tensor([len(rest) for rest in rests], device=self.device)[:, None]
        width = tokens.shape[1]
        rest_mask = (torch.arange(width, device=self.device)[None] >= width - lengths).long()
        mask = torch.cat([rest_mask.new_ones(len(prompts), self.shared), rest_mask], 1)
        positions = (self.shared + rest_mask.cumsum(1) - 1).clamp(min=0)
        hidden = trunk_states(self.body, tokens, mask, positions, cache)[:, -1]
        return cache, mask, hidden


class _ByTransformers(GroupAnswers):
    """The answers by transformers' ``generate``, for prompts of one length at a time: a recurrent state would take up
    padding too."""

    def answers(self) -> Iterator[Sampled]:
        prompts = [self.requests[index].prompt for index in self.group.indices]
        by_length: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            by_length.setdefault(len(prompt), []).append(row)
        for rows in by_length.values():
            for start in range(0, len(rows), self.group.slots):
                self.who = rows[start : start + self.group.slots]
                self.ages, self.ended = [0] * len(self.who), [False] * len(self.who)
                self.begin(self.strengths[self.who])
                self._run([prompts[row] for row in self.who])
                yield from self._look()

    def _run(self, prompts: list[tuple[int, ...]]) -> None:
        seen: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, -1]))
        tokens = torch.tensor(prompts, device=self.device)
        try:
            self.policy.causal_lm.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                # Made from scratch: a model's own may punish repetition, say, which would change its distribution.
                generation_config=GenerationConfig(
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                    eos_token_id=self.end_ids.tolist(),
                    pad_token_id=0,
                ),
                logits_processor=LogitsProcessorList([_Chosen(self, seen)]),
            )
        finally:
            hook.remove()


class _Chosen(LogitsProcessor):  # type: ignore[misc]
    """Leaves the token that we draw as the only one possible."""

    def __init__(self, batch: GroupAnswers, seen: list[Tensor]) -> None:
        self._batch, self._seen = batch, seen

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self._batch.record(scores.float(), self._seen.pop())
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen[:, None], 0.0)


# Each layer's keys and values, Float[1, heads, T, D].
_Prefix = list[tuple[Tensor, Tensor]]


def _side_by_side(parts: Sequence[tuple[DynamicCache, Tensor, Tensor]]) -> tuple[DynamicCache, Tensor, Tensor]:
    """Caches, masks and last states of the same number of prompts, one set after the other."""
    cache = DynamicCache()
    for number, layers in enumerate(zip(*(part[0].layers for part in parts), strict=True)):
        cache.update(torch.cat([layer.keys for layer in layers]), torch.cat([layer.values for layer in layers]), number)
    return cache, torch.cat([mask for _, mask, _ in parts]), torch.cat([states for _, _, states in parts])


def _left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[0] * (width - len(row)) + [*row] for row in rows], device=device)
