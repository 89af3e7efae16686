"""Adapters that steer: an expert and an anti-expert beside the base (DExperts), and minus a toxic one (task vectors).

DExperts (Liu et al. 2021, eq. 1 and section 2.2): with logits z of the base, z⁺ of the expert, z⁻ of the anti-expert,
α the strength, and V' the base's own nucleus, of probability p,

    P(x) = softmax over V' of  z + α·(z⁺ − z⁻)

The three are rows of one batch on the one base: its products run once for all.

Task vector (Ilharco et al. 2023, section 3; for LoRA, Zhang et al. 2023): W − α·(s·B·A) with B·A learnt on toxic text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from peft.tuners.lora import LoraLayer
from torch import Tensor

from rewardlm.errors import ModelError
from rewardlm.models.generate import Guide, Request, Sampled, answering
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import body_and_head
from rewardlm.models.lora import adapter_hash, adapter_on, adds_more_than_maps, carrying, head_is_shared, scaled, using
from rewardlm.models.sampling import Distribution, in_cache
from rewardlm.steering.folder import SteerFolder
from rewardlm.steering.steered import Drawing, Steered
from rewardlm.views import Views, viewed

EXPERT, ANTI_EXPERT, TOXIC = "expert", "anti_expert", "toxic"


def located(folder: SteerFolder, name: str) -> Path:
    """Where an adapter of the folder is. Raises ModelError if it is gone, or was trained further."""
    known = folder.record.adapters[name]
    path = folder.folder / known["path"]
    if adapter_hash(path) != known["hash"]:
        raise ModelError(f"the adapter {path} was trained further since the steer folder was made: make it anew")
    return path


class Dexperts:
    """``dexperts``."""

    method = "dexperts"

    def __init__(self, folder: SteerFolder) -> None:
        self.strength = folder.record.strength
        self.top_p = float(folder.record.settings["top_p"])
        self._adapters = {name: located(folder, name) for name in (EXPERT, ANTI_EXPERT)}

    @contextlib.contextmanager
    def on(self, policy: Policy) -> Iterator[Steered]:
        """Raises ModelError for adapters that don't fit, or that change more than linear maps by B·A."""
        if adapter_on(policy) is not None:
            raise ModelError(
                "dexperts has adapters of its own, so the base can't carry another: merge yours first (rewardlm merge)"
            )
        # Off are those adapters, too, that the policy carried before.
        with carrying(policy, self._adapters), using(policy, None):
            _refuse_more_than_maps(policy, self._adapters)
            yield _WithExperts(policy, self.top_p)


def _refuse_more_than_maps(policy: Policy, names: Iterable[str]) -> None:
    embeddings = any(len(layer.lora_embedding_A) for layer in _layers(policy).values())
    if embeddings or not head_is_shared(policy) or any(adds_more_than_maps(policy, name) for name in names):
        raise ModelError(
            "dexperts needs plain LoRA adapters on linear layers other than the head: one of these has a bias, is a "
            "variant of LoRA, saves whole modules, or is on the embeddings or the head"
        )


def _layers(policy: Policy) -> dict[str, LoraLayer]:
    return {name: module for name, module in policy.causal_lm.named_modules() if isinstance(module, LoraLayer)}


class _WithExperts(Steered):
    def __init__(self, policy: Policy, top_p: float) -> None:
        super().__init__(policy)
        self._top_p = top_p

    @contextlib.contextmanager
    def guided(self) -> Iterator[Guide | None]:
        views = Views((None, EXPERT, ANTI_EXPERT))
        body, _ = body_and_head(self.policy.causal_lm)
        with viewed(body, _layers(self.policy), views):
            yield ExpertsGuide(views, self._top_p)

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        with answering(self.policy):
            yield


class ExpertsGuide(Guide):
    """Draws from the base's logits, pushed from the anti-expert's to the expert's."""

    def __init__(self, views: Views, top_p: float) -> None:
        self.views = len(views)
        self._views, self._top_p = views, top_p

    def begin(self, strengths: Float[Tensor, "B"] | None) -> None:
        self._views.rows = None if strengths is None else len(strengths) * self.views

    def alone(self, view: int) -> contextlib.AbstractContextManager[None]:
        return self._views.alone(view)

    def logits(
        self,
        logits: Float[Tensor, "B views V"],
        strengths: Float[Tensor, "B"],
        barred: Bool[Tensor, "B V"] | None = None,
    ) -> Float[Tensor, "B V"]:
        # A CPU walks through a few rows of the vocabulary at a time.
        found = []
        for rows in in_cache(logits[:, 0]):
            base, expert, anti_expert = logits[rows].float().unbind(1)
            held = None if barred is None else barred[rows]
            found.append(combined(base, expert, anti_expert, strengths[rows], self._top_p, held))
        return torch.cat(found)


def combined(
    base: Float[Tensor, "B V"],
    expert: Float[Tensor, "B V"],
    anti_expert: Float[Tensor, "B V"],
    strengths: Float[Tensor, "B"],
    top_p: float,
    barred: Bool[Tensor, "B V"] | None = None,
) -> Float[Tensor, "B V"]:
    """z + α·(z⁺ − z⁻) inside of the base's nucleus, −inf outside. A row of strength 0 keeps the base's logits.

    Where all of the nucleus is ``barred``, such as an end that is too early, that of the other tokens takes its place.
    """
    pushed = base + strengths[:, None] * (expert - anti_expert)
    if top_p < 1:
        outside = Distribution(base).nucleus(top_p).weights == 0
        if barred is not None and (stuck := (outside | barred).all(-1)).any():
            others = base[stuck].masked_fill(barred[stuck], -torch.inf)
            outside[stuck] = Distribution(others).nucleus(top_p).weights == 0
        pushed = pushed.masked_fill(outside & (strengths[:, None] != 0), -torch.inf)
    return pushed


class TaskVector:
    """``task-vector``."""

    method = "task-vector"

    def __init__(self, folder: SteerFolder) -> None:
        self.strength = folder.record.strength
        self._adapters = {TOXIC: located(folder, TOXIC)}

    @contextlib.contextmanager
    def on(self, policy: Policy) -> Iterator[Steered]:
        """Raises ModelError for an adapter that doesn't fit, or that changes more than linear maps by B·A."""
        if hasattr(policy.model, "peft_config"):
            raise ModelError(
                "task-vector takes an adapter away from the base, which can't carry another: merge yours first "
                "(rewardlm merge)"
            )
        with carrying(policy, self._adapters):
            if adds_more_than_maps(policy, TOXIC):
                raise ModelError(
                    "task-vector needs a plain LoRA adapter: this one has a bias, is a variant of LoRA, or saves whole "
                    "modules, which can't be scaled"
                )
            with contextlib.ExitStack() as held:
                yield _WithoutToxicity(policy, held)


class _WithoutToxicity(Steered):
    """The weights hold one strength at a time, so requests are answered strength by strength."""

    def __init__(self, policy: Policy, held: contextlib.ExitStack) -> None:
        super().__init__(policy)
        self._held = held
        self._now: float | None = None

    def draw(self, requests: Sequence[Request], drawing: Drawing, known: Set[int]) -> Iterator[Sampled]:
        for strength in dict.fromkeys(request.strength for request in requests):
            numbers = [number for number, request in enumerate(requests) if request.strength == strength]
            self._hold(strength)
            own = frozenset(index for index, number in enumerate(numbers) if number in known)
            for answer in self._generated([requests[number] for number in numbers], drawing, own):
                yield replace(answer, index=numbers[answer.index])

    @contextlib.contextmanager
    def at(self, strength: float) -> Iterator[Guide | None]:
        if strength:
            self._hold(strength)
        with contextlib.nullcontext() if strength else self.off():
            yield None

    def _hold(self, strength: float | None) -> None:
        """Switch to a strength, and leave it on for the next call: merging takes as long as some answers."""
        if strength == self._now:
            return
        self._held.close()
        self._now = strength
        if strength is None:
            return
        self._held.enter_context(using(self.policy, TOXIC))
        self._held.enter_context(scaled(_layers(self.policy).values(), -strength, TOXIC))
        self._held.enter_context(answering(self.policy))

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        self._hold(None)
        with answering(self.policy):
            yield
