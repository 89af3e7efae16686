"""Answers for preference training: drawn from the model as it is, judged as in RL, and written down as they come.

They are drawn in chunks of prompts. A chunk is written to answers.jsonl in one piece and is the batch in which an empty
answer gets the lowest reward. A run that was killed, or another one that may use the same answers (``answers``), reads
whole chunks back and goes on where they end, with the same answers and the same rewards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rewardlm.config import PreferSettings
from rewardlm.errors import RunError
from rewardlm.models.generate import Request, answering, generate, stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.processes import Processes
from rewardlm.models.sharding import in_step
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run
from rewardlm.scoring.scorer import score_texts
from rewardlm.training.rewards import BatchRewards, Ending, Opinion, RewardModel
from rewardlm.types import Finish, Prompt, Verdict

# Prompts of a chunk: enough for a full batch of answers, few enough that little is lost when a run is killed.
CHUNK = 32
# Prompts that the trained model is asked, once each, when all rounds are done.
LOOKED_AT = 32
# Settings that change what a term says of an answer, besides its weight.
_HOW_TERMS_ARE_FOUND = {
    "length": ("length_words",),
    "counter_narrative": ("counter_narrative_judge", "counter_narrative_others"),
}


@dataclass(frozen=True, slots=True)
class DrawnAnswer:
    """One answer to ``prompt``, the prompt's place in the run's list; ``tokens`` as they were sampled.

    ``reward`` and ``toxicity`` are None where it could not be judged; ``terms`` are the further terms of the reward,
    by name, unweighted.
    """

    prompt: int
    sample: int
    tokens: list[int]
    text: str
    finish: Finish
    reward: float | None
    toxicity: float | None
    terms: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The answers to some prompts, prompt by prompt, with all that was said of them."""

    answers: list[DrawnAnswer]
    judged: BatchRewards


class DrawnAnswers:
    """The answers of a run's rounds, drawn as they are asked for."""

    def __init__(
        self,
        settings: PreferSettings,
        run: Run,
        policy: Policy,
        rewards: RewardModel,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[tuple[int, ...]],
        processes: Processes,
    ) -> None:
        self.settings = settings
        self.run = run
        self.policy = policy
        self.rewards = rewards
        self.prompts = prompts
        self.prompt_ids = prompt_ids
        self.processes = processes
        self._places = {prompt.id: place for place, prompt in enumerate(prompts)}
        self._known = processes.first(self._read_back)

    def prompts_of(self, round_number: int) -> list[int]:
        """The prompts that a round may ask, by place, in a seeded order: first its own share, then the others', if it
        does not find enough among its own.
        """
        order = list(range(len(self.prompts)))
        generator = torch.Generator().manual_seed(stream_seed("prefer", self.settings.seed))
        order = [order[i] for i in torch.randperm(len(order), generator=generator).tolist()]
        share = -(-len(order) // self.settings.rounds)
        return [order[(round_number * share + i) % len(order)] for i in range(len(order))]

    def of(self, round_number: int, report: ProgressCallback | None = None) -> Iterator[Chunk]:
        """A round's chunks, one after the other. Raises ScorerError where too many answers could not be judged."""
        places = self.prompts_of(round_number)
        for start in range(0, len(places), CHUNK):
            asked = places[start : start + CHUNK]
            if report is not None:
                report(start, len(places), {"drawing answers": f"round {round_number + 1}"})
            records = [record for place in asked for record in self._known.get((round_number, place), [])]
            if len(records) != len(asked) * self.settings.samples:
                records = self.processes.gather(lambda: self._draw(round_number, asked))  # noqa: B023 (called at once)
                chunk = self._chunk(records)
                # Only now: where too many could not be judged, that raised, and the next attempt asks again.
                self.processes.first(lambda: self.run.append("answers", records))  # noqa: B023
                yield chunk
            else:
                yield self._chunk(records)

    def of_trained(self) -> Chunk:
        """One answer of the model as it is when all rounds are done, to each of ``LOOKED_AT`` prompts that are spread
        over all of them. They are not written down: another attempt draws the same. Raises ScorerError as ``of``.
        """
        n = min(LOOKED_AT, len(self.prompts))
        asked = [len(self.prompts) * number // n for number in range(n)]
        # As one more round, which has random numbers of its own.
        number = self.settings.rounds
        records: list[dict[str, Any]] = self.processes.gather(lambda: self._draw(number, asked, samples=1))
        return self._chunk(records)

    def known(self, round_number: int, n_prompts: int) -> Iterator[Chunk]:
        """A round's chunks that are written already, of its first ``n_prompts`` prompts."""
        places = self.prompts_of(round_number)[:n_prompts]
        for start in range(0, len(places), CHUNK):
            records = [
                record
                for place in places[start : start + CHUNK]
                for record in self._known.get((round_number, place), [])
            ]
            if not records:
                return
            yield self._chunk(records)

    def _draw(self, round_number: int, asked: Sequence[int], *, samples: int | None = None) -> list[dict[str, Any]]:
        """This process's part of a chunk, as it is written down; ``samples`` of each prompt, by default as set."""
        settings, chat = self.settings, self.policy.chat
        mine = [asked[i] for i in self.processes.span(len(asked))]
        wanted = [(place, sample) for place in mine for sample in range(samples or settings.samples)]
        requests = [
            Request(
                self.prompt_ids[place],
                stream_seed("prefer", settings.seed, round_number, self.prompts[place].id, sample),
            )
            for place, sample in wanted
        ]
        with answering(self.policy), in_step(self.policy):
            drawn = generate(
                self.policy,
                requests,
                max_new_tokens=settings.max_new_tokens,
                sampling=settings.generation,
                batch_tokens=settings.batch_tokens,
                entropy=False,
            )
            sampled = sorted(drawn, key=lambda answer: answer.index)
        texts = [chat.decode(answer.tokens) for answer in sampled]
        opinions = self.rewards.opinions(
            texts,
            [self.prompts[place].text for place, _ in wanted],
            [Ending(len(answer.tokens), answer.finish) for answer in sampled],
            [self.prompts[place].text for place in asked],
        )
        return [
            {
                "round": round_number + 1,
                "prompt_id": self.prompts[place].id,
                "sample": sample,
                "text": opinion.text,
                "tokens": answer.tokens,
                "finish": answer.finish,
                "judges": {name: _written(verdict) for name, verdict in opinion.verdicts.items()},
                "witnesses": {name: _written(verdict) for name, verdict in opinion.witnesses.items()},
                "terms": opinion.terms,
            }
            for (place, sample), answer, opinion in zip(wanted, sampled, opinions, strict=True)
        ]

    def _chunk(self, records: Sequence[Mapping[str, Any]]) -> Chunk:
        records = self._watched(records)
        judged = self.rewards.rewarded([_opinion(record) for record in records])
        return Chunk(
            [
                DrawnAnswer(
                    prompt=self._places[record["prompt_id"]],
                    sample=record["sample"],
                    tokens=record["tokens"],
                    text=record["text"],
                    finish=record["finish"],
                    reward=judged.rewards[row],
                    toxicity=judged.toxicity[row],
                    terms=record["terms"],
                )
                for row, record in enumerate(records)
            ],
            judged,
        )

    def _watched(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """``records`` with what each witness says: one that joined after they were written reads them now."""
        found = [dict(record) for record in records]
        for witness in self.rewards.witnesses:
            unread = [record for record in found if witness.name not in record["witnesses"]]
            verdicts = score_texts(witness, [record["text"] for record in unread], bounded=False)
            for record, verdict in zip(unread, verdicts, strict=True):
                record["witnesses"] = {**record["witnesses"], witness.name: _written(verdict)}
        return found

    def _read_back(self) -> dict[tuple[int, int], list[dict[str, Any]]]:
        """Answers that are written already, by round and prompt. Those of a chunk that a killed process left unfinished
        are drawn again, so their lines go.
        """
        records = list(self.run.read("answers"))
        if self.settings.answers is not None and not records:
            records = self._borrowed(Run.open(self.settings.answers, kind="prefer"))
            self.run.append("answers", records)
        known: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for record in records:
            known.setdefault((record["round"] - 1, self._places[record["prompt_id"]]), []).append(record)
        whole: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for round_number in range(self.settings.rounds):
            places = self.prompts_of(round_number)
            for start in range(0, len(places), CHUNK):
                keys = [(round_number, place) for place in places[start : start + CHUNK]]
                if all(len(known.get(key, ())) == self.settings.samples for key in keys):
                    whole |= {key: known[key] for key in keys}
        kept = [record for found in whole.values() for record in found]
        if len(kept) < len(records):
            self.run.replace("answers", kept)
        return whole

    def _borrowed(self, other: Run) -> list[dict[str, Any]]:
        """The first round's answers of another run. Raises RunError where they are not what this run would draw and
        judge.
        """
        records = [record for record in other.read("answers") if record["round"] == 1]
        if not records:
            raise RunError(f"{other.path} has no answers yet: let it draw some, or leave answers out")
        mine, theirs = self.run.meta, other.meta
        own = self.settings.resolved().model_dump(mode="json")
        asked = ("samples", "max_new_tokens", "max_prompt_tokens", "generation", "seed", "reward", "chat")
        different = [name for name in asked if own[name] != theirs["settings"].get(name)]
        hashes = ("model_hash", "prompts_hash", "adapter_hash", "judges")
        different += [name for name in hashes if mine.get(name) != theirs.get(name)]
        terms, known = self.rewards.terms.names, records[0]["terms"]
        how = [key for name, keys in _HOW_TERMS_ARE_FOUND.items() if name in terms and name in known for key in keys]
        ours, others = own["rewards"]["terms"], theirs["settings"]["rewards"]["terms"]
        unlike = [key for key in how if ours[key] != others.get(key)]
        judged = theirs.get("term_judges", {})  # an older run has none
        revisions = self.rewards.terms.revisions
        unlike += [f"{name}_judge" for name, revision in revisions.items() if judged.get(name, revision) != revision]
        different += [f"rewards.terms.{name}" for name in (*sorted({*terms} - {*known}), *unlike)]
        if different:
            raise RunError(
                f"{other.path}: its answers were drawn or judged otherwise ({', '.join(different)}): use the same "
                "settings, or leave answers out"
            )
        watching = {scorer.name for scorer in self.rewards.witnesses}
        for record in records:
            record["witnesses"] = {name: found for name, found in record["witnesses"].items() if name in watching}
        return records


def _written(verdict: Verdict) -> dict[str, Any]:
    return {"values": dict(verdict.values), "reason": verdict.reason, "failed": verdict.failed}


def _opinion(record: Mapping[str, Any]) -> Opinion:
    """What ``RewardModel.opinions`` said of a written answer."""
    judges, witnesses = (
        {name: Verdict(**verdict) for name, verdict in record[kind].items()} for kind in ("judges", "witnesses")
    )
    ending = Ending(len(record["tokens"]), record["finish"])
    return Opinion(record["text"], judges, witnesses, record["terms"], ending)
