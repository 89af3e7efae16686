"""PPLM: the cached past is moved to where an attribute is likelier, anew for each token (Dathathri et al. 2020).

With H the keys and values of what was read so far, x the last token, p the model's next-token distribution, and
p(a) the probability of a harmless answer by a logistic head on the mean of the answer's last states, or of a next
token outside of a bag of words (section 3.4):

    repeated m times, from ΔH = 0:  ΔH ← ΔH + α·g / ‖g‖^γ                                        (eq. 3)
        with g the gradient by ΔH of  log p(a | H + ΔH) − λ_KL·KL(p̃ ‖ p)                         (section 3.3)
    p̃ and the next H come from a pass of x with H + ΔH
    the token is drawn from        p̃^γ_gm · p^(1 − γ_gm), normalised                            (section 3.3, eq. 5)

p is the unmodified model's on the whole text. g is normed for each row, and for each layer's keys and values apart, as
the authors' code norms it. α is the method's step times the row's strength. Each token costs 2 + 2·m passes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence, Set
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import DynamicCache

from rewardlm.errors import ConfigError, ModelError, NotAvailableError
from rewardlm.models.generate import Call, Group, GroupAnswers, Guide, Request, Sampled, answering
from rewardlm.models.load import Policy
from rewardlm.steering.folder import SteerFolder
from rewardlm.steering.steered import Drawing, Steered
from rewardlm.trunk import keeps_keys_and_values, trunk_states

# Keys and values of each layer: Float[B, heads, T, D].
Past = list[tuple[Tensor, Tensor]]
# A zero gradient stays zero, and isn't 0 / 0. The authors' constant.
_SMALL = 1e-15


class Attribute(Protocol):
    """log p(a): ``states`` Float[B, M] are the means of the answers' states so far, ``logprobs`` Float[B, V] those of
    the next token → Float[B]."""

    def __call__(self, states: Tensor, logprobs: Tensor) -> Tensor: ...


def head(weight: Float[Tensor, "M"], bias: float) -> Attribute:
    """A classifier head: −w·x − b is the logit of a harmless answer, where w·x + b is that of a toxic one."""

    def harmless(states: Tensor, logprobs: Tensor) -> Tensor:
        return logsigmoid(-(states.float() @ weight.to(states.device)) - bias)

    return harmless


def bag(tokens: Int[Tensor, "W"]) -> Attribute:
    """A bag of words: the probability that the next token is none of it. (Eq. 4 has the sum that it is one.)"""

    def none(states: Tensor, logprobs: Tensor) -> Tensor:
        likely = logprobs[:, tokens.to(logprobs.device)].logsumexp(-1)
        # log(1 − e^x); at x = 0 its slope has no end.
        return torch.log1p(-likely.clamp(max=-1e-6).exp())

    return none


def bag_of(words: Sequence[str], policy: Policy) -> list[int]:
    """The words that are one token inside of a text. Raises ConfigError where none is."""
    encoded = [policy.tokenizer(f" {word.strip()}", add_special_tokens=False)["input_ids"] for word in words]
    found = sorted({ids[0] for ids in encoded if len(ids) == 1})
    if not found:
        raise ConfigError(f"pplm.words: none of the {len(words)} words is one token of {policy.spec}: expected some")
    return found


class Pplm:
    """``pplm``: tensors ``head.weight`` Float[M] and ``head.bias`` Float[1], or ``bag`` Int[W]."""

    method = "pplm"

    def __init__(self, folder: SteerFolder) -> None:
        self.strength = folder.record.strength
        self.settings = dict(folder.record.settings)
        tensors = folder.tensors
        self.attribute = (
            bag(tensors["bag"])
            if "bag" in tensors
            else head(tensors["head.weight"].float(), float(tensors["head.bias"]))
        )

    @contextlib.contextmanager
    def on(self, policy: Policy) -> Iterator[Steered]:
        """Raises ModelError for a model that caches more than keys and values."""
        if not keeps_keys_and_values(policy.causal_lm.config):
            raise ModelError(f"{policy.spec} keeps more than keys and values, so PPLM has no past that it could move")
        with answering(policy):
            yield _WithPast(policy, self.attribute, self.settings)


class _WithPast(Steered):
    def __init__(self, policy: Policy, attribute: Attribute, settings: dict[str, Any]) -> None:
        super().__init__(policy)
        self._guide = PastGuide(attribute, settings)
        self._passes = 2 + 2 * int(settings["iterations"])

    def guided(self) -> contextlib.AbstractContextManager[Guide | None]:
        raise NotAvailableError(
            "pplm moves its past as it draws, and isn't written to read answers that are there already: ask for the "
            "probabilities of the unsteered model (strength 0)"
        )

    def draw(self, requests: Sequence[Request], drawing: Drawing, known: Set[int]) -> Iterator[Sampled]:
        for answer in self._generated(requests, drawing, known, self._guide):
            self.read += len(answer.tokens) * (self._passes - 1)
            yield answer


class PastGuide(Guide):
    """Has groups answered by ``_MovedPast``."""

    shares = False

    def __init__(self, attribute: Attribute, settings: dict[str, Any]) -> None:
        self.attribute, self.settings = attribute, settings

    def answers(self, call: Call, group: Group) -> GroupAnswers:
        return _MovedPast(call, group, self.attribute, self.settings)


class _MovedPast(GroupAnswers):
    """One group's answers, slots at a time, each batch from its prompts to its last end."""

    def __init__(self, call: Call, group: Group, attribute: Attribute, settings: dict[str, Any]) -> None:
        super().__init__(call, group)
        self._attribute = attribute
        self._step, self._rounds = float(settings["step"]), int(settings["iterations"])
        self._gamma, self._kl = float(settings["gamma"]), float(settings["kl"])
        self._fusion = float(settings["fusion"])

    def answers(self) -> Iterator[Sampled]:
        everything = range(len(self.group.indices))
        for start in range(0, len(everything), self.group.slots):
            self.who = list(everything[start : start + self.group.slots])
            self.ages, self.ended = [0] * len(self.who), [False] * len(self.who)
            yield from self._batch()

    def _batch(self) -> Iterator[Sampled]:
        mask, plain, last = self._read_prompts([self.requests[self.group.indices[row]].prompt for row in self.who])
        moved = [(keys, values) for keys, values in plain]
        seen = torch.zeros(len(self.who), self.body.config.hidden_size, device=self.device)
        while True:
            with torch.inference_mode(False):
                found, moved, plain, state = self._token(moved, plain, last, mask, seen, self.ages[0])
            seen = seen + state
            last = self.record(found, state).clone()[:, None]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            yield from self._look()
            if all(self.ended):
                return

    def _read_prompts(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Past, Tensor]:
        """The mask Int[B, T] of the whole prompts, the past of all but their last tokens, and these, Int[B, 1]."""
        width = max(map(len, prompts))
        rows = [[0] * (width - len(prompt)) + [*prompt] for prompt in prompts]
        with torch.inference_mode(False), torch.no_grad():
            tokens = torch.tensor(rows, device=self.device)
            lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)[:, None]
            mask = (torch.arange(width, device=self.device)[None] >= width - lengths).long()
            cache = DynamicCache()
            if width > 1:
                positions = (mask.cumsum(1) - 1).clamp(min=0)[:, :-1]
                trunk_states(self.body, tokens[:, :-1], mask[:, :-1], positions, cache)
            return mask, [(layer.keys, layer.values) for layer in cache.layers], tokens[:, -1:]

    def _token(
        self, moved: Past, plain: Past, last: Tensor, mask: Tensor, seen: Tensor, age: int
    ) -> tuple[Tensor, Past, Past, Tensor]:
        """The fused logits Float[B, V] of the next token; the moved past and the plain one with ``last`` in them; and
        the moved pass's state Float[B, M]. ``seen`` are the sums of ``age`` states before it."""
        last, mask, seen = last.clone(), mask.clone(), seen.clone()
        with torch.no_grad():
            state, plain = self._passed(plain, last, mask)
            logits = self.head(state).float()
        shares = logits.log_softmax(-1)
        strengths = self.strengths[self.who].clone()
        change = [[torch.zeros_like(part) for part in pair] for pair in moved]
        for _ in range(self._rounds):
            for pair in change:
                for part in pair:
                    part.requires_grad_()
            with torch.enable_grad():
                state, _ = self._passed(_sum(moved, change), last, mask)
                theirs = self.head(state).float().log_softmax(-1)
                divergence = (theirs.exp() * (theirs - shares)).sum(-1)
                aim = self._attribute((seen + state.float()) / (age + 1), theirs) - self._kl * divergence
                gradients = torch.autograd.grad(aim.sum(), [part for pair in change for part in pair])
            change = self._moved_on(change, gradients, strengths)
        with torch.no_grad():
            state, moved = self._passed(_sum(moved, change), last, mask)
            theirs = self.head(state).float().log_softmax(-1)
            fused = self._fusion * theirs + (1 - self._fusion) * shares
        return fused, moved, plain, state.float()

    def _moved_on(
        self, change: list[list[Tensor]], gradients: Sequence[Tensor], strengths: Tensor
    ) -> list[list[Tensor]]:
        """One step along the gradients, which come in the order of ``change``."""
        found = iter(gradients)
        result = []
        for pair in change:
            own = []
            for part in pair:
                gradient = next(found)
                size = gradient.float().flatten(1).norm(dim=1) + _SMALL
                step = (self._step * strengths / size**self._gamma).to(gradient.dtype)
                own.append((part + step[:, None, None, None] * gradient).detach())
            result.append(own)
        return result

    def _passed(self, past: Past, last: Tensor, mask: Tensor) -> tuple[Tensor, Past]:
        """The trunk's last state of ``last`` after ``past``, Float[B, M], and the past with it."""
        cache = DynamicCache()
        for number, (keys, values) in enumerate(past):
            cache.update(keys, values, number)
        state = trunk_states(self.body, last, mask, mask.sum(1, keepdim=True) - 1, cache)[:, -1]
        return state, [(layer.keys, layer.values) for layer in cache.layers]


def _sum(past: Past, change: Sequence[Sequence[Tensor]]) -> Past:
    return [
        (keys + of_keys, values + of_values) for (keys, values), (of_keys, of_values) in zip(past, change, strict=True)
    ]
