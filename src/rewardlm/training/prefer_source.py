"""Where a round's preferences come from: the model's own judged answers, or a file of yours."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewardlm.config import Doubt, PreferSettings
from rewardlm.data.preferences import load_preferences
from rewardlm.errors import DataError, TrainingError
from rewardlm.gguf import sha256
from rewardlm.models.load import Policy
from rewardlm.models.lora import adapter_hash
from rewardlm.models.processes import Processes
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run, paid_for, reward_lineage, rewards_of
from rewardlm.training.drawn import Chunk, DrawnAnswers
from rewardlm.training.guards import against
from rewardlm.training.prefer_rows import PreferenceTokens, drawn_examples, given_examples
from rewardlm.training.prefer_run import (
    add_warnings,
    check_same,
    doubts_about_round,
    means_of_answers,
    round_metrics,
    said_of_trained,
    shown_samples,
    steps_before,
    written_preference,
)
from rewardlm.training.preferences import TOO_CLOSE, Preferences, pairs_that_end
from rewardlm.types import Prompt


@dataclass(frozen=True, slots=True)
class Lines:
    """What a round's answers add to each of its lines in metrics.jsonl; ``warnings`` only to the first."""

    round_number: int
    metrics: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def of_step(self, step: int) -> dict[str, Any]:
        """The fields of the round's step of that number, from 1."""
        return {"round": self.round_number + 1, **self.metrics, "warnings": self.warnings if step == 1 else []}


@dataclass
class DrawnPairs:
    """Pairs among the model's own answers. Prompts are asked until there are enough for the round's steps."""

    settings: PreferSettings
    run: Run
    processes: Processes
    prompts: Sequence[Prompt]
    prompt_ids: Sequence[tuple[int, ...]]
    answers: DrawnAnswers
    report: ProgressCallback | None
    say: Callable[[str], None]
    _first: list[Chunk] = field(default_factory=list)

    def examples(self, round_number: int) -> tuple[list[PreferenceTokens], Lines]:
        """A round's examples. Raises DataError where there are none, and TrainingError for doubts that ``stop_on``
        names.
        """
        settings = self.settings
        wanted = -(-settings.steps_of(round_number) * settings.batch_size // settings.epochs)
        if settings.method == "kto":
            wanted = -(-wanted // 2)  # a pair is two answers to learn from
        found, chunks = Preferences(pairs=settings.method != "raft"), list[Chunk]()
        texts = [prompt.text for prompt in self.prompts]
        for chunk in self.answers.of(round_number, self.report):
            chunks.append(chunk)
            found.add(chunk.answers, texts, settings.pair_settings)
            if len(found.found) >= wanted:
                break
        if not round_number:
            self._first = chunks
        doubts = doubts_about_round(chunks, self.prompts, self._first_round() if round_number else None)
        noted = list(doubts.values())
        asked = settings.pairs.ended_gap
        if asked is not None and found.pairs and found.found:
            drawn = [answer for chunk in chunks for answer in chunk.answers]
            found = pairs_that_end(drawn, texts, settings.pair_settings)
            if found.ended_gap < asked:
                noted.append(
                    f"of the chosen answers {found.ended_gap:.0%} more than of the rejected ones ended by themselves, "
                    f"and pairs.ended_gap asks for {asked:.0%}: too few end for more; raise --max-new-tokens or "
                    "--samples"
                )
        if not found.found and found.near_misses:
            # A judge or model so unlike the usual ones that no pair is one by these settings: better to learn, and say
            # so, than to refuse.
            found.learn_near_misses(int(wanted))
            noted.append(
                "no pair is as the settings ask (pairs.margin, pairs.toxicity_gap, pairs.topic_gap, "
                "pairs.length_ratio): those with the largest difference of rewards are learnt, whatever else they "
                "differ in"
            )
        if (apart := found.lengths_apart) is not None:
            than = "more" if apart > 0 else "fewer"
            noted.append(
                f"lengths: chosen answers have {abs(apart):.0%} {than} tokens than rejected ones on average, so length "
                "is learnt too: set pairs.length_ratio=1.2, and draw more if that leaves too few pairs (--samples)"
            )
        self.processes.first(lambda: self._write(round_number, found, chunks))
        self.say(f"round {round_number + 1} of {settings.rounds}: {found.summary}")
        if not found.found:
            raise DataError(f"nothing to learn: {'; '.join([found.summary, *doubts.values()])}; {_advice(found)}")
        # The first round's answers are those of the model as it was given.
        smaller = "raise --beta, lower the learning rate" if round_number else None
        self._warn(f"round {round_number + 1}", doubts, noted, smaller)
        metrics = round_metrics(chunks, len(found.found))
        return drawn_examples(found.found, self.prompt_ids), Lines(round_number, metrics, noted)

    def look_at_trained(self) -> None:
        """Ask the trained model, which no round has done, have its answers judged, and compare them with the first
        round's. Raises TrainingError for doubts that ``stop_on`` names.
        """
        if self.report is not None:
            self.report(0, 1, {"drawing answers": "the trained model"})
        now, first = [self.answers.of_trained()], self._first_round()
        doubts = doubts_about_round(now, self.prompts, first)
        noted = list(doubts.values())
        before, after = means_of_answers(first), means_of_answers(now)

        def write() -> None:
            look = {"first_round": before, "trained": after, "warnings": noted}
            self.run.update(preferences={**self.run.meta["preferences"], "look": look})
            add_warnings(self.run, noted)

        self.processes.first(write)
        self.say(said_of_trained(before, after))
        self._warn("the trained model", doubts, noted, "begin anew with a higher --beta, a lower learning rate")

    def _first_round(self) -> list[Chunk]:
        """The first round's answers; in a resumed run, those that this round had asked for."""
        if not self._first:
            asked = self.run.meta["preferences"]["rounds"][0]["prompts"]
            self._first = list(self.answers.known(0, asked))
        return self._first

    def _warn(self, whose: str, doubts: Mapping[Doubt, str], noted: Sequence[str], smaller: str | None) -> None:
        """Warn of all that is ``noted``, unless ``stop_on`` names one of ``doubts``: then raise TrainingError, with
        what to do. ``smaller`` as in ``against``.
        """
        for name, text in doubts.items():
            if name in self.settings.stop_on:
                raise TrainingError(f"{whose}: {text}, and stop_on names {name}: {against(name, smaller)}")
        for text in noted if self.processes.is_main else ():
            warnings.warn(f"{whose}: {text}", stacklevel=3)

    def _write(self, round_number: int, found: Preferences, chunks: Sequence[Chunk]) -> None:
        """The round's preferences and some of its answers, once: a resumed round comes to the same."""
        step = steps_before(self.settings, round_number) + 1
        if all(sample["step"] != step for sample in self.run.read("samples")):
            self.run.append("samples", shown_samples(step, chunks, self.prompts, self.settings.samples_every))
        earlier = [line for line in self.run.read("preferences") if line["round"] <= round_number]
        lines = [written_preference(one, self.prompts, round_number) for one in found.found]
        self.run.replace("preferences", [*earlier, *lines])
        rounds = self.run.meta.get("preferences", {}).get("rounds", [])[:round_number]
        self.run.update(preferences={"rounds": [*rounds, found.to_dict()]})


def _unequal(examples: Sequence[PreferenceTokens]) -> str | None:
    """What to say where KTO gets far more of one kind of answer than of the other: Ethayarajh et al. 2024, equation 8,
    asks for between 1 and 4/3 wanted answers to each unwanted one, or for weights that make up for it.
    """
    wanted = sum(example.chosen is not None for example in examples)
    unwanted = sum(example.rejected is not None for example in examples)
    if unwanted <= wanted <= 4 / 3 * unwanted:
        return None
    return (
        f"{wanted:,} wanted and {unwanted:,} unwanted answers: kto is made for 1 to 1.33 wanted ones to each unwanted "
        "one; leave some of the more frequent kind out"
    )


def _advice(found: Preferences) -> str:
    """What to do where a round found nothing to learn."""
    if not found.without or found.without.most_common(1)[0][0] != TOO_CLOSE:
        return (
            "ask more prompts or draw more (--samples), let answers end (--max-new-tokens), or ask less of a chosen "
            "answer (pairs.topic, pairs.ended, pairs.max_toxicity), in another --out"
        )
    return (
        "the reward tells the answers to a prompt hardly apart: take another judge (--reward) or other weights "
        "(rewards.terms), or draw more (--samples), in another --out"
    )


class GivenPairs:
    """Preferences from a file; whoever chose them, no judge of ours is to be doubted for it."""

    def __init__(
        self,
        settings: PreferSettings,
        run: Run,
        processes: Processes,
        policy: Policy,
        say: Callable[[str], None],
    ) -> None:
        assert settings.preferences is not None
        given = load_preferences(settings.preferences, method=settings.method)
        limit = min(settings.max_length, policy.max_positions)
        encoded = given_examples(policy, given, limit)
        self._examples, shortened = encoded.examples, encoded.shortened
        if settings.method == "raft":
            self._examples = [example for example in self._examples if example.chosen is not None]
        if not self._examples:
            raise DataError(
                f"no preference leaves room for two answers that differ in max_length {limit}: raise max_length"
            )
        if shortened:
            say(
                f"{shortened:,} of {len(given):,} preferences are longer than {limit} tokens: they lose their oldest "
                "turns, or the end of an answer"
            )
        if settings.method == "kto" and (unequal := _unequal(self._examples)) is not None:
            say(unequal)
        if encoded.dropped:
            say(
                f"{encoded.dropped:,} of {len(given):,} preferences are left out: {limit} tokens have no room for an "
                "answer, or none for where the two differ (max_length)"
            )
        sources = [found for found in (settings.adapter, settings.preferences.expanduser().parent) if found is not None]
        about = {
            **policy.describe(),
            "adapter_hash": adapter_hash(settings.adapter) if settings.adapter else None,
            "preferences": {
                "source": settings.preferences.name,
                "sha256": sha256(settings.preferences.expanduser()),
                "found": len(self._examples),
                "shortened": shortened,
                "dropped": encoded.dropped,
            },
            # A file that another training left was chosen by that training's judges.
            "rewards": list(dict.fromkeys(name for source in sources for name in rewards_of(source))),
            "reward_lineage": {name: of for source in sources for name, of in reward_lineage(source).items()},
            "paid_for": list(dict.fromkeys(name for source in sources for name in paid_for(source))),
            "processes": processes.size,
        }
        check_same(run, about)
        processes.first(lambda: run.update(**about))

    def examples(self, round_number: int) -> tuple[list[PreferenceTokens], Lines]:
        """All of them."""
        return self._examples, Lines(round_number, {"pairs": len(self._examples)})

    def look_at_trained(self) -> None:
        """Without prompts and judges there is nothing to ask."""
