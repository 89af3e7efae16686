"""The model's own harmless answers, which fine-tuning may learn beside the dialogues.

Dialogues alone also teach their writers' words, so the model becomes less fluent by its own measure. Answers that it
gave before training hold it where it was (self-distillation, Yang et al. 2024, arXiv 2402.13669). Those that a judge
calls harmless teach it to prefer them (rejection sampling, as in RAFT, Dong et al. 2023, arXiv 2304.06767).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rewardlm.config import FinetuneSettings
from rewardlm.data.chat import truncate_history
from rewardlm.data.dialogues import Pair
from rewardlm.data.prompts import load_prompts
from rewardlm.measuring.quality import in_other_script, is_refusal, is_repeated
from rewardlm.models.generate import Request, answering, generate, stream_seed
from rewardlm.models.load import Policy
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.pairs import COUNTER_NARRATIVE, load_pair_judge
from rewardlm.scoring.scorer import FailureLimit, is_empty, score_texts
from rewardlm.types import Message

# An answer with a P(toxic) above this is toxic, as everywhere else.
TOXIC_ABOVE = 0.5
# Tokens that a prompt must have room for; less holds little more than a chat template.
_LEAST_PROMPT = 16
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*(?=\s|$)")


@dataclass(frozen=True, slots=True)
class Replay:
    """The model's own answers as pairs. ``asked`` prompts got ``drawn`` answers, of which ``harmless`` could be used.
    ``pairs`` has the best of each prompt. ``shortened`` is the length in tokens that ``max_length`` left for them, if
    that was less than ``replay.max_new_tokens``.
    """

    pairs: list[Pair]
    asked: int
    drawn: int
    harmless: int
    shortened: int | None = None

    @property
    def summary(self) -> str:
        raised = "replay.max_new_tokens" if self.shortened is None else "max_length"
        if self.asked == 0:
            return "none of the model's own answers is learnt: replay.share of so few pairs comes to less than one"
        if not self.pairs:
            return (
                f"none of {self.drawn:,} answers that the model gave (replay) can be used: each is toxic, empty, "
                "repeated, a refusal or cut off in its first sentence. Only the dialogues are learnt; to learn own "
                f"answers too, raise {raised} or replay.samples"
            )
        cut = "" if self.shortened is None else f"; max_length left {self.shortened} tokens for each"
        return (
            f"{len(self.pairs):,} of the model's own answers are learnt too: it gave {self.drawn:,} to {self.asked:,} "
            f"prompts, and {self.harmless:,} of these are whole, harmless and no refusals{cut}"
        )


def replayed(policy: Policy, settings: FinetuneSettings, learnt: Sequence[Pair]) -> Replay:
    """Answers of ``policy`` as it is now, so many that ``replay.share`` of all pairs are its own. There are fewer where
    prompts or harmless answers run out, and none where the share is less than half a pair.

    The prompts are those of ``replay.prompts``, else the histories of ``learnt``. Each answer has a random stream of
    its own. Where ``max_length`` leaves hardly any room for prompts beside answers of ``replay.max_new_tokens``, they
    share it. Raises ScorerError where the judge fails too often.
    """
    replay = settings.replay
    wanted = round(len(learnt) * replay.share / (1 - replay.share))
    if wanted == 0:
        return Replay([], 0, 0, 0)
    histories = _histories(settings, learnt)
    random.Random(settings.seed).shuffle(histories)
    histories = histories[: math.ceil(wanted / replay.keep)]
    room, longest = min(settings.max_length, policy.max_positions), replay.max_new_tokens
    if room - longest < _LEAST_PROMPT:
        longest = room // 2
    requests = [
        Request(
            tuple(truncate_history(policy.chat, history, room - longest)[0]),
            stream_seed("replay", settings.seed, index, sample),
        )
        for index, history in enumerate(histories)
        for sample in range(replay.samples)
    ]
    rows = range(len(requests))
    answers = [""] * len(requests)
    with answering(policy):
        for answer in generate(
            policy,
            requests,
            max_new_tokens=longest,
            sampling=replay.generation,
            batch_tokens=replay.batch_tokens,
            entropy=False,
        ):
            text = policy.chat.decode(answer.tokens)
            # An answer that was cut off would teach the model to break off: it is cut after its last whole sentence.
            answers[answer.index] = text if answer.finish == "stop" else whole_sentences(text)
    values = _values(settings, str(policy.device), [histories[row // replay.samples][-1].text for row in rows], answers)

    pairs, harmless = [], 0
    for index, history in enumerate(histories):
        own = range(index * replay.samples, (index + 1) * replay.samples)
        usable = [
            (value, answers[row])
            for row in own
            if (value := values[row]) is not None and can_be_learnt(history[-1].text, answers[row])
        ]
        harmless += len(usable)
        pairs += [
            Pair(f"replay:{index}:{rank}", f"replay:{index}", history, Message("assistant", answer))
            for rank, (_, answer) in enumerate(sorted(usable, reverse=True)[: replay.keep], 1)
        ]
    return Replay(pairs, len(histories), len(requests), harmless, longest if longest < replay.max_new_tokens else None)


def _values(
    settings: FinetuneSettings, device: str, prompts: Sequence[str], answers: Sequence[str]
) -> list[float | None]:
    """What each answer is worth: P(counter-narrative), 0 without a judge of it, minus P(toxic). None where it is toxic
    or a judge failed.
    """
    replay = settings.replay
    judge = load_scorer(replay.judge, device=device, services=replay.services)
    verdicts = score_texts(judge, answers, limit=FailureLimit(replay.max_failed_share))
    toxicities = [verdict.values.get(judge.labels[0]) for verdict in verdicts]
    opposing: Sequence[Mapping[str, float] | None] = [{COUNTER_NARRATIVE: 0.0}] * len(answers)
    if replay.counter_narrative is not None:
        pair_judge = load_pair_judge(replay.counter_narrative, device=device)
        opposing = pair_judge.judge(list(zip(prompts, answers, strict=True)))
    return [
        None if toxicity is None or toxicity > TOXIC_ABOVE or verdict is None else verdict[COUNTER_NARRATIVE] - toxicity
        for toxicity, verdict in zip(toxicities, opposing, strict=True)
    ]


def whole_sentences(text: str) -> str:
    """``text`` up to the end of its last whole sentence; empty where no sentence has ended."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def _histories(settings: FinetuneSettings, learnt: Sequence[Pair]) -> list[tuple[Message, ...]]:
    """Each history once, in a fixed order."""
    replay = settings.replay
    if replay.prompts is None:
        return list(dict.fromkeys(pair.history for pair in learnt))
    return list(dict.fromkeys(prompt.turns for prompt in load_prompts(replay.prompts, part=replay.part).prompts))


# Pairs are looked for several times among the same answers, and the words of refusals are not quickly weighed.
@lru_cache(maxsize=65536)
def can_be_learnt(prompt: str, answer: str) -> bool:
    """Whether an answer is one to learn from: some text, in the prompt's script, not repeated, and no refusal."""
    return not any(_flaws(prompt, answer))


def _flaws(prompt: str, answer: str) -> Iterator[bool]:
    """One truth value a flaw, by the rules that the audit applies later."""
    yield is_empty(answer)
    yield in_other_script(prompt, answer)
    yield is_repeated(answer)
    yield is_refusal(answer)
