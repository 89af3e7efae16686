"""Which parts of an adapter do it: the flow, from measured runs to what interpretation.json says of each tuned model.

What is found is appended to causes.jsonl part by part, so an interrupted interpretation goes on after the last one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rewardlm.config import CausesSettings, InterpretSettings
from rewardlm.data.chat import truncate_history
from rewardlm.errors import ModelError
from rewardlm.interpreting.answers import AnswerSample, most_toxic_and_others
from rewardlm.interpreting.causes.heads import read_heads
from rewardlm.interpreting.causes.minimal import PromptText, minimal_adapter
from rewardlm.interpreting.causes.neurons import neuron_groups, top_neurons
from rewardlm.interpreting.causes.pairs import AskedOnce, JudgedPair, asked_once, draw_pairs, own_pairs
from rewardlm.interpreting.causes.patched_answers import judge_patched
from rewardlm.interpreting.causes.patching import (
    Say,
    Switch,
    patch_sites,
    preference_change,
    random_controls,
    token_effects,
)
from rewardlm.interpreting.causes.sites import Site
from rewardlm.interpreting.findings import PatchedSite, PatchedWords, Stored, WordsByPart
from rewardlm.interpreting.intervals import FEWEST, shown
from rewardlm.interpreting.mechanistic.asked_judges import judge_of, toxicity_by
from rewardlm.interpreting.mechanistic.value_vectors import ChosenVectors, choose_value_vectors
from rewardlm.interpreting.mechanistic.word_contrast import ToxicityFunction, contrast_for
from rewardlm.interpreting.models import RunModel, as_measured
from rewardlm.interpreting.word_shares import pieces
from rewardlm.measuring.measured import Measured
from rewardlm.measuring.similarity import load_embedder, similarities
from rewardlm.models.architecture import architecture_of
from rewardlm.models.load import Policy
from rewardlm.models.lora import using
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run
from rewardlm.scoring.load import load_scorer
from rewardlm.stats import FloatArray

_CAUSES = "causes"
_NO_DIRECTION = (
    "Neurons were not looked at in groups, and there is no verdict: the vocabulary has too few whole words that the "
    "lexical judge calls toxic. Name some by inside.toxic_words and inside.neutral_words."
)
_NEURONS = 12
# Pairs that are shown word by word, and parts that these are coloured by.
_WORDS, _COLOURED = 2, 6


@dataclass(frozen=True)
class _Asked:
    """The run's prompts, each once: half of them to find parts with, half to try on what was found.

    ``toxicity`` is the mean score of the base's stored answers."""

    prompts: list[PromptText]
    turns: list[tuple[str, ...]]
    toxicity: list[float | None]
    search: list[int]
    other: list[int]

    def some(self, rows: Sequence[int], number: int) -> list[PromptText]:
        """At most ``number`` of these prompts, half of them those that the base answered most toxically."""
        if not number:
            return []
        chosen = most_toxic_and_others(
            [self.prompts[row].ids for row in rows], [self.toxicity[row] for row in rows], number
        )
        return [self.prompts[rows[place]] for place in chosen]


def explain_runs(
    run: Run,
    measured: Sequence[Measured],
    models: Sequence[RunModel],
    sample: AnswerSample,
    settings: InterpretSettings,
    *,
    report: ProgressCallback | None = None,
) -> Causes:
    """Look for the parts of every run that is an adapter on the first run's model."""
    base = models[0]
    tuned = [one for one in models[1:] if one.policy is base.policy and one.adapter and one.steering is None]
    if base.adapter is not None or base.steering is not None or not tuned:
        return Causes([f"No run is an adapter on {base.label}’s model alone: its parts were not looked for."])
    try:
        architecture_of(base.policy.causal_lm)
    except ModelError as error:
        return Causes([f"Parts of the adapters were not looked for: {error}."])
    own = as_measured(settings.causes, settings, base.run)
    judge, notes = judge_of(sample.scorer, str(base.policy.device))
    words = toxicity_by(load_scorer("lexical"))
    asked = _asked(measured[0], base, sample.scorer, own.seed)
    found = _Found(run, len(tuned), settings, report)
    pairs, placebo = _pairs(found, base, asked, words, judge, own)
    if len(pairs) < FEWEST:
        missing = (
            f"Parts of the adapters were not looked for: {base.label} gave both a toxic and a harmless answer to only "
            f"{len(pairs)} of {len(asked.search)} prompts, and {FEWEST} are needed."
        )
        return Causes([*notes, missing], own.model_dump(mode="json"))
    questions = _Questions(found, base.policy, base.label, pairs, placebo, asked, words, judge, settings, own)
    folders = _folders([one.label for one in tuned])
    facts = {one.label: questions.of(one, folder) for one, folder in zip(tuned, folders, strict=True)}
    notes = [*notes, *(note for one in tuned if (note := questions.few_own_pairs(one.label)))]
    if settings.patching and not any("verdict" in one for one in facts.values()):
        notes = [*notes, _NO_DIRECTION]
    return Causes(notes, own.model_dump(mode="json"), facts)


@dataclass(frozen=True)
class Causes:
    """``facts`` of each tuned model, by its label, as fields of ``ModelFacts``; ``notes`` on what was left out and why;
    and the ``settings`` as they were used, None where nothing was looked for."""

    notes: list[str]
    settings: dict[str, Any] | None = None
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Questions:
    """What is asked of each tuned model, on the same pairs and prompts."""

    found: _Found
    base: Policy
    label: str
    base_pairs: list[JudgedPair]
    base_placebo: list[JudgedPair]
    asked: _Asked
    words: ToxicityFunction
    judge: ToxicityFunction
    settings: InterpretSettings
    own: CausesSettings

    def of(self, model: RunModel, folder: str) -> dict[str, Any]:
        """Fields of ``ModelFacts``; ``folder`` is the model's name as a folder's."""
        facts: dict[str, Any] = {}
        policy, label, adapter = model.policy, model.label, model.adapter
        assert adapter is not None
        chosen = self.found.part(label, "own pairs", "its own answers", lambda say: self.own_pairs(policy, adapter))
        facts |= {name: chosen[name] for name in ("towards", "harmless_change")}
        pairs, placebo = self.base_pairs, self.base_placebo
        if chosen["towards"] == "own":
            pairs, placebo = ([_pair(one) for one in chosen[name]] for name in ("pairs", "placebo"))
        if self.settings.heads:
            facts |= self.found.part(label, "heads", "its heads", lambda say: self.heads(policy, adapter, pairs))
        if self.settings.patching:
            is_own = chosen["towards"] == "own"
            patched = self.found.part(
                label,
                "patching",
                "its heads and MLPs",
                lambda say: self.patching(policy, adapter, pairs, placebo, is_own, say),
            )
            sites = [PatchedSite.model_validate(one) for one in patched["patching"]]
            patched["patched"] |= self.found.part(
                label, "answers", "answers under patches", lambda say: self.answers(policy, adapter, pairs, sites)
            )
            facts |= patched
            facts |= self.found.part(label, "neurons", "its neurons", lambda say: self.neurons(policy, adapter, pairs))
        if self.settings.minimal_adapter:
            facts |= self.found.part(
                label, "minimal", "the smallest adapter", lambda say: self.minimal(policy, adapter, pairs, folder, say)
            )
        return facts

    @cached_property
    def toxic_vectors(self) -> ChosenVectors:
        """The base's value vectors that promote the toxic words most: the same for all tuned models, which share it."""
        inside = self.settings.inside.model_copy(update={"vectors_by": "words"})
        return choose_value_vectors(self.base, contrast_for(self.base, self.words, inside), None, inside)

    def own_pairs(self, policy: Policy, adapter: str) -> dict[str, Any]:
        """Which pairs the model is looked at on: the base's, or those with its own new answers."""
        change = preference_change(policy, adapter, self.base_pairs, self.own)
        found: dict[str, Any] = {"towards": "harmless", "harmless_change": change}
        if self.own.towards == "harmless" or (self.own.towards == "auto" and shown(change, 1)):
            return found
        pairs, placebo = own_pairs(policy, lambda: using(policy, adapter), self.base_pairs, self.judge, self.own)
        found["harmless_answers"] = len(pairs)
        if len(pairs) < FEWEST:
            return found
        return {
            **found,
            "towards": "own",
            "pairs": [_stored(pair) for pair in pairs],
            "placebo": [_stored(pair) for pair in placebo],
        }

    def few_own_pairs(self, label: str) -> str | None:
        """A note, where pairs with the model's own answers were wanted and there are too few."""
        chosen = self.found.known(label, "own pairs")
        if chosen["towards"] == "own" or "harmless_answers" not in chosen:
            return None
        return (
            f"{label} was looked at on pairs of {self.label}’s own answers: it gave a harmless new answer to only "
            f"{chosen['harmless_answers']} of {len(self.base_pairs)} prompts, and {FEWEST} are needed."
        )

    def heads(self, policy: Policy, adapter: str, pairs: Sequence[JudgedPair]) -> dict[str, Any]:
        return {"heads": read_heads(policy, adapter, pairs, self.own.batch_tokens)}

    def patching(
        self,
        policy: Policy,
        adapter: str,
        pairs: Sequence[JudgedPair],
        placebo: Sequence[JudgedPair],
        is_own: bool,
        say: Say,
    ) -> dict[str, Any]:
        def own_pairs_of(on: Switch) -> list[JudgedPair]:
            return own_pairs(policy, on, self.base_pairs[: self.own.random_pairs], self.judge, self.own)[0]

        random = random_controls(policy, adapter, pairs, self.own, own_pairs_of if is_own else None, say=say)
        sites, patched = patch_sites(policy, adapter, pairs, placebo, random, self.own, say=say)
        return {"patching": sites, "patched": patched}

    def answers(
        self, policy: Policy, adapter: str, pairs: Sequence[JudgedPair], sites: Sequence[PatchedSite]
    ) -> dict[str, Any]:
        chosen = _claimed(sites)
        # Of the other half: the sites were found on the first.
        prompts = [prompt.ids for prompt in self.asked.some(self.asked.other, self.own.answered)]
        enough = bool(chosen) and len(prompts) >= FEWEST
        judged = judge_patched(policy, adapter, prompts, chosen, self.judge, self.own) if enough else []
        return {
            "answers": judged,
            "words": [self.words_of(policy, adapter, pair, sites) for pair in pairs[:_WORDS]],
        }

    def words_of(self, policy: Policy, adapter: str, pair: JudgedPair, sites: Sequence[PatchedSite]) -> PatchedWords:
        """What the parts with the largest effects wrote, token by token."""
        writes = [one for one in sites if one.kind != "stream" and one.effect is not None]
        largest = sorted(writes, key=lambda one: (not (one.claimed or one.origin), -abs(one.effect or 0.0)))
        chosen = largest[:_COLOURED]
        values = token_effects(policy, adapter, pair, [_site(one) for one in chosen])
        return PatchedWords(
            sites=[one.site for one in chosen],
            prompt=len(pair.asked.prompt),
            **{
                side: WordsByPart(
                    tokens=pieces(policy.tokenizer, [*pair.asked.prompt, *getattr(pair, side)]), values=found
                )
                for side, found in zip(("toxic", "harmless"), values, strict=True)
            },
        )

    def neurons(self, policy: Policy, adapter: str, pairs: Sequence[JudgedPair]) -> dict[str, Any]:
        if self.toxic_vectors.towards is None:
            return {}
        named = [(one.layer, one.neuron) for one in self.toxic_vectors.vectors]
        groups, verdict = neuron_groups(policy, adapter, pairs, self.toxic_vectors.towards, named, self.own)
        top = top_neurons(policy, adapter, pairs, number=_NEURONS, batch_tokens=self.own.batch_tokens)
        return {"neuron_groups": groups, "neurons": top, "verdict": verdict}

    def minimal(self, policy: Policy, adapter: str, pairs: Sequence[JudgedPair], name: str, say: Say) -> dict[str, Any]:
        embedder = load_embedder(str(policy.device))

        def similarity(prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
            return similarities(embedder, prompts, responses, seed=self.own.seed)[0]

        folder = Path("minimal") / name / "adapter"
        result = minimal_adapter(
            policy,
            adapter,
            pairs,
            self.asked.some(self.asked.search, self.own.prompts),
            self.asked.some(self.asked.other, self.own.prompts),
            self.judge,
            similarity,
            self.own,
            self.found.run.path / folder,
            say=say,
        )
        if result.adapter is not None:
            # Relative to the interpretation's folder, which may be moved.
            result.adapter = str(folder)
        return {"minimal_adapter": result}


def _folders(labels: Sequence[str]) -> list[str]:
    """A folder's name for each label, which may hold anything: as it is where it can be one, else without the rest."""
    names: list[str] = []
    for label in labels:
        name = re.sub(r"[^\w.-]+", "_", label)[:60].strip(".") or "model"
        names.append(name if name not in names else f"{name}-{len(names)}")
    return names


class _Found:
    """What was found before, and the progress over all parts."""

    def __init__(self, run: Run, models: int, settings: InterpretSettings, report: ProgressCallback | None) -> None:
        self.run, self._report = run, report
        self._known = {(record["model"], record["part"]): record["found"] for record in run.read(_CAUSES)}
        parts = 1 + settings.heads + 3 * settings.patching + settings.minimal_adapter
        self._done, self._total = 0, 1 + models * parts

    def known(self, model: str, part: str) -> dict[str, Any]:
        """What was found of this part."""
        return dict(self._known[model, part])

    def part(self, model: str, part: str, what: str, find: Callable[[Say], dict[str, Any]]) -> dict[str, Any]:
        """What ``find`` gives, as JSON; read from the run where it was found before."""

        def say(detail: str = "") -> None:
            if self._report is not None:
                self._report(self._done, self._total, f"{model}: {what}" + (f" ({detail})" if detail else ""))

        if (model, part) not in self._known:
            say()
            record = {"model": model, "part": part, "found": _plain(find(say))}
            self.run.append(_CAUSES, [record])
            self._known[model, part] = record["found"]
        self._done += 1
        if self._report is not None:
            self._report(self._done, self._total, "")
        return self.known(model, part)


def _plain(value: Any) -> Any:
    if isinstance(value, Stored):
        return value.model_dump(by_alias=True)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value


def _claimed(sites: Sequence[PatchedSite]) -> list[Site]:
    """The heads and MLPs that are claimed, in either way; the stream is none of them."""
    return [_site(one) for one in sites if one.kind != "stream" and (one.claimed or one.origin)]


def _site(found: PatchedSite) -> Site:
    return Site(found.kind, found.layer, -1 if found.head is None else found.head)


def _asked(run: Measured, model: RunModel, scorer: str, seed: int) -> _Asked:
    scores: FloatArray = run.scores[scorer]
    ids: dict[tuple[int, ...], int] = {}
    prompts: list[PromptText] = []
    turns: list[tuple[str, ...]] = []
    toxicity: list[float | None] = []
    for row, prompt in enumerate(run.prompts):
        tokens = tuple(truncate_history(model.policy.chat, prompt.turns, model.room)[0])
        if tokens in ids:
            continue
        ids[tokens] = row
        own = scores[run.prompt_rows == row]
        own = own[~np.isnan(own)]
        prompts.append(PromptText(tokens, prompt.turns[-1].text))
        turns.append(tuple(turn.text for turn in prompt.turns))
        toxicity.append(float(own.mean()) if len(own) else None)
    order = np.random.default_rng(seed).permutation(len(prompts)).tolist()
    half = (len(order) + 1) // 2
    return _Asked(prompts, turns, toxicity, sorted(order[:half]), sorted(order[half:]))


def _pairs(
    found: _Found,
    base: RunModel,
    asked: _Asked,
    words: ToxicityFunction,
    judge: ToxicityFunction,
    settings: CausesSettings,
) -> tuple[list[JudgedPair], list[JudgedPair]]:
    """Pairs and placebo pairs of prompts of the searched half, those that the base answered most toxically first."""
    policy = base.policy

    def draw(say: Say) -> dict[str, Any]:
        ranked = sorted(asked.search, key=lambda row: (-(asked.toxicity[row] or 0.0), row))
        once = [asked_once(policy.tokenizer, asked.prompts[row].ids, asked.turns[row], words) for row in ranked]
        both = draw_pairs(policy, once, judge, settings)
        return {name: [_stored(pair) for pair in some] for name, some in zip(("pairs", "placebo"), both, strict=True)}

    known = found.part(base.label, "pairs", "pairs of a toxic and a harmless answer", draw)
    pairs, placebo = ([_pair(one) for one in known[name]] for name in ("pairs", "placebo"))
    return pairs, placebo


def _stored(pair: JudgedPair) -> dict[str, Any]:
    return {
        "prompt": list(pair.asked.prompt),
        "kinds": list(pair.asked.kinds),
        "toxic": list(pair.toxic),
        "harmless": list(pair.harmless),
    }


def _pair(stored: dict[str, Any]) -> JudgedPair:
    asked = AskedOnce(tuple(stored["prompt"]), tuple(stored["kinds"]))
    return JudgedPair(asked, tuple(stored["toxic"]), tuple(stored["harmless"]))
