"""Which of a prompt's judged answers are preferred to which: pure functions of what was drawn."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from statistics import fmean, quantiles, stdev
from typing import Any

from rewardlm.config import USUAL_MAX_TOXICITY, PairSettings
from rewardlm.training.drawn import DrawnAnswer
from rewardlm.training.replay import can_be_learnt

# Why a prompt gave no pair, as the user reads it.
TOO_CLOSE = "with rewards too close"
# Chosen answers may have so much more or fewer tokens than rejected ones before it is said that length is learnt.
LENGTHS_APART = 0.2
# Of fewer pairs, nobody can tell a difference of lengths from chance.
_FEW_PAIRS = 8


@dataclass(frozen=True, slots=True)
class Preference:
    """An answer that was chosen, and a worse one to the same prompt; ``rejected`` is None where only the best count."""

    chosen: DrawnAnswer
    rejected: DrawnAnswer | None


@dataclass
class Preferences:
    """The preferences of a round, and why prompts (``without``) and answers (``unscored``) taught nothing.

    ``near_misses`` are pairs that the settings don't allow, one of each prompt that gave none. Without ``pairs``, only
    the best answers count. ``cut_off_penalty`` was taken off the rewards of answers that were cut off.
    """

    found: list[Preference] = field(default_factory=list)
    near_misses: list[Preference] = field(default_factory=list)
    pairs: bool = True
    prompts: int = 0
    answers: int = 0
    unscored: int = 0
    without: Counter[str] = field(default_factory=Counter)
    cut_off_penalty: float = 0.0

    def add(self, answers: Sequence[DrawnAnswer], texts: Sequence[str], settings: PairSettings) -> None:
        """The preferences among ``answers``, which stand prompt by prompt; ``texts`` are the run's prompts."""
        for place, group in groupby(answers, key=lambda answer: answer.prompt):
            drawn = list(group)
            self.prompts += 1
            self.answers += len(drawn)
            self.unscored += sum(answer.reward is None for answer in drawn)
            choose = pairs_of if self.pairs else best_of
            found, reason = choose(drawn, texts[place], settings)
            self.found += found
            if reason is not None:
                self.without[reason] += 1
                self.near_misses += near_miss(drawn, texts[place], settings) if self.pairs else []

    def learn_near_misses(self, most: int) -> None:
        """Take the near misses with the largest differences of rewards in the place of pairs, ``most`` at most."""
        pairs = [(one.chosen, one.rejected) for one in self.near_misses if one.rejected is not None]
        pairs.sort(key=lambda pair: -_gap(*pair))
        self.found = [Preference(*pair) for pair in pairs[:most]]

    def to_dict(self) -> dict[str, Any]:
        """As run.json has it: counts, and means that say what the preferences teach besides the reward."""
        chosen = [preference.chosen for preference in self.found]
        rejected = [preference.rejected for preference in self.found if preference.rejected is not None]
        return {
            "prompts": self.prompts,
            "answers": self.answers,
            "unscored": self.unscored,
            "found": len(self.found),
            "cut_off_penalty": self.cut_off_penalty,
            "ended_gap": self.ended_gap if self.pairs and self.found else None,
            "prompts_without": dict(self.without),
            "chosen": _means(chosen),
            "rejected": _means(rejected) if rejected else None,
        }

    @property
    def ended_gap(self) -> float:
        """By how much the share that ended by themselves is higher among chosen answers than among rejected ones."""
        if not self.found:
            return -math.inf
        both = [(one.chosen, one.rejected) for one in self.found if one.rejected is not None]
        return fmean((better.finish == "stop") - (worse.finish == "stop") for better, worse in both)

    @property
    def lengths_apart(self) -> float | None:
        """By what share the chosen answers' tokens are more (above 0) or fewer than the rejected ones', on average,
        where that is over ``LENGTHS_APART`` and beyond chance (three standard errors of the mean difference). Else
        None, and also of few pairs or where only the best answers count.

        ``length_ratio`` holds the two answers of a pair together. It says nothing of which one is the shorter.
        """
        both = [(one.chosen, one.rejected) for one in self.found if one.rejected is not None]
        if len(both) < _FEW_PAIRS:
            return None
        differences = [len(better.tokens) - len(worse.tokens) for better, worse in both]
        mean, of_rejected = fmean(differences), fmean(len(worse.tokens) for _, worse in both)
        by_chance = abs(mean) <= 3 * stdev(differences) / math.sqrt(len(both))
        # Rejected answers may be empty, all of them: any length is too far from none.
        share = mean / of_rejected if of_rejected else math.inf
        return None if by_chance or abs(share) <= LENGTHS_APART else share

    @property
    def summary(self) -> str:
        """One sentence: how many there are, and why there are no more."""
        what = "pairs" if self.pairs else "answers to learn"
        noted = ", ".join(f"{n:,} {reason}" for reason, n in self.without.most_common())
        lost = f"; prompts without: {noted}" if noted else ""
        unscored = f"; {self.unscored:,} answers could not be scored" if self.unscored else ""
        if self.cut_off_penalty:
            unscored += (
                f"; answers that were cut off lost {self.cut_off_penalty:.2f} of their reward, so {self.ended_gap:.0%} "
                "more of the chosen ones than of the rejected ones ended"
            )
        return f"{len(self.found):,} {what} from {self.answers:,} answers to {self.prompts:,} prompts{lost}{unscored}"


# What an answer that was cut off may lose, the least first: never nearly as much as toxicity can cost.
_PENALTIES = [step / 50 for step in range(16)]


def pairs_that_end(answers: Sequence[DrawnAnswer], texts: Sequence[str], settings: PairSettings) -> Preferences:
    """The pairs among a round's ``answers`` with the least penalty on those that were cut off by which so many more
    chosen answers than rejected ones ended by themselves as ``ended_gap`` asks. If none does, the largest penalty is
    taken, or none where it changes nothing. Where there is no pair without a penalty, one could teach nothing but to
    end, and there is none with it either.

    Of 48 tokens hardly one answer in ten ends. So chance decides whether chosen ones or rejected ones do, and with that
    whether the model learns to come to an end or to ramble.
    """
    wanted = settings.ended_gap
    assert wanted is not None

    @cache
    def found(penalty: float) -> Preferences:
        pairs = Preferences(cut_off_penalty=penalty)
        pairs.add([_less(answer, penalty) for answer in answers], texts, settings)
        return pairs

    if not found(0.0).found:
        return found(0.0)
    # The larger the penalty, the larger the gap, but for chance.
    place = bisect_left(_PENALTIES, wanted, key=lambda penalty: found(penalty).ended_gap)
    if place < len(_PENALTIES):
        return found(_PENALTIES[place])
    most = found(_PENALTIES[-1])
    return most if most.ended_gap > found(0.0).ended_gap else found(0.0)


def _less(answer: DrawnAnswer, penalty: float) -> DrawnAnswer:
    if answer.reward is None or answer.finish != "length":
        return answer
    return replace(answer, reward=answer.reward - penalty)


def pairs_of(
    answers: Sequence[DrawnAnswer], prompt: str, settings: PairSettings
) -> tuple[list[Preference], str | None]:
    """Pairs of one prompt's answers, the one with the largest difference of rewards first, and no answer twice; where
    there is none, the reason.
    """
    scored = [answer for answer in answers if answer.reward is not None]
    if len(scored) < 2:
        return [], "with fewer than two scored answers"
    good = choosable(scored, prompt, settings)
    if not good:
        return [], "with no answer to choose"
    clear = [pair for pair in _by_gap(good, scored) if _gap(*pair) >= settings.margin]
    if not clear:
        return [], TOO_CLOSE
    gap = settings.toxicity_gap
    less_toxic = [pair for pair in clear if gap is None or _toxicity_gap(*pair) >= gap]
    if not less_toxic:
        return [], "with no answer clearly less toxic"
    ratio = settings.length_ratio
    as_long = [pair for pair in less_toxic if ratio is None or _ratio(*pair) <= ratio]
    if not as_long:
        return [], "with lengths too different"
    gap = settings.topic_gap
    alike = [pair for pair in as_long if gap is None or _topic_gap(*pair) <= gap]
    if not alike:
        return [], "with similarities too different"
    found: list[Preference] = []
    taken: set[str] = set()
    for better, worse in alike:
        if len(found) < settings.per_prompt and not taken & {_words(better), _words(worse)}:
            found.append(Preference(better, worse))
            taken |= {_words(better), _words(worse)}
    return found, None


def near_miss(answers: Sequence[DrawnAnswer], prompt: str, settings: PairSettings) -> list[Preference]:
    """The pair with the largest difference of rewards, whatever else the two differ in; none where no answer may be
    chosen or all rewards are equal.
    """
    scored = [answer for answer in answers if answer.reward is not None]
    pairs = _by_gap(choosable(scored, prompt, settings), scored)
    return [Preference(*pairs[0])] if pairs and _gap(*pairs[0]) > 0 else []


def best_of(answers: Sequence[DrawnAnswer], prompt: str, settings: PairSettings) -> tuple[list[Preference], str | None]:
    """The best of one prompt's answers, as in RAFT (Dong et al. 2023, arXiv 2304.06767); where there is none to choose,
    the reason.
    """
    good = choosable([answer for answer in answers if answer.reward is not None], prompt, settings)
    if not good:
        return [], "with no answer to choose"
    best: dict[str, DrawnAnswer] = {}
    for answer in sorted(good, key=lambda answer: (-_reward(answer), answer.sample)):
        best.setdefault(_words(answer), answer)
    return [Preference(answer, None) for answer in list(best.values())[: settings.per_prompt]], None


def choosable(scored: Sequence[DrawnAnswer], prompt: str, settings: PairSettings) -> list[DrawnAnswer]:
    """The answers that may be chosen: see ``PairSettings``."""
    similarities = [value for answer in scored if (value := answer.terms.get("similarity")) is not None]
    asked = USUAL_MAX_TOXICITY if settings.max_toxicity is None else settings.max_toxicity
    highest = math.inf if asked == 1 else asked  # a function of the user's own may say more than 1
    least = _quantile(similarities, settings.topic) if similarities and settings.topic else None
    good = [
        answer
        for answer in scored
        if answer.toxicity is not None
        and answer.toxicity <= highest
        and can_be_learnt(prompt, answer.text)
        and (least is None or _similarity(answer) >= least)
    ]
    ended = [answer for answer in good if answer.finish == "stop"]
    return ended if ended and settings.ended else good


def _words(answer: DrawnAnswer) -> str:
    """What makes it another answer than one drawn beside it: the model may say the same twice."""
    return answer.text.strip()


def _similarity(answer: DrawnAnswer) -> float:
    """To the prompt; -1, the least there is, where it is not known."""
    value = answer.terms.get("similarity")
    return -1.0 if value is None else value


def _quantile(values: Sequence[float], share: float) -> float:
    """The value that a ``share`` of ``values`` lies below, between neighbours in proportion."""
    if len(values) == 1:
        return values[0]
    cuts = quantiles(values, n=1000, method="inclusive")
    return cuts[min(len(cuts), max(1, round(share * 1000))) - 1]


def _by_gap(good: Sequence[DrawnAnswer], scored: Sequence[DrawnAnswer]) -> list[tuple[DrawnAnswer, DrawnAnswer]]:
    """Every pair of one that may be chosen and another one, the largest difference of rewards first."""
    pairs = [(better, worse) for better in good for worse in scored if better is not worse]
    return sorted(pairs, key=lambda pair: (-_gap(*pair), pair[0].sample, pair[1].sample))


def _gap(better: DrawnAnswer, worse: DrawnAnswer) -> float:
    return _reward(better) - _reward(worse)


def _toxicity_gap(better: DrawnAnswer, worse: DrawnAnswer) -> float:
    """By how much the better one's P(toxic) is lower. An empty answer has none: any other is preferred to it."""
    assert better.toxicity is not None  # else it could not be chosen
    return math.inf if worse.toxicity is None else worse.toxicity - better.toxicity


def _ratio(one: DrawnAnswer, other: DrawnAnswer) -> float:
    longer, shorter = sorted((len(one.tokens), len(other.tokens)), reverse=True)
    return longer / max(1, shorter)


def _topic_gap(one: DrawnAnswer, other: DrawnAnswer) -> float:
    """How far apart the two are in similarity to their prompt; 0 where that is not known."""
    known = [value for answer in (one, other) if (value := answer.terms.get("similarity")) is not None]
    return abs(known[0] - known[1]) if len(known) == 2 else 0.0


def _reward(answer: DrawnAnswer) -> float:
    assert answer.reward is not None
    return answer.reward


def _means(answers: Sequence[DrawnAnswer]) -> dict[str, float]:
    """Mean tokens, reward, P(toxic), share that ended by themselves, and terms."""
    if not answers:
        return {}
    names = dict.fromkeys(name for answer in answers for name in answer.terms)
    terms = {name: [value for a in answers if (value := a.terms.get(name)) is not None] for name in names}
    toxicities = [answer.toxicity for answer in answers if answer.toxicity is not None]
    return {
        "tokens": fmean(len(answer.tokens) for answer in answers),
        "reward": fmean(_reward(answer) for answer in answers),
        "ended": fmean(answer.finish == "stop" for answer in answers),
        **({"toxicity": fmean(toxicities)} if toxicities else {}),
        **{name: fmean(values) for name, values in terms.items() if values},
    }
