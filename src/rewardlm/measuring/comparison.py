"""What ``compare`` finds, typed: the object that ``rewardlm compare --json`` prints, with its keys described.

Field names are the JSON's, except ``from``, a keyword of Python: ``Change.from_``. docs/measuring.md says how each
number is counted; docs/comparison.schema.json is made from these classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field

from rewardlm.config import CorrectionMethod
from rewardlm.measuring.result import Interval, Result, ShareChange
from rewardlm.measuring.utility_results import (
    GroupsChange,
    GroupSummary,
    NonInferiority,
    OverRefusalChange,
    OverRefusalSummary,
    UtilityChange,
    UtilitySummary,
)

if TYPE_CHECKING:
    import pandas as pd

Split = Literal["all", "toxic_prompts", "nontoxic_prompts", "challenging", "comparable"]
SPLITS: tuple[Split, ...] = get_args(Split)
Metric = Literal["toxic_fraction", "mean", "expected_max_toxicity", "toxicity_probability"]

# How the keys of a change in each metric begin.
METRICS: dict[Metric, str] = {
    "toxic_fraction": "",
    "mean": "mean_",
    "expected_max_toxicity": "expected_max_toxicity_",
    "toxicity_probability": "toxicity_probability_",
}
# The field of ``quality`` that has a task's number.
UTILITY_FIELDS = {
    "hellaswag": "hellaswag",
    "piqa": "piqa",
    "boolq": "boolq",
    "mmlu": "mmlu",
    "wikitext": "wikitext_perplexity",
}
# Metrics that have one number per prompt, not one per answer.
OF_PROMPTS = ("expected_max_toxicity", "toxicity_probability")


class EqualSamples(Result):
    """How many answers EMT and TP are computed on: two maxima can be compared only if they are of equally many."""

    samples: int | None = Field(description="Scored answers per prompt that count; null if there are none.")
    prompts: int = Field(description="Prompts with that many scored answers in every model.")
    left_out: int = Field(description="Prompts that have fewer, or none, in one of the models.")


class EqualMaxima(EqualSamples):
    """EMT and TP over equally many scored answers to each prompt."""

    expected_max_toxicity: float | None = Field(description="Expected maximum toxicity of these prompts.")
    toxicity_probability: float | None = Field(description="Toxicity probability of these prompts.")


class SplitSummary(Result):
    """A model's answers in one split, by one judge. Null where nothing was scored."""

    n: int = Field(description="Answers, scored or not.")
    scored: int = Field(description="Answers with a score.")
    unanswered: int = Field(description="Questions that got no answer; not counted in n.")
    toxic_fraction: float | None = Field(description="Toxic answers over scored ones.")
    toxic_fraction_ci95: Interval | None = Field(description="Its 95 % interval, over prompts.")
    toxic_fraction_of_all: float | None = Field(description="Lower bound: what has no score counts as harmless.")
    toxic_fraction_worst: float | None = Field(description="Upper bound: what has no score counts as toxic.")
    mean: float | None = Field(description="Mean score.")
    expected_max_toxicity: float | None = Field(description="EMT: mean over prompts of the highest score.")
    expected_max_toxicity_ci95: Interval | None = Field(description="Its 95 % interval, over prompts.")
    toxicity_probability: float | None = Field(description="TP: share of prompts with a toxic answer.")
    toxicity_probability_ci95: Interval | None = Field(description="Its 95 % interval, over prompts.")
    equal_samples: EqualMaxima = Field(description="EMT and TP, comparable between models.")
    buckets: list[int] = Field(description="Scored answers that are low, medium, high.")
    correction: CorrectionMethod | None = Field(
        None, description="How corrected_fraction was found; null where there is nothing to correct by."
    )
    corrected_fraction: float | None = Field(
        None, description="The toxic share, corrected by people's labels or by the judge's known errors."
    )
    corrected_fraction_ci95: Interval | None = Field(
        None, description="Its 95 % interval, over prompts, which includes how the judge errs."
    )
    labels: int | None = Field(
        None, description="Labels of these answers that it rests on; 0: the judge's errors on a suite."
    )


class QualitySummary(Result):
    """What a lower toxic share may have cost. Null where it wasn't measured."""

    empty_fraction: float | None = Field(description="Answers without a visible character.")
    non_latin_fraction: float | None = Field(description="Answers whose letters are mostly not Latin.")
    other_script_fraction: float | None = Field(description="Answers mostly in another script than their prompt.")
    repetition: float | None = Field(description="Answers half or more of which is one repeated 4-gram of words.")
    refusal_fraction: float | None = Field(description="Answers that refuse.")
    comparable_fraction: float | None = Field(description="Answers that are none of the above.")
    truncated_fraction: float | None = Field(description="Answers that were cut off, among those whose end is known.")
    mean_words: float | None = Field(description="Mean number of words in an answer.")
    distinct_1: float | None = Field(description="Different words of a prompt's answers over all their words.")
    distinct_2: float | None = Field(description="The same for pairs of words.")
    distinct_3: float | None = Field(description="The same for runs of three words.")
    prompt_similarity: float | None = Field(description="Mean cosine of answer and prompt.")
    prompt_similarity_null: float | None = Field(description="The same with shuffled prompts.")
    perplexity: float | None = Field(description="Under the base model; geometric mean over answers.")
    counter_narrative_fraction: float | None = Field(
        description="Share of judged answers to toxic prompts that the judge of pairs calls counter-narratives."
    )
    counter_narrative_fraction_ci95: Interval | None = Field(description="Its 95 % interval, over prompts.")
    counter_narrative_null: float | None = Field(description="The same with answers under each other's prompts.")
    counter_narrative_corrected: float | None = Field(description="The share, corrected for the judge's known errors.")
    counter_narrative_corrected_ci95: Interval | None = Field(
        description="Its 95 % interval, which takes into account how uncertain those errors are."
    )
    counter_narrative_errors_fit: bool | None = Field(
        description="False if no true share explains the share that a judge with those errors found."
    )
    hellaswag: float | None = Field(None, description="Accuracy on HellaSwag, by log-probability per character.")
    piqa: float | None = Field(None, description="Accuracy on PIQA, likewise.")
    boolq: float | None = Field(None, description="Accuracy on BoolQ, by log-probability.")
    mmlu: float | None = Field(None, description="Accuracy on MMLU, by log-probability.")
    wikitext_perplexity: float | None = Field(None, description="Perplexity per word of WikiText's articles.")
    over_refusal_fraction: float | None = Field(None, description="Share of harmless prompts that it refused.")
    over_refusal_fraction_ci95: Interval | None = Field(None, description="Its 95 % interval, over prompts.")


class Disagreement(Result):
    """How far an ensemble's members are apart, over the answers that all of them scored."""

    scored: int = Field(description="Answers that all members scored.")
    mean: float | None = Field(description="Mean of the highest minus the lowest score.")
    fraction_over_half: float | None = Field(description="Share of answers on which they are more than 0.5 apart.")


class TruncatedChange(ShareChange):
    """A change in the share of answers that were cut off."""

    p_adjusted: float | None = Field(None, description="p_value corrected (Holm) over the models.")


class QualityChange(ShareChange):
    """A change in one number of ``quality``, over the answers to the same prompt and sample number that have it."""

    prompts: int = Field(description="Prompts whose answers these are.")
    delta: float | None = Field(
        description="The share minus the baseline's; for prompt_similarity and perplexity by what share it is higher."
    )


class CounterNarrativeChange(ShareChange):
    """A change in the share of counter-narratives among answers to toxic prompts."""

    prompts: int = Field(description="Prompts whose answers these are.")
    rose: int = Field(description="Prompts whose share rose.")
    fell: int = Field(description="Prompts whose share fell.")
    delta_over_null: float | None = Field(description="Change of the share's excess over that with shuffled prompts.")
    delta_over_null_ci95: Interval | None = Field(description="Its 95 % interval.")
    p_value_over_null: float | None = Field(description="Its p-value.")
    p_adjusted: float | None = Field(None, description="p_value corrected (Holm) over the models.")
    p_adjusted_over_null: float | None = Field(None, description="p_value_over_null corrected likewise.")


class ModelSummary(Result):
    """One model: what judges say of its answers, and what else they are like."""

    label: str = Field(description="The run's label, numbered if two runs have the same one.")
    prompts: int = Field(description="Prompts that it was asked.")
    generations: int = Field(description="Answers that it gave.")
    scorers: dict[str, dict[Split, SplitSummary]] = Field(
        description="By judge (NAME, or NAME.LABEL for a further label) and split."
    )
    quality: QualitySummary
    pair_judge: dict[str, Any] | None = Field(
        description="The judge that finds counter-narratives: name, revision, and the errors on its card."
    )
    quality_sample: dict[str, dict[str, int]] | None = Field(
        description="How many answers, of how many, were examined for similarity, perplexity, counter_narrative."
    )
    max_new_tokens: int | None = Field(description="Number of tokens at which answers were cut off.")
    preset: str | None = Field(description="The preset of measure that the settings follow.")
    disagreement: dict[str, Disagreement] = Field(description="By ensemble.")
    counter_narrative_change: CounterNarrativeChange | None = Field(
        None, description="From the baseline; null if no pair was judged by the same judge."
    )
    truncated_change: TruncatedChange | None = Field(None, description="From the baseline; null if unknown.")
    quality_change: dict[str, QualityChange] = Field(
        {},
        description="From the baseline, by field of quality: empty_fraction, other_script_fraction, repetition, "
        "refusal_fraction, prompt_similarity, perplexity.",
    )
    utility: dict[str, UtilitySummary] = Field({}, description="By task, if the run was measured with --suite utility.")
    utility_change: dict[str, UtilityChange] = Field({}, description="From the baseline, by task that both have.")
    accuracy_change: UtilityChange | None = Field(
        None,
        description="Of the mean accuracy over the tasks of choice that both have, each counting alike; null for fewer "
        "than two.",
    )
    non_inferiority: dict[str, NonInferiority] = Field(
        {},
        description="Against the baseline, by task that both have, accuracy (the mean over the tasks of choice), and "
        "over_refusal.",
    )
    over_refusal: OverRefusalSummary | None = Field(None, description="Answers to harmless prompts; null without any.")
    over_refusal_change: OverRefusalChange | None = Field(
        None, description="From the baseline; null without a harmless prompt that both answered."
    )
    groups: dict[str, dict[str, GroupSummary]] = Field(
        {}, description="By judge and group: answers to sentences that differ only in the group that they are about."
    )
    groups_change: dict[str, GroupsChange] = Field({}, description="From the baseline, by judge of both.")
    utility_note: str | None = Field(None, description="How a steered model's utility was taken, if that needs saying.")


class Excess(Result):
    """By how much the share of a row that goes to a column differs from what a second draw of the baseline gives."""

    delta: float = Field(description="Share in the flow minus share in the second draw.")
    ci95: Interval | None = Field(description="Its 95 % interval; null for fewer than five prompts.")
    p_value: float | None = Field(description="From a permutation test; null for fewer than five prompts.")
    prompts: int = Field(description="Prompts with an answer in the row.")
    p_adjusted: float | None = Field(None, description="p_value corrected (Holm), from high to low only.")


@dataclass(frozen=True, slots=True)
class MetricChange:
    """A change in one metric. ``n`` counts what it is over: pairs of answers, or prompts."""

    n: int
    delta: float | None
    ci95: Interval | None
    p_value: float | None
    p_adjusted: float | None


class Change(Result):
    """What one judge says about one split: a model against the baseline, over the pairs scored in both.

    Changes below zero are less toxic. Adjusted p-values are corrected (Holm) for all tests that are read together;
    those of the primary outcome are corrected for the number of models alone.
    """

    from_: str = Field(alias="from", description="The baseline's label.")
    to: str = Field(description="The model's label.")
    scorer: str
    split: Split
    n: int = Field(description="Pairs of answers to the same prompt and sample number, scored in both models.")
    prompts: int = Field(description="Prompts that have such a pair.")
    before: float | None = Field(description="The baseline's toxic share of these pairs.")
    after: float | None = Field(description="The model's toxic share of them.")
    delta: float | None = Field(description="after minus before.")
    delta_ci95: Interval | None = Field(description="Its 95 % interval, over prompts.")
    p_value: float | None = Field(description="From the sign-flip or t test that goes with the interval.")
    better: int = Field(description="Prompts whose toxic share fell.")
    worse: int = Field(description="Prompts whose toxic share rose.")
    flow: list[list[int]] = Field(description="Pairs by bucket: rows low, medium, high before; columns after.")
    flow_unscored: int = Field(description="Pairs without a score on one side or both.")
    flow_to_unscored: list[int] = Field(description="By bucket before: pairs scored only before.")
    flow_from_unscored: list[int] = Field(description="By bucket after: pairs scored only after.")
    flow_redraw: list[list[float] | None] | None = Field(
        description="The flow to expect from a second draw of the baseline; null where that isn't known."
    )
    flow_excess: list[list[Excess | None]] | None = Field(description="How flow differs from flow_redraw.")
    common_draws: float | None = Field(
        description="By how much more often two answers begin alike under the same sample number than under others."
    )
    mean_delta: float | None = Field(description="Change of the mean score.")
    mean_delta_ci95: Interval | None = Field(description="Its 95 % interval.")
    mean_p_value: float | None = Field(description="Its p-value.")
    delta_of_all: float | None = Field(description="Change of the toxic share, with the unscored as harmless.")
    delta_of_all_ci95: Interval | None = Field(description="Its 95 % interval.")
    delta_best: float | None = Field(description="The same with the unscored as toxic before and harmless after.")
    delta_worst: float | None = Field(description="The same with the unscored as harmless before and toxic after.")
    delta_worst_ci95: Interval | None = Field(description="Its 95 % interval.")
    delta_worst_p_value: float | None = Field(description="Its p-value.")
    corrected_delta: float | None = Field(
        None, description="Change of the toxic share, corrected as the splits' corrected_fraction is."
    )
    corrected_delta_ci95: Interval | None = Field(None, description="Its 95 % interval.")
    labels: int | None = Field(None, description="Labels of both models' answers that it rests on; 0: a suite.")
    expected_max_toxicity_delta: float | None = Field(description="Change of EMT, at equal_samples.")
    expected_max_toxicity_delta_ci95: Interval | None = Field(description="Its 95 % interval.")
    expected_max_toxicity_p_value: float | None = Field(description="Its p-value.")
    toxicity_probability_delta: float | None = Field(description="Change of TP, at equal_samples.")
    toxicity_probability_delta_ci95: Interval | None = Field(description="Its 95 % interval.")
    toxicity_probability_p_value: float | None = Field(description="Its p-value.")
    equal_samples: EqualSamples = Field(description="What the changes of EMT and TP are computed on.")
    p_adjusted: float | None = Field(None, description="p_value, adjusted.")
    mean_p_adjusted: float | None = Field(None, description="mean_p_value, adjusted.")
    expected_max_toxicity_p_adjusted: float | None = Field(None, description="expected_max_toxicity_p_value, adjusted.")
    toxicity_probability_p_adjusted: float | None = Field(None, description="toxicity_probability_p_value, adjusted.")
    delta_worst_p_adjusted: float | None = Field(None, description="delta_worst_p_value, adjusted.")

    @property
    def significant(self) -> bool:
        """Whether the toxic share changed, at a level of 5 % after correction."""
        return self.p_adjusted is not None and self.p_adjusted < 0.05

    def of(self, metric: Metric) -> MetricChange:
        """The change in ``metric`` of this judge and split."""
        prefix = METRICS[metric]
        numbers = (getattr(self, prefix + key) for key in ("delta", "delta_ci95", "p_value", "p_adjusted"))
        return MetricChange(self.equal_samples.prompts if metric in OF_PROMPTS else self.n, *numbers)


class LevelShare(Result):
    """The share of answers at one level of severity."""

    name: str = Field(description="negligible, low, medium, high or severe.")
    above: float = Field(description="Scores above this belong to it, up to where the next level begins.")
    share: float = Field(description="Answers at this level over scored ones.")
    share_ci95: Interval | None = Field(description="Its 95 % interval, over prompts.")


class LevelChange(Result):
    """A change in the share of answers at one level of severity."""

    name: str = Field(description="The level.")
    above: float = Field(description="Scores above this belong to it, up to where the next level begins.")
    delta: float | None = Field(description="The share minus the baseline's.")
    delta_ci95: Interval | None = Field(description="Its 95 % interval, over prompts.")
    p_value: float | None = Field(description="From the test that goes with the interval.")
    p_adjusted: float | None = Field(description="p_value corrected (Holm) over the levels.")


class SeverityCurve(Result):
    """A model's toxic share at every threshold, by one judge, over the answers of the primary outcome's split."""

    label: str = Field(description="The model's.")
    scorer: str
    split: Split
    n: int = Field(description="Scored answers.")
    thresholds: list[float] = Field(description="Scores, from 0.02 to 0.98.")
    shares: list[float] = Field(description="Share of answers above each threshold.")
    band95: list[Interval] | None = Field(
        description="Ends at each threshold, which hold at all of them at once with a chance of 95 %."
    )
    levels: list[LevelShare] = Field(description="Answers by level of severity, the mildest first.")


class SeverityChange(Result):
    """How that changed from the baseline, over the pairs scored in both."""

    from_: str = Field(alias="from", description="The baseline's label.")
    to: str = Field(description="The model's label.")
    scorer: str
    split: Split
    n: int = Field(description="Pairs of answers.")
    thresholds: list[float] = Field(description="Scores, from 0.02 to 0.98.")
    deltas: list[float] = Field(description="Change of the share above each threshold.")
    band95: list[Interval] | None = Field(description="As that of the shares.")
    fell: list[Interval] = Field(description="Ranges of thresholds at each of which the band is below zero.")
    rose: list[Interval] = Field(description="Ranges of thresholds at each of which it is above zero.")
    levels: list[LevelChange] = Field(description="Changes by level of severity, the mildest first.")


class Primary(Result):
    """The outcome that counts, whatever comes out: which judge, split and number."""

    scorer: str
    split: Split
    metric: Metric


class PrimaryFixed(Result):
    """When the primary outcome was fixed."""

    when: Literal["before", "afterwards", "differs"] = Field(
        description="before anyone saw a result; afterwards; or it differs from what the runs recorded."
    )
    sentence: str = Field(description="The same as a sentence.")


class AuditWarning(Result):
    """One doubt of the audit about one model."""

    code: str = Field(description="Its kind: language_switch, judge_is_reward …; docs/measuring.md defines each.")
    model: str = Field(description="The model's label.")
    message: str = Field(description="The doubt with its numbers, in a sentence.")
    scorer: str | None = Field(None, description="The judge that it is about, if it is about one.")


class OwnThreshold(Result):
    """The threshold of one judge that took an old one's place (``rewardlm judge migrate``)."""

    value: float = Field(description="An answer is toxic above this score.")
    matching: Literal["share", "precision"] = Field(description="What it has in common with the old threshold.")
    old: float | None = Field(description="The old judge's threshold.")
    n: int | None = Field(description="Number of texts on which it was matched.")
    source: str | None = Field(description="The name of the file with these texts.")


class ComparisonSettings(Result):
    """What counted as toxic, and how chance was drawn."""

    threshold: float = Field(description="An answer or a prompt is toxic above this score.")
    inclusive: bool = Field(description="True if that score itself counts as toxic, too.")
    n_resamples: int = Field(description="Number of sign flips and permutations in a test.")
    seed: int
    utility_margin: float = Field(0.01, description="The loss in utility that non_inferiority still accepts.")
    redraw: str | None = Field(description="The label of a second draw of the baseline, if one was given.")
    thresholds: dict[str, OwnThreshold] = Field(
        {}, description="Judges with a threshold of their own; their shares' intervals include how uncertain it is."
    )

    def rule_of(self, scorer: str) -> str:
        """When an answer is toxic to that judge: "> 0.5"."""
        own = self.thresholds.get(scorer)
        sign = "≥" if self.inclusive else ">"
        return f"{sign} {self.threshold:g}" if own is None else f"{sign} {own.value:.3g}"


class Comparison(Result):
    """Models compared with a baseline, the first: what each is like, what changed, and whether to believe it.

    A notebook shows it as a table of the toxic shares and their changes.
    """

    models: list[ModelSummary] = Field(description="The baseline first.")
    comparisons: list[Change] = Field(description="From the baseline to every other model, by judge and split.")
    primary: Primary | None = Field(description="The outcome that counts; null if no judge saw all models.")
    primary_fixed: PrimaryFixed
    warnings: list[AuditWarning] = Field(description="What speaks against believing it.")
    severity: list[SeverityCurve] = Field([], description="The toxic share at every threshold, by model and judge.")
    severity_change: list[SeverityChange] = Field([], description="Its changes from the baseline.")
    correction_notes: list[str] = Field(
        [], description="What must be known of corrected shares, and why some weren't corrected."
    )
    settings: ComparisonSettings

    @property
    def baseline(self) -> ModelSummary:
        return self.models[0]

    @property
    def scorers(self) -> list[str]:
        """Every judge and label that scored a model."""
        return list(dict.fromkeys(name for model in self.models for name in model.scorers))

    def model(self, label: str) -> ModelSummary:
        """The model of that label. Raises KeyError that lists the known labels."""
        for found in self.models:
            if found.label == label:
                return found
        raise KeyError(f"no model {label!r}: expected one of {', '.join(model.label for model in self.models)}")

    def change(self, to: str, *, scorer: str | None = None, split: Split | None = None) -> Change:
        """The change from the baseline to the model ``to``, by the primary outcome's judge and split by default.

        Raises KeyError where there is none.
        """
        if self.primary is not None:
            scorer, split = scorer or self.primary.scorer, split or self.primary.split
        found = change_of(self.comparisons, to=to, scorer=scorer, split=split or "all")
        if found is not None:
            return found
        known = sorted({f"{found.to} by {found.scorer}" for found in self.comparisons})
        raise KeyError(f"no change to {to!r} by {scorer!r} in {split!r}: expected one of {', '.join(known)}")

    def main_labels(self) -> Comparison:
        """Without the further labels of judges that have several (NAME.LABEL beside NAME), as short tables show it."""
        names = main_names(self.scorers)
        return self.model_copy(
            update={
                "models": [
                    model.model_copy(
                        update={"scorers": {name: one for name, one in model.scorers.items() if name in names}}
                    )
                    for model in self.models
                ],
                "comparisons": [change for change in self.comparisons if change.scorer in names],
                "severity": [curve for curve in self.severity if curve.scorer in names],
                "severity_change": [change for change in self.severity_change if change.scorer in names],
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """What ``rewardlm compare --json`` prints."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each model, judge and split: the model's own numbers, and those of its change beside them."""
        import pandas as pd

        changes = {(found.to, found.scorer, found.split): found for found in self.comparisons}
        rows = []
        for model in self.models:
            for scorer, splits in model.scorers.items():
                for split, found in splits.items():
                    row: dict[str, Any] = {"model": model.label, "scorer": scorer, "split": split}
                    row |= found.model_dump(exclude={"equal_samples", "buckets"})
                    change = changes.get((model.label, scorer, split))
                    for name in ("delta", "delta_ci95", "p_value", "p_adjusted", "mean_delta"):
                        row[name] = None if change is None else getattr(change, name)
                    rows.append(row)
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        shown = self.to_pandas()
        split = self.primary.split if self.primary is not None else "all"
        columns = ["model", "scorer", "n", "toxic_fraction", "toxic_fraction_ci95", "delta", "delta_ci95", "p_adjusted"]
        table: str = shown[shown["split"] == split][columns].to_html(
            index=False, float_format="{:.3f}".format, na_rep=""
        )
        return f"<p>Split: {split}. Warnings: {len(self.warnings)}.</p>{table}"


def main_names(names: Collection[str]) -> set[str]:
    """The names of judges' main labels: an ensemble's further labels are its members, whose own names may hold dots."""
    return {name for name in names if not any(name.startswith(f"{other}.") for other in names)}


def change_of(changes: Iterable[Change], *, to: str, scorer: str | None, split: str) -> Change | None:
    """The one change to that model by that judge in that split, if it is among ``changes``."""
    wanted = (to, scorer, split)
    return next((change for change in changes if (change.to, change.scorer, change.split) == wanted), None)
