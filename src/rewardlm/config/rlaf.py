"""``rewardlm rlaf``: algorithm, KL, updates."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rewardlm.config.fields import Depends, Flag, is_function_name
from rewardlm.config.model import GenerationSettings
from rewardlm.config.rewards import RewardedSettings
from rewardlm.config.section import Section
from rewardlm.config.services import RolloutSettings
from rewardlm.errors import did_you_mean


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
        description="Weight of the KL to the reference. By default 0.2, or 0.05 if rewards are probabilities "
        "(rewards.transform), which are smaller than logits.",
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
        description="Steps, each with its rollout, after which the reference follows the policy, again and again "
        "(TRL's ref_model_sync_steps counts optimizer steps instead); by default it never moves.",
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
        if self.target is not None and self.reference_every is not None:
            raise ValueError(
                "kl.target adapts kl.coef to the KL to the reference, which kl.reference_every sets back again and "
                "again: leave one out"
            )
        return self


class SimilaritySettings(Section):
    """How near answers stay to their prompts: what similarity earns is adapted until it is that much.

    Harmlessness is learnt quickest by leaving the subject, and similarity that is paid too much by quoting the prompt.
    Which weight holds the two in balance depends on model, judge and algorithm. So it is a Lagrange multiplier, as in
    RL under constraints (Dai et al. 2024, "Safe RLHF", where the constraint is on harm).
    """

    target: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Mean similarity of answers and prompts to keep, such as prompt_similarity of the base by measure: "
        "after each step rewards.terms.similarity grows if answers were further away, and shrinks if they were nearer. "
        "By default it stays as it is.",
    )
    rate: float = Field(
        0.2,
        gt=0,
        description="How quickly: the weight is multiplied by e^(rate × (1 − similarity / target)), at most by "
        "e^(rate / 2) a step; it stays between a quarter and four times of what it was at first. A policy follows "
        "some steps later, so too high a rate swings.",
    )


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


class RlafSettings(RewardedSettings):
    """``rewardlm rlaf``: PPO, GRPO or RLOO against any text classifier. docs/rlaf.md explains the algorithms.

    If answers are not drawn from the policy itself (``generation``: another temperature, a truncated distribution),
    every token, or every answer if the ratio is an answer's, is weighted by π/μ, at most ``importance_cap``.
    """

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
        "dr_grpo, grpo if ratio is sequence, dapo for the others. Not where ratio is answer, as by default for rloo: "
        "there an answer counts.",
    )
    ratio: Literal["token", "answer", "sequence"] | None = Field(
        None,
        description="Whether PPO's ratio is a token's, a whole answer's (the product of its tokens'), or the geometric "
        "mean of its tokens' (sequence, as in GSPO; Zheng et al. 2025); by default answer for rloo, else token.",
    )
    steps: Annotated[int, Flag()] = Field(30, ge=1, description="Steps of a rollout and its update.")
    batch_size: Annotated[int, Flag()] = Field(32, ge=1, description="Answers per step.")
    samples: Annotated[int | None, Flag()] = Field(
        None, ge=1, description="Answers per prompt; by default 1 for ppo, else 4."
    )
    ppo_epochs: Annotated[int, Flag()] = Field(1, ge=1, description="Passes over each step's answers.")
    minibatches: Annotated[int, Flag(), Depends()] = Field(
        4,
        ge=1,
        description="Optimizer steps per pass; at most batch_size, and 1 if the ratio is an answer's (rloo).",
    )
    learning_rate: Annotated[float, Flag()] = Field(1e-3, gt=0, description="The policy's.")
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
    gamma: float = Field(1.0, gt=0, le=1, description="Discount of rewards, per token, for ppo.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="Lambda of GAE, for ppo (Schulman et al. 2016).")
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
    micro_batch_tokens: int = Field(
        1024,
        ge=1,
        description="Positions in memory at once in the update. Fewer take less memory for the same gradient.",
    )
    checkpoint_every: int = Field(1, ge=1, description="Steps between two checkpoints.")
    samples_every: int = Field(5, ge=1, description="Steps between two records of answers in samples.jsonl.")
    kl: KlSettings = Field(KlSettings(), description="The penalty for leaving the reference.")
    similarity: SimilaritySettings = Field(SimilaritySettings(), description="How near answers stay to their prompts.")
    rollout: RolloutSettings = Field(
        RolloutSettings(), description="A server that draws the answers (rollout.url); by default this process does."
    )

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
        return {"minibatches": 1, **given}

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
        usual = 0.2 if self.reward_settings.transform == "logit" else 0.05
        coef = usual if self.kl.coef is None else self.kl.coef
        return self.kl.model_copy(update={"penalty": self.kl_penalty, "coef": coef})

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
                f"dynamic_sampling replaces groups that can't be compared, and {self.algorithm} is not known to "
                "compare answers: use grpo, dr_grpo or rloo"
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
        if self.similarity.target is not None and not self.reward_settings.terms.similarity:
            raise ValueError(
                "similarity.target adapts rewards.terms.similarity, which is 0 here: begin with a weight over 0"
            )
        target, enough = self.similarity.target, self.reward_settings.terms.similarity_enough
        if target is not None and enough is not None and target >= enough:
            raise ValueError(
                f"similarity.target is {target}, but similarity above {enough:g} "
                "(rewards.terms.similarity_enough) earns nothing: raise that above the target"
            )
        if self.generation.temperature == 0:
            raise ValueError("generation.temperature is 0, but RL learns from answers that vary: set it above 0")
        return self
