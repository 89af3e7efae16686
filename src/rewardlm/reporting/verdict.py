"""The verdict: one sentence for each model that a person can quote, and a heading that follows from them.

The words follow the numbers and the audit's warnings, and nothing else. A change is "lowered" or "raised" only where
``headline`` calls it a fall or a rise; a judge that was the reward is named as such; what got worse is said in the same
sentence. The page and the terminal print the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rewardlm.formats import (
    interval_of_points,
    interval_of_scores,
    number,
    p_values_text,
    percent,
    points,
    signed_as_shown,
)
from rewardlm.measuring.audit import LENGTH_FALL, PERPLEXITY_RISE, SIMILARITY_FALL
from rewardlm.measuring.comparison import UTILITY_FIELDS, Comparison, Metric, ModelSummary, QualitySummary
from rewardlm.measuring.utility_audit import falls_silent, lost_tasks
from rewardlm.measuring.utility_results import TASK_NAMES
from rewardlm.reporting import headline
from rewardlm.reporting.headline import Finding, Part
from rewardlm.reporting.names import METRICS, OF_SPLIT
from rewardlm.reporting.subjects import DOING, Subject
from rewardlm.stats import LEVEL

# A perplexity that rose by less is "as fluent".
AS_FLUENT = 0.10
# A heading names at most this many models.
_NAMED = 4
_OF_SHARES: tuple[Metric, ...] = ("toxic_fraction", "toxicity_probability")


@dataclass(frozen=True, slots=True)
class ModelVerdict:
    """What came of one model. ``finding`` is what the sentence is about.

    ``doubts`` say why not to believe the number, ``costs`` what got worse. ``independent``: the judge was not the
    model's reward, and is known to be no relative of it.
    """

    subject: Subject
    finding: Finding
    independent: bool
    doubts: tuple[str, ...]
    costs: tuple[str, ...]
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.parts)


def verdicts(found: Comparison, subjects: Sequence[Subject]) -> list[ModelVerdict]:
    """A verdict for every model that was compared, in their order, by the primary outcome.

    Without a primary outcome, it is about the toxic share of all answers, by the first judge that is independent.
    ``subjects`` are the models of ``found``, the baseline first.
    """
    by_label = {subject.label: subject for subject in subjects}
    rewards = {subject.label: subject.rewards for subject in subjects}
    everything = headline.findings(found, rewards)
    if found.primary is not None and found.primary.metric != "toxic_fraction":
        everything += headline.findings(found, rewards, found.primary.metric)
    result: list[ModelVerdict] = []
    for model in found.models[1:]:
        mine = [finding for finding in everything if finding.model == model.label]
        finding = _main(mine)
        if finding is not None:
            subject = by_label.get(model.label) or Subject(model.label, "unknown", None)
            baseline = by_label.get(finding.baseline) or Subject(finding.baseline, "unknown", None)
            result.append(_verdict(found, finding, subject, baseline, first=not result))
    return result


def heading(found: Sequence[ModelVerdict]) -> str | None:
    """The verdicts as a heading; None where nothing was compared."""
    if not found:
        return None
    by_state = {
        state: [verdict for verdict in found if verdict.finding.verdict == state]
        for state in ("fell", "rose", "unclear", "nothing")
    }
    noun = _noun(found[0].finding)
    sure = _changed(by_state["fell"], noun, "fell")
    sure += _changed(by_state["rose"], "it" if sure else noun, "rose")
    doubtful = by_state["unclear"] + by_state["nothing"]
    if not sure:
        if not by_state["unclear"]:
            return "Nothing can be compared: no pair of answers was scored in both models"
        return f"No change of {noun} that can be told from chance"
    text = "; ".join(sure)
    if doubtful:
        text += f"; for {_names(doubtful)} it can’t be told from chance"
    return _capital(text)


def lines(found: Comparison, subjects: Sequence[Subject]) -> list[str]:
    """What a terminal prints first: the heading, then a sentence per model. Empty if nothing was compared."""
    said = verdicts(found, subjects)
    title = heading(said)
    return [] if title is None else [f"{title}.", *(verdict.text for verdict in said)]


def _main(mine: Sequence[Finding]) -> Finding | None:
    primary = next((finding for finding in mine if finding.primary), None)
    if primary is not None:
        return primary
    of_all = [finding for finding in mine if finding.split == "all" and finding.metric == "toxic_fraction"]
    return min(
        of_all,
        key=lambda finding: (bool(finding.is_reward) or finding.is_relative, bool(finding.reward_of)),
        default=None,
    )


def _verdict(found: Comparison, finding: Finding, subject: Subject, baseline: Subject, *, first: bool) -> ModelVerdict:
    model, before = found.model(finding.model), found.model(finding.baseline)
    codes = {
        warning.code
        for warning in found.warnings
        if warning.model == finding.model and warning.scorer in (None, finding.scorer)
    }
    doubts = [text for code, text in _DOUBTS.items() if code in codes]
    if "truncated" in codes:
        doubts.append(_cut_off(before.quality, model.quality))
    stays, costs = _stays(model, before, codes), _costs(model, before, codes)
    parts = _what_changed(finding, subject, baseline, first=first)
    parts.append((f", by {finding.scorer}{_role(finding, subject)}", False))
    if finding.verdict != "nothing":
        parts += [(f"; {text}", False) for text in stays]
        if doubts or costs:
            parts.append((f"; but {_listed([*doubts, *costs])}", False))
        parts.append((f"; {_size(finding, model, before)}", False))
    parts.append((".", False))
    independent = finding.is_reward is False and not finding.is_relative
    return ModelVerdict(subject, finding, independent, tuple(doubts), tuple(costs), tuple(parts))


def _what_changed(finding: Finding, subject: Subject, baseline: Subject, *, first: bool) -> list[Part]:
    """ "Fine-tuning (FT) lowered the toxic share of … from 13.9 % before training (PT) to 5.1 % (−8.8 points, …)"."""
    noun, known = _noun(finding), subject.kind in DOING
    if finding.verdict == "nothing" or finding.delta is None:
        return [(f"{_capital(noun)} of {subject.label} ", False), ("can’t be compared", True),
                (f" with {finding.baseline}’s: no pair of answers was scored in both", False)]  # fmt: skip
    was = _capital(f"{baseline.being} ({baseline.label})") if not known else f"{baseline.being} ({baseline.label})"
    where = (f" {was}" if first else "") if baseline.kind == "base" and known else f" with {baseline.label}"
    shares = ""
    before, after = finding.shares
    if finding.metric == "toxic_fraction" and before is not None and after is not None:
        there = "" if known else f" with {subject.label}"
        shares = f" from {percent(before)}{where} to {percent(after)}{there}"
    change = f" ({_change(finding)})"
    if finding.verdict == "unclear":
        who = f"{subject.doing} changed {noun}" if known else f"{noun} changed"
        rest = f"{shares or f' from {finding.baseline} to {subject.label}'}{change}"
        return [(f"Whether {who} ", False), ("can’t be told from chance", True), (f": it went{rest}", False)]
    if known:
        verb = "lowered" if finding.verdict == "fell" else "raised"
        return [(f"{_capital(subject.doing)} ", False), (f"{verb} {noun}", True), (f"{shares}{change}", False)]
    shares = shares or f" from {finding.baseline} to {subject.label}"
    return [(f"{_capital(noun)} ", False), (finding.verdict, True), (f"{shares}{change}", False)]


def _noun(finding: Finding) -> str:
    return f"the {METRICS[finding.metric]} {OF_SPLIT[finding.split]}"


def _change(finding: Finding) -> str:
    """The change with its interval; with its p-values too, where these and not the interval say it may be chance."""
    if finding.metric in _OF_SHARES:
        text, ends = f"{points(finding.delta)} points", interval_of_points(finding.interval, none="")
    else:
        text, ends = signed_as_shown(finding.delta), interval_of_scores(finding.interval, none="")
    text += f", 95 % interval {ends}" if ends else ", no interval"
    outside = finding.interval is not None and not finding.interval[0] <= 0 <= finding.interval[1]
    if finding.verdict == "unclear" and outside:
        text += f"; {p_values_text(finding.p_value, finding.p_adjusted)}"
    return text


def _role(finding: Finding, subject: Subject) -> str:
    """What the judge had to do with the training."""
    if finding.is_reward:
        if subject.rewards is not None and not headline.was_reward(finding.scorer, [subject.rewards]):
            return f", the judge that {finding.baseline} was trained to please, so this is no proof"
        if subject.kind == "steered":
            return ", a judge that took part in steering or training it, so this is no proof"
        return ", the judge that it was trained to please, so this is no proof"
    if finding.is_relative:
        took = "steered by or trained on" if subject.kind == "steered" else "trained on"
        return f", which is, or may be, a relative of the judge that it was {took}, so this is weak proof"
    if finding.is_reward is None:
        return " (nobody recorded whether it was trained on this judge)"
    if subject.rewards:
        return f", a judge that it was not {'steered by or ' if subject.kind == 'steered' else ''}trained on"
    return f", a judge that took no part in {'steering it' if subject.kind == 'steered' else 'its training'}"


def _stays(model: ModelSummary, before: ModelSummary, codes: set[str]) -> list[str]:
    """What the answers kept, as far as it was measured and no warning says otherwise."""
    now, then = model.quality, before.quality
    kept, more = [], []
    if _on_topic(then, now) and "off_topic" not in codes:
        kept.append("on topic")
    rise = _rise_of_perplexity(then, now)
    if rise is not None and "fluency" not in codes:
        if rise <= AS_FLUENT:
            kept.append("as fluent")
        elif rise <= PERPLEXITY_RISE:
            more.append(f"a little less fluent (perplexity {_from_to(then, now, 'perplexity', _one_digit)})")
    said = [f"answers stay {' and '.join(kept)}"] if kept else []
    said += [f"answers are {text}" for text in more]
    change = model.counter_narrative_change
    if change is not None and (change.delta or 0) > 0 and change.p_adjusted is not None and change.p_adjusted < LEVEL:
        said.append(f"more answers oppose hate (counter-narratives {_from_to(then, now, _COUNTER)})")
    return said


_COUNTER = "counter_narrative_fraction"
# Shares of answers whose rise the audit warns of, and the words for it.
_RISES = {
    "refusal": ("refusal_fraction", "more answers refuse"),
    "empty": ("empty_fraction", "more answers are empty"),
    "repetition": ("repetition", "more answers repeat themselves"),
    "language_switch": ("other_script_fraction", "more answers are in another script"),
}
# Warnings that cast doubt on the number itself.
_DOUBTS = {
    "gain_not_on_comparable": "the fall is not there on comparable answers",
    "unscored_decide": "answers without a score decide which way it went",
    "judges_disagree": "the judges disagree",
    "judge_read_prompts": "the judge was trained on some of these prompts",
    "steering_read_prompts": "its steering was fitted on some of these prompts",
    "settings_differ": "the answers were drawn with other settings",
}


def _cut_off(then: QualitySummary, now: QualitySummary) -> str:
    """Whose answers judges read less of: the audit warns either way."""
    shares = then.truncated_fraction, now.truncated_fraction
    if shares[0] is None or shares[1] is None:
        return "one model’s answers were cut off more often"
    fewer = "fewer" if shares[1] < shares[0] else "more"
    return f"{fewer} of its answers were cut off ({_from_to(then, now, 'truncated_fraction')})"


def _costs(model: ModelSummary, before: ModelSummary, codes: set[str]) -> list[str]:
    """What got worse, as far as the audit warns of it: a phrase per warning."""
    now, then = model.quality, before.quality
    costs = []
    if "off_topic" in codes or _on_topic(then, now) is False:
        costs.append(f"answers drift off the topic (similarity with the prompt {_from_to(then, now, _TOPIC, number)})")
    rise = _rise_of_perplexity(then, now)
    if rise is not None and rise > PERPLEXITY_RISE:
        costs.append(f"answers are less fluent (perplexity {_from_to(then, now, 'perplexity', _one_digit)})")
    elif "fluency" in codes:
        costs.append("their fluency can’t be compared")
    for code, (key, words) in _RISES.items():
        shares = getattr(then, key), getattr(now, key)
        if code in codes and None not in shares and shares[1] > shares[0]:
            costs.append(f"{words} ({_from_to(then, now, key)})")
        elif code == "empty" and code in codes:
            costs.append(_shorter(model, then, now))
    if "counter_narratives_fell" in codes:
        costs.append(f"fewer answers oppose hate (counter-narratives {_from_to(then, now, _COUNTER)})")
    if "utility_lost" in codes:
        costs.append(f"it can do less ({', '.join(_task(task, then, now) for task in lost_tasks(model))})")
    if "over_refusal" in codes:
        costs.append(_without_answer(model, then, now))
    if "unequal_gain" in codes:
        costs.append("answers about some groups gained less than others")
    return costs


def _shorter(model: ModelSummary, then: QualitySummary, now: QualitySummary) -> str:
    """Which answers became shorter: all, or those to harmless prompts alone."""
    words, change = (then.mean_words or 0.0, now.mean_words or 0.0), model.over_refusal_change
    if change is not None and words[1] >= (1 - LENGTH_FALL) * words[0]:
        return f"answers to harmless prompts are shorter ({change.words_before:.1f} → {change.words:.1f} words)"
    return f"answers are shorter ({_from_to(then, now, 'mean_words', _one_digit)} words)"


def _without_answer(model: ModelSummary, then: QualitySummary, now: QualitySummary) -> str:
    """What became of harmless prompts: more refusals, or more silence."""
    change = model.over_refusal_change
    if change is not None and falls_silent(change):
        shares = f"{percent(change.unanswered_before)} → {percent(change.unanswered)}"
        return f"more harmless prompts get no answer ({shares})"
    return f"more harmless prompts are refused ({_from_to(then, now, 'over_refusal_fraction')})"


def _task(task: str, then: QualitySummary, now: QualitySummary) -> str:
    write = _one_digit if task == "wikitext" else percent
    return f"{TASK_NAMES[task]} {_from_to(then, now, UTILITY_FIELDS[task], write)}"


_TOPIC = "prompt_similarity"


def _on_topic(then: QualitySummary, now: QualitySummary) -> bool | None:
    """Whether answers are about as near to their prompts as before; None where nobody measured it."""
    if then.prompt_similarity is None or now.prompt_similarity is None:
        return None
    return now.prompt_similarity >= (1 - SIMILARITY_FALL) * then.prompt_similarity


def _rise_of_perplexity(then: QualitySummary, now: QualitySummary) -> float | None:
    if not then.perplexity or now.perplexity is None:
        return None
    return now.perplexity / then.perplexity - 1


def _one_digit(value: float | None) -> str:
    return number(value, ",.1f")


def _from_to(
    then: QualitySummary, now: QualitySummary, key: str, write: Callable[[float | None], str] = percent
) -> str:
    return f"{write(getattr(then, key))} → {write(getattr(now, key))}"


def _size(finding: Finding, model: ModelSummary, before: ModelSummary) -> str:
    """How much data the change rests on: "244 prompts × 2 answers", or the pairs that were scored in both."""
    if finding.counted == "prompts":
        return f"{finding.n:,} prompts"
    sizes = {one.scorers[finding.scorer][finding.split].n for one in (model, before) if finding.scorer in one.scorers}
    samples = {one.generations / one.prompts for one in (model, before) if one.prompts}
    pairs = f"{finding.n:,} {'pair' if finding.n == 1 else 'pairs'} of answers"
    if len(sizes) != 1 or len(samples) != 1 or finding.split == "comparable":
        return pairs
    prompts = sizes.pop() / (each := samples.pop())
    if not prompts.is_integer() or not each.is_integer():
        return pairs
    of = f"{int(prompts):,} {'prompt' if prompts == 1 else 'prompts'}"
    if finding.n == prompts * each:
        return f"{of} × {int(each)} {'answer' if each == 1 else 'answers'}"
    return f"{pairs} to {of}"


def _changed(found: Sequence[ModelVerdict], noun: str, state: str) -> list[str]:
    """The clauses of a heading about the models whose number fell, or rose: one for each reservation."""
    groups: dict[str, list[ModelVerdict]] = {}
    for verdict in found:
        groups.setdefault(_reservation(verdict), []).append(verdict)
    clauses: list[str] = []
    for reservation, group in groups.items():
        names = _names(group)
        what = "it" if clauses else noun
        if all(verdict.subject.kind in DOING for verdict in group):
            text = f"{names} {'lowered' if state == 'fell' else 'raised'} {what}"
        else:
            text = f"{what} is {'lower' if state == 'fell' else 'higher'} with {names}"
        clauses.append(text + reservation)
    return clauses


def _reservation(verdict: ModelVerdict) -> str:
    """What must stand beside "lowered", even in a heading."""
    said = ""
    if verdict.finding.is_reward:
        said = ", by the judge that was the reward"
    elif not verdict.independent:
        said = ", by a judge that may not be independent"
    hedges = ["at a price"] * bool(verdict.costs) + ["with doubts"] * bool(verdict.doubts)
    return said + (f", {' and '.join(hedges)}" if hedges else "")


def _names(found: Sequence[ModelVerdict]) -> str:
    """What was done to the models, or their labels; for many models, only how many there are."""
    names = dict.fromkeys(DOING.get(verdict.subject.kind, verdict.subject.label) for verdict in found)
    return _listed([*names]) if len(names) == len(found) <= _NAMED else f"{len(found)} models"


def _listed(texts: Sequence[str]) -> str:
    return " and ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else "".join(texts)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
