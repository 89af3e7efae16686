"""What ``compare`` found, typed: the object that ``rewardlm compare --json`` prints, with its fields as attributes.

Field names are the JSON's, but for ``from``, which is a word of Python: ``Change.from_``. What is counted is defined in
``metrics`` and ``quality``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import pandas as pd

Interval = tuple[float, float]
Split = Literal["all", "toxic_prompts", "nontoxic_prompts", "challenging", "comparable"]


class Result(BaseModel):
    """Results don't change, and a key that nobody described is an error of ours."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class EqualSamples(Result):
    """Of as many scored answers to each prompt in every model; ``left_out`` prompts have fewer in one."""

    samples: int | None
    prompts: int
    left_out: int
    expected_max_toxicity: float | None = None
    toxicity_probability: float | None = None


class PairedSamples(Result):
    """Of how many prompts, with how many answers each, the changes of the two maxima are."""

    samples: int | None
    prompts: int
    left_out: int


class SplitResult(Result):
    """A model's answers in a split, by one judge. ``n`` answers, ``unanswered`` questions beside them.

    ``toxic_fraction_of_all`` counts what has no score as harmless, ``toxic_fraction_worst`` as toxic.
    """

    n: int
    scored: int
    unanswered: int
    toxic_fraction: float | None
    toxic_fraction_ci95: Interval | None
    toxic_fraction_of_all: float | None
    toxic_fraction_worst: float | None
    mean: float | None
    expected_max_toxicity: float | None
    expected_max_toxicity_ci95: Interval | None
    toxicity_probability: float | None
    toxicity_probability_ci95: Interval | None
    equal_samples: EqualSamples
    buckets: list[int]


class Quality(Result):
    """What a lower toxic share may have cost. Shares of all answers; counter-narratives of those to toxic prompts."""

    empty_fraction: float | None
    non_latin_fraction: float | None
    other_script_fraction: float | None
    repetition: float | None
    refusal_fraction: float | None
    comparable_fraction: float | None
    truncated_fraction: float | None
    mean_words: float | None
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    prompt_similarity: float | None
    prompt_similarity_null: float | None
    perplexity: float | None
    counter_narrative_fraction: float | None
    counter_narrative_fraction_ci95: Interval | None
    counter_narrative_null: float | None
    counter_narrative_corrected: float | None
    counter_narrative_corrected_ci95: Interval | None
    counter_narrative_errors_fit: bool | None


class Disagreement(Result):
    """How far an ensemble's members are apart, over the answers that all of them scored."""

    scored: int
    mean: float | None
    fraction_over_half: float | None


class ShareChange(Result):
    """A change from the baseline of a share that is no toxicity."""

    from_: str = Field(alias="from")
    n: int
    delta: float | None
    delta_ci95: Interval | None
    p_value: float | None
    p_adjusted: float | None = None


class CounterNarrativeChange(ShareChange):
    """``over_null``: of what exceeds the share that the same answers have under others' prompts."""

    rose: int
    fell: int
    delta_over_null: float | None
    delta_over_null_ci95: Interval | None
    p_value_over_null: float | None
    p_adjusted_over_null: float | None = None


class ModelResult(Result):
    """One model: ``scorers[judge][split]``, and what else its answers are like."""

    label: str
    prompts: int
    generations: int
    scorers: dict[str, dict[Split, SplitResult]]
    quality: Quality
    pair_judge: dict[str, Any] | None
    quality_sample: dict[str, dict[str, int]] | None
    max_new_tokens: int | None
    preset: str | None
    disagreement: dict[str, Disagreement]
    counter_narrative_change: CounterNarrativeChange | None = None
    truncated_change: ShareChange | None = None


class Excess(Result):
    """By how much a row's share that goes to a column differs from a second draw's."""

    delta: float
    ci95: Interval | None
    p_value: float | None
    prompts: int
    p_adjusted: float | None = None


class Change(Result):
    """What one judge says of one split: the second model against the baseline, over the pairs scored in both.

    ``delta`` is of the toxic share, ``mean_delta`` of the mean; below zero is less toxic. ``p_adjusted`` is Holm's,
    over what is read together; of the primary outcome it is corrected for the number of models alone. ``flow`` is
    3 × 3: low, medium and high before, by the same after.
    """

    from_: str = Field(alias="from")
    to: str
    scorer: str
    split: Split
    n: int
    before: float | None
    after: float | None
    delta: float | None
    delta_ci95: Interval | None
    p_value: float | None
    better: int
    worse: int
    flow: list[list[int]]
    flow_unscored: int
    flow_to_unscored: list[int]
    flow_from_unscored: list[int]
    flow_redraw: list[list[float] | None] | None
    flow_excess: list[list[Excess | None]] | None
    common_draws: float | None
    mean_delta: float | None
    mean_delta_ci95: Interval | None
    mean_p_value: float | None
    delta_of_all: float | None
    delta_of_all_ci95: Interval | None
    delta_best: float | None
    delta_worst: float | None
    delta_worst_ci95: Interval | None
    delta_worst_p_value: float | None
    expected_max_toxicity_delta: float | None
    expected_max_toxicity_delta_ci95: Interval | None
    expected_max_toxicity_p_value: float | None
    toxicity_probability_delta: float | None
    toxicity_probability_delta_ci95: Interval | None
    toxicity_probability_p_value: float | None
    equal_samples: PairedSamples
    p_adjusted: float | None
    mean_p_adjusted: float | None
    expected_max_toxicity_p_adjusted: float | None
    toxicity_probability_p_adjusted: float | None
    delta_worst_p_adjusted: float | None

    @property
    def significant(self) -> bool:
        """Whether the toxic share changed, at a level of 5 % after correction."""
        return self.p_adjusted is not None and self.p_adjusted < 0.05


class Primary(Result):
    """The outcome that counts: which judge, split and number."""

    scorer: str
    split: Split
    metric: str


class PrimaryFixed(Result):
    """Whether the primary outcome was fixed ``before`` anyone saw a result, in a sentence too."""

    when: Literal["before", "afterwards", "differs"]
    sentence: str


class Warned(Result):
    """One doubt of the audit about one model; ``scorer`` where it is of a judge."""

    code: str
    model: str
    message: str
    scorer: str | None = None


class ComparisonSettings(Result):
    """What counted as toxic, and how chance was drawn."""

    threshold: float
    inclusive: bool
    n_resamples: int
    seed: int
    redraw: str | None


class Comparison(Result):
    """Models held against a baseline, the first: what each is like, what changed, and whether to believe it.

    A notebook shows it as a table of the toxic shares and their changes.
    """

    models: list[ModelResult]
    comparisons: list[Change]
    primary: Primary | None
    primary_fixed: PrimaryFixed
    warnings: list[Warned]
    settings: ComparisonSettings

    def model(self, label: str) -> ModelResult:
        """The model of that label. Raises KeyError with the labels that there are."""
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
        for found in self.comparisons:
            if (found.to, found.scorer, found.split) == (to, scorer, split or "all"):
                return found
        known = sorted({f"{found.to} by {found.scorer}" for found in self.comparisons})
        raise KeyError(f"no change to {to!r} by {scorer!r} in {split!r}: expected one of {', '.join(known)}")

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
