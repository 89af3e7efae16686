"""What ``compare`` says of ``measure --suite utility``, typed: a part of ``comparison.Comparison``."""

from __future__ import annotations

from pydantic import Field

from rewardlm.measuring.result import Interval, Result, ShareChange

# What the tasks are called.
TASK_NAMES = {"hellaswag": "HellaSwag", "piqa": "PIQA", "boolq": "BoolQ", "mmlu": "MMLU", "wikitext": "WikiText"}


class UtilitySummary(Result):
    """What a model can still do, by one task: ``hellaswag``, ``piqa``, ``boolq``, ``mmlu``, ``wikitext``."""

    n: int = Field(description="Items that it was asked: questions, or articles.")
    value: float = Field(
        description="Accuracy: for hellaswag and piqa by log-probability per character, for boolq and mmlu by "
        "log-probability; for wikitext perplexity per word."
    )
    ci95: Interval | None = Field(description="Its 95 % interval, over items.")
    unnormalised: float | None = Field(description="Accuracy by log-probability alone; null for wikitext.")


class UtilityChange(ShareChange):
    """A change in what a model can still do, by one task."""

    n: int = Field(description="Items that both models were asked.")
    delta: float | None = Field(
        description="The accuracy minus the baseline's; for wikitext by what share the perplexity is higher."
    )
    delta_ci95: Interval | None = Field(description="Its 95 % interval, over items.")
    p_adjusted: float | None = Field(None, description="p_value corrected (Holm) over tasks and models.")


class Refusals(Result):
    """How many of its answers to some harmless prompts refuse."""

    n: int = Field(description="Answers to them: utility.refusal_samples to each prompt.")
    refused: int = Field(description="Those that refuse.")


class OverRefusalSummary(Refusals):
    """A model's answers to harmless prompts that sound dangerous."""

    prompts: int = Field(description="Prompts that it was asked.")
    fraction: float = Field(description="refused / n.")
    fraction_ci95: Interval | None = Field(description="Its 95 % interval, over prompts.")
    unanswered: int = Field(description="Answers that refuse, are empty or not in the prompts' script.")
    mean_words: float = Field(description="Mean number of words in these answers.")
    mean_tokens: float = Field(description="Mean number of tokens in these answers.")
    sets: dict[str, Refusals] = Field(description="By set of prompts: over_refusal (RewardLM's own), xstest.")
    kinds: dict[str, Refusals] = Field(description="By kind of prompt, as its set names it: homonym, definition …")


class OverRefusalChange(ShareChange):
    """A change in the share of harmless prompts that are refused, and in how long answers to them are."""

    n: int = Field(description="Prompts that both models were asked.")
    fraction_before: float = Field(description="Share of these prompts that the baseline refused.")
    fraction: float = Field(description="Share of them that the model refuses.")
    unanswered_before: float = Field(
        description="Share of the baseline's answers to them that refuse, are empty or not in the prompts' script."
    )
    unanswered: float = Field(description="The same share of the model's.")
    unanswered_delta: float | None = Field(description="unanswered - unanswered_before.")
    unanswered_delta_ci95: Interval | None = Field(
        description="Its 95 % interval, over prompts; non_inferiority is about this one."
    )
    unanswered_p_value: float | None = Field(description="Of no change in it.")
    more: int = Field(description="Prompts of whose answers more are refusals than of the baseline's.")
    fewer: int = Field(description="Prompts of whose answers fewer are, answered or not.")
    p_adjusted: float | None = Field(None, description="p_value corrected (Holm) over the models.")
    words_before: float = Field(description="Mean number of words in the baseline's answers to these prompts.")
    words: float = Field(description="Mean number of words in the model's.")
    words_delta_ci95: Interval | None = Field(description="95 % interval of words - words_before, over prompts.")

    def of_unanswered(self) -> ShareChange:
        """The change in the share without an answer. An empty answer is no refusal, and no answer either: falling
        silent must not pass for being helpful.
        """
        return self.model_copy(update={"delta": self.unanswered_delta, "delta_ci95": self.unanswered_delta_ci95})


class GroupSummary(Result):
    """What a judge says of a model's answers to sentences about one group."""

    n: int = Field(description="Answers, scored or not.")
    scored: int = Field(description="Answers with a score.")
    mean: float | None = Field(description="Mean score.")
    toxic_fraction: float | None = Field(description="Toxic answers over scored ones.")


class GroupChange(Result):
    """How the mean score of answers about one group changed, and how that compares with the other groups."""

    n: int = Field(description="Sentences with scores in both models.")
    delta: float | None = Field(description="Change of the mean score; below zero is less toxic.")
    delta_ci95: Interval | None = Field(description="Its 95 % interval, over sentences.")
    against_others: float | None = Field(
        description="delta minus the change for the other groups, sentence by sentence; above zero it gained less."
    )
    against_others_ci95: Interval | None = Field(description="Its 95 % interval, over sentences.")
    p_adjusted: float | None = Field(
        description="Of against_others = 0, corrected for all groups (``stats.all_alike``)."
    )
    after_against_others: float | None = Field(
        description="The model's mean score minus that of the other groups: above zero, answers are more toxic."
    )
    after_p_adjusted: float | None = Field(description="Of after_against_others = 0, corrected likewise.")


class GroupsChange(Result):
    """Did the toxicity of answers change alike for all groups, by one judge?"""

    from_: str = Field(alias="from", description="The baseline's label.")
    n: int = Field(description="Sentences that count: with scores for two groups or more, in both models.")
    p_value: float | None = Field(description="Of the hypothesis that it changed alike for all groups.")
    p_adjusted: float | None = Field(description="p_value corrected (Holm) over the judges of this model.")
    groups: dict[str, GroupChange] = Field(description="By group.")
    least: list[str] = Field(
        description="Groups that gained less than the others and whose answers are more toxic now than the others'; "
        "both beyond chance. The one that gained least first."
    )


class NonInferiority(Result):
    """Is a loss of more than the margin excluded?"""

    n: int = Field(description="Items, or prompts, that both models were asked.")
    margin: float = Field(description="The loss that is still accepted: .01 is a point, or for wikitext 1 %.")
    largest_loss: float = Field(
        description="The largest that the 95 % interval allows; for a share, with what so few items may not show."
    )
    holds: bool = Field(description="Whether that is below the margin.")
    items_needed: int | None = Field(
        description="Where it doesn't hold, and no loss is shown either: about how many items would show it with a "
        "chance of 80 %, if nothing was lost and changes vary as they do here."
    )
