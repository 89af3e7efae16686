"""``rewardlm rlaf``: algorithm, KL, reward."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rewardlm.config.fields import BY_NAME, Names, NamesOrNone, Part, is_function_name
from rewardlm.config.finetune import TrainingSettings
from rewardlm.config.measure import MAX_NEW_TOKENS
from rewardlm.config.model import GenerationSettings
from rewardlm.config.section import Section
from rewardlm.config.services import ServicesSettings

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
    """The penalty for leaving the reference: how it is taken, its coefficient, a target for the adaptive controller.

    ``penalty``: ``k1`` is part of the reward, at every token, as in PPO and RLOO. ``k3`` and ``full`` are losses of
    their own. ``k3``, as in GRPO's paper, is estimated from the sampled tokens, and multiplied by the policy's ratio,
    without which its gradient would be that of KL(reference ‖ policy) (DeepSeek-V3.2; TRL's default). ``full`` is the
    exact divergence over the vocabulary. None is k1 for ppo and rloo, k3 for the others. All three are in
    metrics.jsonl, k3 without the ratio.
    ``target`` in nats per answer; None keeps the coefficient fixed (Ziegler et al. 2019, section 2.2). Far off its
    target, it changes by a fifth in ``horizon`` answers.
    """

    penalty: Literal["k1", "k3", "full"] | None = None
    coef: float = Field(0.05, ge=0)
    target: float | None = Field(None, gt=0)
    horizon: int = Field(1_000, ge=1)
    max: float = Field(200.0, gt=0)

    @model_validator(mode="after")
    def _something_to_adapt(self) -> KlSettings:
        if self.target is not None and self.coef == 0:
            raise ValueError("kl.coef is 0, and a target (--kl-target) multiplies it: begin with a coefficient over 0")
        return self


class ProbeSettings(Section):
    """Texts whose order nobody doubts, by which a reward's direction is checked before step 1; ours are English."""

    toxic: list[str] = Field(min_length=1)
    benign: list[str] = Field(min_length=1)


class TermSettings(Section):
    """What else is worth something besides the judges' word: weights, 0 leaves a term out.

    ``length`` times min(1, words / ``length_words``); ``repetition`` times minus the share of words in repeated
    4-grams; ``script`` times -1 where the answer is not in the prompt's script; ``similarity`` times the cosine of
    prompt and answer; ``counter_narrative`` times the probability that it is one, by ``counter_narrative_judge``: a
    judge of pairs (``starter_pairs``, a folder from ``judge train-pairs``), or a classifier of answers whose label
    says so (``ID#label``). From a judge of pairs, what the answer would get under ``counter_narrative_others`` other
    prompts of the step is taken off, on average, so that its tone alone earns nothing; 0 takes nothing off.
    """

    length: float = Field(0.0, ge=0)
    length_words: int = Field(20, ge=1)
    repetition: float = Field(0.0, ge=0)
    script: float = Field(0.0, ge=0)
    similarity: float = Field(0.0, ge=0)
    counter_narrative: float = Field(0.0, ge=0)
    counter_narrative_judge: str = "starter_pairs"
    counter_narrative_others: int = Field(4, ge=0)


class OverlongSettings(Section):
    """DAPO's soft penalty for long answers (Yu et al. 2025, equation 13), in units of reward; ``penalty`` 0 is none.

    An answer of up to ``max_tokens`` − ``cache_tokens`` tokens (the paper's L_max and L_cache; the end token counts)
    pays nothing. From there on it pays in proportion, and ``penalty`` in full at ``max_tokens``.
    ``max_tokens`` None is ``max_new_tokens``; ``cache_tokens`` None is a fifth of ``max_tokens``, as in the paper.
    """

    penalty: float = Field(0.0, ge=0)
    max_tokens: int | None = Field(None, ge=1)
    cache_tokens: int | None = Field(None, ge=1)

    def limits(self, max_new_tokens: int) -> tuple[int, int]:
        """L_max and L_cache of answers of at most ``max_new_tokens`` tokens."""
        longest = self.max_tokens or max_new_tokens
        return longest, self.cache_tokens or max(1, longest // 5)


class RewardSettings(Section):
    """How P(toxic) becomes a reward: 1 - P, or its logit; how several judges become one; what an empty answer gets.

    ``aggregate``: the judges' mean by ``weights`` (1 where none is given), their minimum, or ``mean_std``: the mean
    less ``std_weight`` times their standard deviation, so that what they disagree about earns less (after Coste et
    al. 2024, who take off the variance).
    ``empty``: None gives an empty answer the lowest reward of its batch, a number that reward. ``probe`` is for judges
    of other languages than English.
    ``missing_eos_penalty``, in units of reward, is taken off the reward of an answer that ``max_new_tokens`` cut off,
    as TRL's setting of that name does; ``overlong`` charges long answers before they are cut off. An empty answer never
    gains by these: the lowest reward of the batch is found after them, and a fixed ``empty`` pays both in full.
    """

    transform: Literal["probability", "logit"] = "probability"
    aggregate: Literal["mean", "min", "mean_std"] = "mean"
    std_weight: float = Field(1.0, ge=0)
    weights: Annotated[dict[str, Annotated[float, Field(ge=0)]], BY_NAME] = {}
    terms: TermSettings = TermSettings()
    empty: float | None = None
    missing_eos_penalty: float = Field(0.0, ge=0)
    overlong: OverlongSettings = OverlongSettings()
    max_failed_share: float = Field(0.01, ge=0, le=1)
    probe: ProbeSettings | None = None


class RlafSettings(TrainingSettings):
    """``rewardlm rlaf``: PPO, GRPO or RLOO against any text classifier.

    ``algorithm``: ``ppo``, ``grpo``, ``dr_grpo`` (GRPO without division by the standard deviation), ``rloo``, or an
    advantage estimator of the user's own, ``module:function``; see training.advantages.
    ``critic``: ``trunk`` is a value head on the policy's own states, ``own`` one on a second adapter that learns for
    it; None is what the algorithm needs.
    ``loss_type`` says what a token counts (training.objectives.answer_weights); ``ratio`` whether PPO's ratio is a
    token's or a whole answer's. None is what the algorithm's paper has: RLOO answers, the others tokens, averaged as
    ``bnpo`` (ppo), ``dapo`` (grpo and one's own) or ``dr_grpo``.
    ``ppo_epochs`` and ``minibatches`` are 2, but 1 each where the ratio is a whole answer's: it leaves
    ``clip_range`` at the first update, and the answers of a second would teach hardly anything. With one update a step
    ``learning_rate`` is 1e-3 there, else 2e-4.
    ``value_clip_range``, in units of reward, holds a step's new values within that distance of the old ones. None, the
    default, doesn't: what suits rewards in [0, 1] would all but stop the critic under logits within ±9.2, and the large
    comparisons found no gain in value clipping (Engstrom et al. 2020) or a loss (Andrychowicz et al. 2021). Our critic
    has a learning rate of its own, ``value_learning_rate``, for its adapter too, and a clipped gradient norm of its
    own.
    ``mask_truncated_completions`` leaves answers that ``max_new_tokens`` cut off out of the loss, as TRL's setting of
    that name does (DAPO's "overlong filtering"). They stay in what the others are compared with: their rewards, without
    their KL, in the group's mean and deviation; in PPO their advantages in what is whitened. Averages over tokens
    (``bnpo``, ``dapo``) are over those that are left; averages over answers (``grpo``, ``dr_grpo``, RLOO's) count all.
    A minibatch without an answer that ended makes no update.
    ``generation``: where answers are not drawn from the policy itself (another temperature, a truncated distribution),
    every token, or answer where the ratio is an answer's, is weighted by π/μ, at most ``importance_cap``.
    ``witness`` names judges that are no part of the reward and read every answer; ``none`` is no judge, and None is
    ``witness``, or ``lexical`` where the reward is, holds or descends from that. ``stop_on`` names warnings that shall
    end the run as NaN and a runaway KL always do.
    ``trackers`` (trackio, wandb, tensorboard) get every number of metrics.jsonl, and no text.
    """

    prompts: str = "starter"
    part: Part = "all"
    limit: int | None = Field(None, ge=1)
    reward: Names = ["starter"]
    algorithm: str = "ppo"
    critic: Literal["trunk", "own"] | None = None
    loss_type: Literal["grpo", "bnpo", "dapo", "dr_grpo"] | None = None
    ratio: Literal["token", "answer"] | None = None
    steps: int = Field(20, ge=1)
    batch_size: int = Field(32, ge=1)
    samples: int | None = Field(None, ge=1)
    max_new_tokens: int = Field(MAX_NEW_TOKENS, ge=1)
    ppo_epochs: int = Field(2, ge=1)
    minibatches: int = Field(2, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    value_learning_rate: float = Field(1e-3, gt=0)
    clip_range: float = Field(0.2, gt=0)
    value_clip_range: float | None = Field(None, gt=0)
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    mask_truncated_completions: bool = False
    max_grad_norm: float = Field(1.0, gt=0)
    importance_cap: float = Field(2.0, ge=1)
    max_prompt_tokens: int = Field(512, ge=8)
    micro_batch_tokens: int = Field(1024, ge=1)
    checkpoint_every: int = Field(1, ge=1)
    samples_every: int = Field(5, ge=1)
    witness: NamesOrNone | None = None
    stop_on: list[Doubt] = []
    trackers: list[Literal["trackio", "wandb", "tensorboard"]] = []
    kl: KlSettings = KlSettings()
    rewards: RewardSettings = RewardSettings()
    generation: GenerationSettings = GenerationSettings()
    services: ServicesSettings = ServicesSettings()

    @model_validator(mode="before")
    @classmethod
    def _nothing_weighs_the_critics_loss(cls, given: Any) -> Any:
        if isinstance(given, dict) and "value_coef" in given:
            raise ValueError(
                f"value_coef, got {given['value_coef']!r}, is no setting any more: policy and critic train no weight "
                "together, and AdamW takes out what a loss is multiplied by; use value_learning_rate"
            )
        return given

    @model_validator(mode="before")
    @classmethod
    def _one_update_for_whole_answers(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        ratio = given.get("ratio") or ("answer" if given.get("algorithm") == "rloo" else "token")
        if ratio != "answer":
            return given
        given = {"ppo_epochs": 1, "minibatches": 1, **given}
        # A command line has texts.
        one_update = str(given["ppo_epochs"]) == str(given["minibatches"]) == "1"
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
            "kl": self.kl.model_copy(update={"penalty": self.kl_penalty}),
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
            raise ValueError(f"algorithm {self.algorithm!r}: expected one of {', '.join(known)}, or module:function")
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
