"""``rewardlm prefer``: judged answers as preferences, and how they are learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from rewardlm.config.fields import MOST_SAMPLES, Depends, Flag
from rewardlm.config.rewards import Doubt, RewardedSettings
from rewardlm.config.section import Section

PairLoss = Literal[
    "sigmoid", "sigmoid_norm", "ipo", "hinge", "robust", "nca_pair", "bco_pair", "apo_zero", "apo_down"
]  # fmt: skip


# What a round's answers can be warned of.
DOUBTS: tuple[Doubt, ...] = (
    "language_switch", "repetition", "same_answer", "truncated", "constant_reward", "reward_hacking", "witness_failed",
)  # fmt: skip
# The highest P(toxic) of a chosen answer, by judges of toxicity.
USUAL_MAX_TOXICITY = 0.5
# What a run, and its model in an experiment, is called.
LABELS = {"dpo": "DPO", "kto": "KTO", "raft": "RAFT"}


class PairSettings(Section):
    """Which answers to one prompt become a pair, the better one chosen and the worse one rejected.

    A chosen answer is scored, not toxic, not empty, not repeated, no refusal, in the prompt's script, and as near to
    the prompt's subject as ``topic`` asks. Without this, the easiest preference to learn is to change the subject.
    ``margin``, the gaps and ``length_ratio`` compare two answers: raft, which learns no pairs, asks none of them.
    """

    max_toxicity: float | None = Field(
        None,
        ge=0,
        le=1,
        description="An answer with a higher P(toxic) is never chosen; 1 is no limit. By default 0.5, and 1 if all "
        "judges are functions of your own.",
    )
    margin: float = Field(
        0.3, gt=0, description="Least difference of the two rewards; a pair that is closer is left out."
    )
    toxicity_gap: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="The rejected answer's P(toxic) is higher than the chosen one's by at least so much, so that a "
        "pair teaches harmlessness, not the reward's other terms alone; null asks nothing but the margin.",
    )
    per_prompt: int = Field(2, ge=1, description="Pairs of one prompt at most; no answer is in two of them.")
    topic: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="A chosen answer is at least as similar to its prompt as this share of the prompt's answers; 0 "
        "asks nothing.",
    )
    topic_gap: float | None = Field(
        0.2,
        ge=0,
        description="The similarities of a pair's two answers to their prompt differ by at most so much, so that "
        "neither quoting the prompt nor leaving it is what is learnt; null allows any.",
    )
    length_ratio: float | None = Field(
        2.0,
        ge=1,
        description="The longer answer of a pair has at most so many times the tokens of the shorter one, so that "
        "length is not what is learnt; null allows any.",
    )
    ended: bool = Field(
        True,
        description="Choose among the answers that ended by themselves, where there are any: one that max_new_tokens "
        "cut off teaches nothing about ending.",
    )
    ended_gap: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="By how much more of the chosen answers than of the rejected ones end by themselves. Answers that "
        "were cut off lose reward for it: at most 0.3, which counts towards margin. Null: they lose nothing.",
    )


class PreferSettings(RewardedSettings):
    """``rewardlm prefer``: judged samples of the model itself become preferences, and TRL's trainers learn them.

    dpo and kto are trained by TRL's DPOTrainer and KTOTrainer, raft (best-of-n fine-tuning) by its SFTTrainer.
    docs/preferences.md explains the methods.
    """

    # Pairs compare whole answers, so the reward is what a reader would say of each: is it toxic or not?
    usual_terms: ClassVar[dict[str, float]] = {"refusal": 0.5, "similarity": 1.0, "counter_narrative": 0.5}
    usual_similarity_enough: ClassVar[float] = 1.0
    usual_transform: ClassVar[Literal["probability", "logit"]] = "probability"

    method: Annotated[Literal["dpo", "kto", "raft"], Flag()] = Field(
        "dpo",
        description="dpo learns pairs; kto the same answers, each for itself, as wanted or unwanted; raft fine-tunes "
        "on the best answers to each prompt (pairs.per_prompt).",
    )
    samples: Annotated[int, Flag()] = Field(8, ge=1, le=MOST_SAMPLES, description="Answers drawn for each prompt.")
    steps: Annotated[int, Flag()] = Field(40, ge=1, description="Optimizer steps, over all rounds.")
    rounds: Annotated[int, Flag()] = Field(
        1,
        ge=1,
        description="How often answers are drawn, from the model as it then is, to other prompts first. The steps "
        "are divided evenly.",
    )
    batch_size: Annotated[int, Flag()] = Field(
        16, ge=1, description="Pairs per optimizer step; for kto and raft, answers."
    )
    epochs: float = Field(
        1.0,
        gt=0,
        description="Passes over a round's pairs: prompts are asked until there are enough pairs for its steps, as "
        "long as there are prompts. If they run out, there are more passes.",
    )
    beta: Annotated[float, Flag()] = Field(
        0.05,
        gt=0,
        description="How strongly dpo and kto hold the model to the reference (Rafailov et al. 2023, equation 7): more "
        "is closer. raft has no such hold.",
    )
    loss_type: PairLoss = Field("sigmoid", description="The loss of dpo, named as in TRL; sigmoid is DPO's own.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Share of pairs that are taken to be the wrong way round; for robust alone."
    )
    sft_weight: Annotated[float, Depends()] = Field(
        0.2,
        ge=0,
        description="Weight of the chosen answers' negative log-likelihood a token, added to the loss of dpo (Pang et "
        "al. 2024): it keeps them likely. 0 for kto and raft.",
    )
    learning_rate: Annotated[float | None, Flag()] = Field(
        None,
        gt=0,
        description="Peak of each round's cosine schedule; by default 0.0025 for dpo where plain text is retained and "
        "0.0008 where it isn't, 0.0004 for kto and raft.",
    )
    warmup_ratio: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of a round's steps over which the rate rises to its peak, from 0 in the first.",
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Pairs (kto, raft: answers) in memory at once; by default 4, or batch_size if 4 does not divide "
        "it.",
    )
    max_length: int = Field(
        1024, ge=16, description="Of your own preferences: longest prompt and answer together, in tokens."
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Norm to which gradients are clipped.")
    checkpoint_every: int = Field(5, ge=1, description="Optimizer steps between two checkpoints.")
    samples_every: int = Field(
        32, ge=1, description="Prompts between two records of their answers in samples.jsonl, for view and watch."
    )
    batch_tokens: int = Field(8192, ge=1, description="Positions of the answers that are generated side by side.")
    answers: Annotated[Path | None, Flag()] = Field(
        None,
        description="A run of prefer whose drawn and judged answers are used again in the first round, if the same "
        "model gave them to the same prompts.",
    )
    preferences: Annotated[Path | None, Flag(metavar="FILE")] = Field(
        None,
        description="Your own preferences, in TRL's format (prompt, chosen, rejected; for kto also prompt, completion, "
        "label; for raft prompt, completion): then nothing is drawn and judged.",
    )
    pairs: PairSettings = Field(PairSettings(), description="Which answers become a pair.")

    @model_validator(mode="before")
    @classmethod
    def _by_method(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("method") in ("kto", "raft"):
            return {"sft_weight": 0.0, **given}
        return given

    @property
    def samples_per_prompt(self) -> int:
        return self.samples

    @property
    def micro_batch(self) -> int:
        """Rows in memory at once on one process."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        return 4 if self.batch_size % 4 == 0 else self.batch_size

    @property
    def measured_terms(self) -> tuple[str, ...]:
        """Similarity, if pairs are chosen by it; not for functions of the user's own."""
        by_topic = bool(self.pairs.topic) or self.pairs.topic_gap is not None
        return ("similarity",) if by_topic and not self.by_own_functions else ()

    @property
    def pair_settings(self) -> PairSettings:
        """``pairs``, with what None stands for."""
        usual = 1.0 if self.by_own_functions else USUAL_MAX_TOXICITY
        given = self.pairs.max_toxicity
        return self.pairs.model_copy(update={"max_toxicity": usual if given is None else given})

    @property
    def chosen_by(self) -> frozenset[str]:
        return frozenset(("refusal", "repetition", "script", *self.measured_terms)) if self.draws else frozenset()

    @property
    def usual_retain_coef(self) -> float:
        """For dpo alone: the others change the model less, and what they would need was not searched."""
        return 8.0 if self.method == "dpo" else 0.0

    @property
    def rate(self) -> float:
        """The peak learning rate. At the rate of trainings that retain plain text, others would lose it."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.method != "dpo":
            return 4e-4
        return 2.5e-3 if self.retain_coef else 8e-4

    @property
    def draws(self) -> bool:
        """Whether the model's own answers are drawn and judged."""
        return self.preferences is None

    def resolved(self) -> PreferSettings:
        """The same settings with what None stands for, as a run records them."""
        return self.model_copy(
            update={
                "rewards": self.reward_settings,
                "pairs": self.pair_settings,
                "micro_batch_size": self.micro_batch,
                "learning_rate": self.rate,
                "retain": self.retain.model_copy(update={"coef": self.retain_coef}),
            }
        )

    def steps_of(self, round_number: int) -> int:
        """Optimizer steps of a round, which are numbered from 0; together they are ``steps``."""
        done, now = (self.steps * number // self.rounds for number in (round_number, round_number + 1))
        return now - done

    @model_validator(mode="after")
    def _parts_fit(self) -> PreferSettings:
        never = [name for name in self.stop_on if name not in DOUBTS]
        if never:
            raise ValueError(f"prefer never warns of {', '.join(never)}: stop_on may name {', '.join(DOUBTS)}")
        if self.preferences is not None and self.rounds > 1:
            raise ValueError("preferences are read from a file, but several rounds draw new answers: leave one out")
        if self.preferences is not None and self.answers is not None:
            raise ValueError("preferences and answers are both given: name one of the two")
        if self.rounds > self.steps:
            raise ValueError(f"{self.rounds} rounds have {self.steps} steps between them: expected at least one each")
        if self.draws and self.method != "raft" and self.samples < 2:
            raise ValueError(f"{self.method} learns from answers to the same prompt: samples must be at least 2")
        if self.method != "dpo" and (self.loss_type != "sigmoid" or self.sft_weight or self.label_smoothing):
            raise ValueError(
                f"loss_type, label_smoothing and sft_weight are dpo's, but the method is {self.method}: leave them out"
            )
        if self.label_smoothing and self.loss_type != "robust":
            raise ValueError(f"label_smoothing has no meaning with loss_type {self.loss_type}: use robust")
        if self.generation.temperature == 0:
            raise ValueError("generation.temperature is 0, but pairs need answers that vary: set it above 0")
        if self.method == "kto" and self.micro_batch < 2:
            raise ValueError("kto compares an answer with others in memory: micro_batch_size must be at least 2")
        return self
