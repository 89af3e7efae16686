"""A scored run as a method reads it: answers as token ids, each with P(toxic), and prompts that are kept for choosing.

Shapes: n answers, L layers, M the stream's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardlm.config import ChatSettings, GenerationSettings, validate
from rewardlm.data.chat import truncate_history
from rewardlm.errors import RunError
from rewardlm.models.architecture import architecture_of
from rewardlm.models.generate import stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import pack, pieces, response_states
from rewardlm.progress import ProgressCallback
from rewardlm.runs import MainLabels, Run, ScorerEntry
from rewardlm.stats import BoolArray, FloatArray
from rewardlm.steering.activation import module_at
from rewardlm.stream import Change, Edits, Site, edited
from rewardlm.trunk import evaluating
from rewardlm.types import Message, Prompt

TOXIC_ABOVE = 0.5
# With fewer toxic answers than this, the highest scores stand for them: at most this share of all.
_FEWEST, _AT_MOST = 8, 0.25


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer to learn from; ``prompt`` and ``response`` are token ids, ``owner`` is its prompt's id."""

    owner: str
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    toxicity: float
    toxic: bool


@dataclass(frozen=True)
class ScoredRun:
    """A measured run by one judge: answers to learn from, and ``kept`` prompts, the most toxic first, to choose on.

    An answer counts as toxic ``toxic_above`` this score. ``turns`` are each prompt's, by its id.
    """

    run: Run
    judge: ScorerEntry
    answers: list[ScoredAnswer]
    kept: list[Prompt]
    turns: dict[str, tuple[Message, ...]]
    toxic_above: float

    @property
    def generation(self) -> GenerationSettings:
        """How the run's answers were drawn: strengths are chosen on answers drawn alike."""
        return validate(GenerationSettings, self.run.setting("generation", dict[str, Any]))


def read_scored(
    path: Path,
    judge: str | None,
    policy: Policy,
    adapter_hash: str | None,
    chat: ChatSettings,
    *,
    keep: float,
    seed: int,
) -> ScoredRun:
    """The answers of the run at ``path``, with the scores of ``judge`` (by default its first), where they have one.

    A share ``keep`` of the prompts is kept out, drawn by ``seed``. Raises RunError for a run of another model or with
    another ``chat``, without that judge, of too few prompts, or whose answers have no tokens.
    """
    run = Run.open(path, kind="measure")
    _refuse_other_model(run, policy, adapter_hash)
    answered = run.setting("chat", dict[str, Any])
    if validate(ChatSettings, answered) != chat:
        raise RunError(
            f"{path} was answered with other chat settings than these, so its answers followed other texts: give the "
            f"same ({answered})"
        )
    entry = judge_of(run, judge)
    labels = MainLabels()
    values: dict[str, float] = {}
    records = [record for record in run.read("scores") if record["scorer"] == entry["name"]]
    for record in records:
        labels.add(record)
    for record in records:
        if record["value"] is not None and labels.column(entry["name"], record["label"] or "") == entry["name"]:
            values[record["generation_id"]] = float(record["value"])
    prompts = run.prompts()
    kept = _kept(prompts, keep, seed)
    if len(kept) == len(prompts):
        raise RunError(
            f"{path} has {len(prompts)} prompts, and choose.share={keep:g} keeps all of them for choosing: measure "
            "more, or keep a smaller share"
        )
    encoded: dict[str, tuple[int, ...]] = {}
    by_prompt: dict[str, list[float]] = {}
    answers: list[ScoredAnswer] = []
    of_id = {prompt.id: prompt for prompt in prompts}
    for answer in run.each_generation():
        value = values.get(answer.id)
        if value is None:
            continue
        by_prompt.setdefault(answer.prompt_id, []).append(value)
        if answer.prompt_id in kept or not answer.tokens:
            continue
        room = policy.max_positions - len(answer.tokens)
        if answer.prompt_id not in encoded:
            encoded[answer.prompt_id] = tuple(truncate_history(policy.chat, of_id[answer.prompt_id].turns, room)[0])
        answers.append(ScoredAnswer(answer.prompt_id, encoded[answer.prompt_id], answer.tokens, value, False))
    if not answers:
        raise RunError(f"{path} has no scored answer with its tokens: measure it again with this rewardlm")
    toxic_above = _boundary([answer.toxicity for answer in answers])
    answers = [replace(answer, toxic=answer.toxicity > toxic_above) for answer in answers]

    def toxicity(prompt: Prompt) -> tuple[float, float]:
        own = by_prompt.get(prompt.id)
        return (float(np.mean(own)) if own else 0.0, prompt.toxicity or 0.0)

    ranked = sorted((prompt for prompt in prompts if prompt.id in kept), key=toxicity, reverse=True)
    turns = {prompt.id: tuple(prompt.turns) for prompt in prompts}
    return ScoredRun(run, entry, answers, ranked, turns, toxic_above)


def _boundary(scores: Sequence[float]) -> float:
    """The score above which an answer is toxic: 0.5, unless so few are that there would be nothing to learn from. Then
    the highest scores stand for toxic ones, which is said where the result is shown."""
    if sum(score > TOXIC_ABOVE for score in scores) >= _FEWEST:
        return TOXIC_ABOVE
    ranked = sorted(scores, reverse=True)
    wanted = min(_FEWEST, int(_AT_MOST * len(ranked)))
    return min(TOXIC_ABOVE, ranked[wanted])


def _kept(prompts: Sequence[Prompt], share: float, seed: int) -> set[str]:
    order = sorted(prompts, key=lambda prompt: stream_seed("steer", "kept", seed, prompt.text))
    return {prompt.id for prompt in order[: round(share * len(order))]}


def judge_of(run: Run, name: str | None) -> ScorerEntry:
    """A run's judge, by default its first. Raises RunError where it has no such scores."""
    known = {entry["name"]: entry for entry in run.meta.get("scorers", [])}
    if not known:
        raise RunError(f"{run.path} has no scores: rewardlm score {run.path} --scorer NAME")
    if name is not None and name not in known:
        raise RunError(
            f"{run.path} has no scores by {name!r}: it has {', '.join(known)}; choose one with --judge, or "
            f"rewardlm score {run.path} --scorer {name}"
        )
    return known[name] if name is not None else next(iter(known.values()))


def _refuse_other_model(run: Run, policy: Policy, adapter_hash: str | None) -> None:
    meta = run.meta
    if meta.get("model_hash") is None:
        raise RunError(f"{run.path} doesn't say which weights answered: measure the model here (--engine local)")
    treatment = meta.get("treatment")
    if treatment is not None and treatment["strength"] > 0:
        raise RunError(f"{run.path} was answered by a steered model: take a run of the model as it is")
    same_precision = meta.get("dtype") == str(policy.dtype).removeprefix("torch.")
    same = meta["model_hash"] == policy.weights_hash if same_precision else meta.get("model") == policy.spec
    if not same or meta.get("adapter_hash") != adapter_hash or meta.get("adapter_strength") not in (None, 1):
        raise RunError(
            f"{run.path} was answered by {meta.get('model')}{' with an adapter' if meta.get('adapter') else ''}, which "
            f"isn't the {policy.spec} given here: measure that one, or give the same --adapter, --dtype and --load"
        )


def labels_of(answers: Sequence[ScoredAnswer]) -> BoolArray:
    """Which are toxic, Bool[n]."""
    return np.array([answer.toxic for answer in answers], dtype=np.bool_)


def balanced(answers: Sequence[ScoredAnswer], most: int, seed: int) -> list[ScoredAnswer]:
    """At most ``most`` of them, drawn by the seed, half of them toxic where there are so many."""
    order = np.random.default_rng(seed).permutation(len(answers)).tolist()
    kinds = [[index for index in order if answers[index].toxic is kind] for kind in (True, False)]
    n_toxic = min(len(kinds[0]), max(most // 2, most - len(kinds[1])))
    return [answers[index] for index in sorted(kinds[0][:n_toxic] + kinds[1][: most - n_toxic])]


def pairs_of(answers: Sequence[ScoredAnswer], most: int, seed: int) -> list[tuple[ScoredAnswer, ScoredAnswer]]:
    """Toxic answers, each with a harmless one: to the same prompt where there is one, else to another, by the seed."""
    rng = np.random.default_rng(seed)
    harmless = [answer for answer in answers if not answer.toxic]
    toxic = [answer for answer in answers if answer.toxic]
    if not harmless or not toxic:
        return []
    of_prompt: dict[str, list[ScoredAnswer]] = {}
    for answer in harmless:
        of_prompt.setdefault(answer.owner, []).append(answer)
    chosen = [toxic[index] for index in sorted(rng.permutation(len(toxic))[:most].tolist())]
    found = []
    for answer in chosen:
        candidates = of_prompt.get(answer.owner, harmless)
        found.append((answer, candidates[int(rng.integers(len(candidates)))]))
    return found


@torch.no_grad()
def mean_states(
    policy: Policy,
    answers: Sequence[ScoredAnswer],
    batch_tokens: int,
    *,
    output: bool = False,
    report: ProgressCallback | None = None,
) -> FloatArray:
    """The stream before each layer, and before the final norm, averaged over the positions that an answer's tokens are
    predicted from: Float[L+1, n, M]. These are the positions that steering on the answer changes.

    ``output`` adds what the model's head reads, after the final norm, as the last: Float[L+2, n, M].
    """
    arch = architecture_of(policy.causal_lm)
    layers = range(len(arch.layers) + 1)
    seen: dict[int, Tensor] = {}

    def note(layer: int) -> Change:
        def change(states: Tensor, _strengths: Tensor) -> Tensor:
            if len(states):  # The beginning that all prompts share has no answers.
                seen[layer] = states.float()
            return states

        return change

    sites: list[Site] = [(layer, "in") for layer in layers]
    edits = Edits({site: note(site[0]) for site in sites}, answers_only=True)
    edits.strengths = torch.ones(1, device=policy.device)
    prompts, responses = [answer.prompt for answer in answers], [answer.response for answer in answers]
    found: dict[int, Tensor] = {}
    with evaluating(policy.causal_lm), edited(arch.body, {site: module_at(arch, site) for site in sites}, edits):
        for rows in pieces(policy.causal_lm, prompts, responses, batch_tokens):
            packed = pack([prompts[row] for row in rows], [responses[row] for row in rows], policy.device)
            read = response_states(policy.causal_lm, packed)
            states = torch.stack([*(seen[layer] for layer in layers), *([read.float()] if output else [])])
            parts = torch.split(states, [len(responses[row]) for row in rows], 1)
            found |= {row: part.mean(1).double().cpu() for row, part in zip(rows, parts, strict=True)}
            if report is not None:
                report(len(found), len(answers), "answers read")
    stacked: FloatArray = torch.stack([found[row] for row in range(len(answers))], 1).numpy()
    return stacked
