"""What splits, metrics, quality measures and warnings are called on the page, in the terminal and on paper."""

from __future__ import annotations

from rewardlm.formats import SHORT_NONE, number, percent
from rewardlm.measuring.comparison import Metric, Split

SPLITS: dict[Split, str] = {
    "all": "all prompts",
    "toxic_prompts": "toxic prompts",
    "nontoxic_prompts": "non-toxic prompts",
    "challenging": "challenging prompts",
    "comparable": "comparable answers",
}
# Whose share it is.
OF_SPLIT: dict[Split, str] = {
    "all": "of all answers",
    "toxic_prompts": "of answers to toxic prompts",
    "nontoxic_prompts": "of answers to non-toxic prompts",
    "challenging": "of answers to challenging prompts",
    "comparable": "of comparable answers",
}
# The splits whose changes short tables show; the rest is in --json and in the report.
CHANGE_SPLITS: tuple[Split, ...] = ("all", "toxic_prompts", "comparable")

METRICS: dict[Metric, str] = {
    "toxic_fraction": "toxic share",
    "mean": "mean score",
    "expected_max_toxicity": "expected maximum toxicity",
    "toxicity_probability": "toxicity probability",
}

# Field of a model's ``quality``, its name in short tables, and how it is written: as a share, or by a format.
QUALITY = (
    ("empty_fraction", "empty", "percent"),
    ("non_latin_fraction", "non-Latin", "percent"),
    ("repetition", "repeated", "percent"),
    ("refusal_fraction", "refusals", "percent"),
    ("truncated_fraction", "cut off", "percent"),
    ("comparable_fraction", "comparable", "percent"),
    ("counter_narrative_fraction", "counter-narratives", "percent"),
    ("counter_narrative_null", "… with a shuffled prompt", "percent"),
    ("counter_narrative_corrected", "… corrected", "percent"),
    ("mean_words", "words an answer", ",.1f"),
    ("distinct_1", "distinct-1", ".3f"),
    ("distinct_2", "distinct-2", ".3f"),
    ("distinct_3", "distinct-3", ".3f"),
    ("prompt_similarity", "similarity with the prompt", ".3f"),
    ("prompt_similarity_null", "… with a shuffled one", ".3f"),
    ("perplexity", "perplexity", ",.1f"),
    ("hellaswag", "HellaSwag", "percent"),
    ("piqa", "PIQA", "percent"),
    ("boolq", "BoolQ", "percent"),
    ("mmlu", "MMLU", "percent"),
    ("wikitext_perplexity", "WikiText, perplexity a word", ",.1f"),
    ("over_refusal_fraction", "harmless prompts refused", "percent"),
)


def quality_text(value: float | None, form: str) -> str:
    """A number of ``QUALITY`` as it is written in tables."""
    if value is None:
        return SHORT_NONE
    return percent(value) if form == "percent" else number(value, form)


WARNINGS = {
    "language_switch": "Answers switched to another script",
    "empty": "Many answers are empty",
    "repetition": "Answers repeat themselves",
    "refusal": "The model refuses instead of answering",
    "off_topic": "Answers drifted off the prompt’s topic",
    "fluency": "Answers became less fluent",
    "judges_disagree": "The judges disagree",
    "judge_is_reward": "A judge was also the reward",
    "judge_taught_reward": "A judge is a relative of the reward",
    "judge_read_prompts": "A judge was trained on prompts that are measured",
    "steering_read_prompts": "A steering was fitted on prompts that are measured",
    "gain_not_on_comparable": "The gain is not there on comparable answers",
    "counter_narratives_fell": "Fewer counter-narratives than before",
    "utility_lost": "The model can do less than before",
    "over_refusal": "More harmless prompts are refused",
    "unequal_gain": "Some groups gained less than others",
    "other_texts": "A threshold was matched on other texts",
    "quotation_punished": "A judge may punish quotations",
    "truncated": "One model’s answers were cut off more often",
    "settings_differ": "Answers were drawn with other settings",
    "unscored": "Answers without a score",
    "unscored_decide": "What can’t be scored decides which way the change goes",
    "prompts_differ": "The runs answered different prompts",
    "weights_differ": "The same name stood for different weights",
}
