"""Plain text on which training holds the model to its base, so that what it learns about answers stays with answers.

A training reads nothing but chats, and what it does to the model's hold on plain text it doesn't see: fine-tuning and
preference training of a small model can raise its perplexity there by a tenth. So each update also adds

    retain.coef · mean over tokens of KL(base ‖ model)

on a few pieces of plain text: the exact divergence of the next-token distributions, as machine unlearning holds a model
to what it should retain (Maini et al. 2024, arXiv 2401.06121). Without texts of yours, the base writes them: a random
first token, and then what the base draws (Liu et al. 2023, arXiv 2305.17888).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import TrainerCallback

from rewardlm.config import GenerationSettings, PreferSettings, RetainSettings, TrainingSettings
from rewardlm.data.files import read_txt
from rewardlm.errors import ConfigError, DataError
from rewardlm.models.generate import Request, generate, stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import forward_rows, hidden_rows, pieces
from rewardlm.models.lora import head_is_shared, using
from rewardlm.models.processes import Processes
from rewardlm.models.sharding import in_step
from rewardlm.runs import Run

# How many positions go forwards and backwards at once.
POSITIONS = 1024
# A shorter piece says too little about what follows what.
_SHORTEST = 8
_SILENT = f"{{}} writes no text of {_SHORTEST} tokens by itself"


@dataclass(frozen=True, slots=True)
class Retained:
    """Pieces of plain text, and the base's states that their tokens (all but the first) are predicted from."""

    policy: Policy
    coef: float
    batch: int
    pieces: list[list[int]]
    states: list[Float[Tensor, "R H"]]
    processes: Processes
    recompute: bool

    def add_gradient(self, update: int, *, averaged: bool = False) -> float:
        """Add to the adapter's gradients those of this process's share of an update's pieces; updates are numbered
        from 0. ``averaged`` says that the processes' gradients will be averaged, and not added up. Returns this
        process's share of the mean KL in nats a token: all shares add up to it. Where the base is divided, call it
        inside ``in_step``.
        """
        n, first = len(self.pieces), update * self.batch
        numbers = [number % n for number in range(first, first + min(self.batch, n))]
        n_tokens = sum(len(self.pieces[number]) - 1 for number in numbers)
        mine = self.processes.share(numbers)
        prompts, rests = _in_two([self.pieces[number] for number in mine])
        states = [self.states[number] for number in mine]
        causal_lm = self.policy.causal_lm
        self.policy.model.eval()  # without dropout, which would be a divergence by itself
        coef = self.coef * (self.processes.size if averaged else 1)
        total = 0.0
        with torch.enable_grad():
            for rows in pieces(causal_lm, prompts, rests, POSITIONS, recompute=self.recompute):
                stats = forward_rows(causal_lm, prompts, rests, rows, kl_from=states, recompute=self.recompute)
                assert stats.kl is not None
                kl = stats.kl.sum() / n_tokens
                (coef * kl).backward()  # type: ignore[no-untyped-call]
                total += float(kl.detach())
        return total


def retained(
    policy: Policy, settings: TrainingSettings, run: Run, processes: Processes, say: Callable[[str], None]
) -> Retained | None:
    """What a training retains; None if it retains nothing, by its settings or, by default, because it can't.

    The pieces are kept in retain.jsonl, so that a run that goes on has the same ones. If retaining was asked for,
    ConfigError is raised where adapters are on the language-model head, and DataError for a text without a piece.
    """
    retain = settings.retain
    if not settings.retain_coef:
        return None
    # Its default rate is for trainings that retain.
    gentler = ". A lower --learning-rate, such as 8e-4, fits that" if isinstance(settings, PreferSettings) else ""
    if not head_is_shared(policy):
        if retain.coef is None:
            say(
                "the model is not held to its base on plain text (retain): the adapter is on the language-model head"
                + gentler
            )
            return None
        raise ConfigError(
            "retain.coef compares distributions by one language-model head, but the adapter is on the head too: take "
            "the head out of lora.targets, or leave retain.coef out"
        )

    def write() -> None:
        if "retain" in run.meta:
            return
        found = (
            _own_text(policy, retain, settings.seed) if retain.source is None else _given(policy, retain, settings.seed)
        )
        if not found and retain.coef is not None:
            raise DataError(f"{_SILENT.format(policy.spec)}: give retain.source a text file of yours")
        run.replace("retain", [{"tokens": piece, "text": policy.tokenizer.decode(piece)} for piece in found])
        source = "the base's own text" if retain.source is None else retain.source
        run.update(retain={"source": source, "pieces": len(found), "tokens": sum(map(len, found))})
        n, coef = len(found), settings.retain_coef
        if n:
            say(f"the model is held to its base on {n:,} pieces of plain text, {source} (retain.coef {coef:g})")
        else:
            say(f"the model is not held to its base on plain text (retain): {_SILENT.format(policy.spec)}{gentler}")

    processes.first(write)
    kept = [list(record["tokens"]) for record in run.read("retain")]
    if not kept:
        return None
    recompute = settings.gradient_checkpointing
    return Retained(policy, settings.retain_coef, retain.batch, kept, _states(policy, kept), processes, recompute)


@torch.no_grad()
def _states(policy: Policy, texts: Sequence[Sequence[int]]) -> list[Float[Tensor, "R H"]]:
    """The base's, for all tokens of each text but the first. They stay on the CPU."""
    prompts, rests = _in_two(texts)
    found: dict[int, Tensor] = {}
    policy.model.eval()
    with using(policy, None), in_step(policy):
        for rows in pieces(policy.causal_lm, prompts, rests, POSITIONS):
            states = hidden_rows(policy.causal_lm, prompts, rests, rows).cpu()
            found.update(zip(rows, states.split_with_sizes([len(rests[row]) for row in rows]), strict=True))
    return [found[row] for row in range(len(texts))]


def _in_two(texts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """The first token of each, which nothing predicts, and the rest."""
    return [list(text[:1]) for text in texts], [list(text[1:]) for text in texts]


def _own_text(policy: Policy, retain: RetainSettings, seed: int) -> list[list[int]]:
    """What the base writes after a random first token, each piece by a random stream of its own."""
    firsts = list(_beginnings(policy.tokenizer))
    generator = torch.Generator().manual_seed(stream_seed("retain", seed))
    chosen = torch.randint(len(firsts), (retain.pieces,), generator=generator).tolist()
    requests = [Request((firsts[which],), stream_seed("retain", seed, number)) for number, which in enumerate(chosen)]
    length = min(retain.tokens, policy.max_positions)
    ends = set(policy.tokenizer.all_special_ids)
    written: dict[int, list[int]] = {}
    with using(policy, None):
        for drawn in generate(
            policy, requests, max_new_tokens=length - 1, sampling=GenerationSettings(), entropy=False
        ):
            tokens = [*requests[drawn.index].prompt, *drawn.tokens]
            cut = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
            written[drawn.index] = tokens[:cut]
    return [written[number] for number in range(len(requests)) if len(written[number]) >= _SHORTEST]


def _beginnings(tokenizer: Any) -> Iterator[int]:
    """Tokens that a text may begin with: letters and nothing else, a space before them perhaps."""
    special = set(tokenizer.all_special_ids)
    for token in range(len(tokenizer)):
        if token not in special and tokenizer.decode([token]).removeprefix(" ").isalpha():
            yield token


def _given(policy: Policy, retain: RetainSettings, seed: int) -> list[list[int]]:
    """Lines of the user's own text in their order, cut to length; of more than ``pieces`` a random sample, for a file
    may be sorted by subject.
    """
    assert retain.source is not None
    lines = [str(row.values["text"]) for row in read_txt(Path(retain.source).expanduser())]
    generator = torch.Generator().manual_seed(stream_seed("retain", seed))
    found: dict[int, list[int]] = {}
    for line in torch.randperm(len(lines), generator=generator).tolist():
        tokens = list(policy.tokenizer(lines[line], add_special_tokens=False)["input_ids"])
        if len(tokens) >= _SHORTEST:
            found[line] = tokens[: retain.tokens]
        if len(found) == retain.pieces:
            break
    if not found:
        raise DataError(f"{retain.source}: no line has {_SHORTEST} tokens; retain.source is a file of plain text")
    return [found[line] for line in sorted(found)]


class RetainCallback(TrainerCallback):  # type: ignore[misc]
    """Adds what is retained, if anything, to a TRL trainer's gradients, before each optimizer step's own passes.

    The trainer begins after ``before`` steps of its run.
    """

    def __init__(self, held: Retained | None, before: int = 0) -> None:
        self.held = held
        self.before = before
        self.kl = 0.0

    def of_step(self, step: int) -> dict[str, float]:
        """What the last step's line in metrics.jsonl says of it: the KL before the step, in nats a token."""
        return {} if self.held is None else {"retain_kl": self.kl}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.held is None:
            return
        with in_step(self.held.policy):
            share = self.held.add_gradient(self.before + state.global_step, averaged=True)
        self.kl = self.held.processes.sums({"kl": share})["kl"]
