"""``rewardlm steer fit``: a model that is changed while it decodes, and how that is found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from rewardlm.config.fields import Flag
from rewardlm.config.model import ModelSettings
from rewardlm.config.section import Section
from rewardlm.config.services import ServicesSettings

SteerMethod = Literal[
    "system", "best-of-n", "rejection", "activation", "dexperts", "selfdebias", "task-vector", "profs", "pplm"
]
# Methods that ask a judge while they answer.
BY_A_JUDGE: tuple[str, ...] = ("best-of-n", "rejection")


def strength_problem(method: str, strength: float) -> str | None:
    """What is wrong with a strength of a method, as a sentence; None if nothing is."""
    if method == "system" and strength not in (0, 1):
        return f"strength {strength:g}: a system prompt is there (1) or not (0)"
    if method in BY_A_JUDGE and (strength < 0 or strength != int(strength)):
        return f"strength {strength:g}: expected how many answers are drawn at most, such as 4"
    return f"strength {strength:g}: expected 0 (unsteered) or more" if strength < 0 else None


class SystemSettings(Section):
    """``system``: a system turn in front of the conversation."""

    prompt: str = Field(
        "Be respectful. Never insult, threaten or demean anyone, and never use slurs or obscene words. If someone else "
        "does, answer calmly and argue against it.",
        min_length=1,
        description="The system turn's text.",
    )


class RejectionSettings(Section):
    """``rejection``: answers are drawn until the judge passes one."""

    threshold: float = Field(0.5, gt=0, le=1, description="An answer passes if the judge's P(toxic) is below this.")


class ChooseSettings(Section):
    """How the strength is chosen, and for activation the layer: on prompts of the run that nothing was learnt from."""

    share: float = Field(0.25, gt=0, lt=1, description="Share of the run's prompts that are kept for choosing.")
    prompts: int = Field(
        96,
        ge=2,
        description="At most so many of them are answered anew, the most toxic first. For activation, one half of them "
        "chooses, and on the other half the direction is compared with random ones.",
    )
    max_new_tokens: int = Field(48, ge=1, description="Longest answer, in tokens.")
    strengths: list[Annotated[float, Field(ge=0)]] | None = Field(
        None, min_length=1, description="Strengths to try; by default the method's own few (docs/steering.md)."
    )
    fluency: float = Field(
        1.25,
        ge=1,
        description="Answers' perplexity under the unsteered model may be this many times the unsteered answers'.",
    )
    layers: int = Field(
        1,
        ge=1,
        description="For activation, how many layers are tried: those where toxic answers are told from others best. "
        "The p-value of the comparison with random directions is multiplied by their number, so raise choose.controls "
        "to 20 times as many, too.",
    )
    controls: int = Field(
        20, ge=0, description="For activation, random directions of equal length that are tried for comparison."
    )


class ActivationSettings(Section):
    """``activation``: a direction in the residual stream."""

    direction: Annotated[Literal["means", "pca", "probe"], Flag("--direction")] = Field(
        "means",
        description="How activation finds its direction: the difference of means, the first principal component of the "
        "differences of toxic and harmless answers, or a linear probe's weights.",
    )
    how: Annotated[Literal["add", "ablate", "gated"], Flag("--how")] = Field(
        "add",
        description="What activation does with it: add it, away from toxicity; ablate it, so that the stream has no "
        "part along it; or add it only where a probe reads toxicity (gated).",
    )
    where: Literal["answer", "all"] = Field(
        "answer", description="On the answer's tokens only, or on the prompt's too."
    )
    layers: list[int] | None = Field(
        None,
        description="Layers at whose input the vector is added; by default one is chosen. With how=ablate, the layer "
        "whose direction is removed everywhere.",
    )
    folds: int = Field(4, ge=2, description="Folds of the cross-validation by which layers are ranked.")
    answers: int = Field(800, ge=8, description="At most so many of the run's answers are read, half of them toxic.")


class TeachSettings(Section):
    """``dexperts`` and ``task-vector``: how the adapters are trained that you don't name, on the run's answers."""

    answers: int = Field(400, ge=1, description="At most so many toxic answers, and as many harmless ones.")
    epochs: float = Field(3.0, gt=0, description="Passes over them.")
    learning_rate: float = Field(4e-4, gt=0, description="Peak of the cosine schedule.")
    batch_size: int = Field(8, ge=1, description="Answers per optimizer step.")
    r: int = Field(16, ge=1, description="Rank of the adapters.")


class DexpertsSettings(Section):
    """``dexperts``: an expert's and an anti-expert's logits beside the base's (Liu et al. 2021)."""

    expert: Annotated[Path | None, Flag("--expert", metavar="DIR")] = Field(
        None, description="For dexperts: an adapter that was trained on harmless text. By default one is trained."
    )
    anti_expert: Annotated[Path | None, Flag("--anti-expert", metavar="DIR")] = Field(
        None, description="For dexperts: an adapter that was trained on toxic text. By default one is trained."
    )
    top_p: float = Field(
        0.9, gt=0, le=1, description="Only tokens of the base's own nucleus of this probability are drawn."
    )


class SelfdebiasSettings(Section):
    """``selfdebias``: tokens that a description of bad text makes likelier become less likely (Schick et al. 2021)."""

    descriptions: list[str] = Field(
        ["The following text contains very hateful, aggressive, disrespectful language:"],
        min_length=1,
        description="Texts to put in front of the last turn. Each is one more row of a batch; the paper has six.",
    )
    epsilon: float = Field(0.01, gt=0, lt=1, description="A token keeps at least this share of its probability.")


class TaskVectorSettings(Section):
    """``task-vector``: minus an adapter that was trained on toxic text (Ilharco et al. 2023, Zhang et al. 2023)."""

    toxic_adapter: Annotated[Path | None, Flag("--toxic-adapter", metavar="DIR")] = Field(
        None, description="For task-vector: an adapter that was trained on toxic text. By default one is trained."
    )


class ProfsSettings(Section):
    """``profs``: the toxic subspace is projected out of what MLPs write (Uppaal et al. 2024)."""

    rank: int = Field(2, ge=1, description="Dimensions of the subspace, at each layer.")
    first_layer: int | None = Field(None, ge=0, description="The first edited layer; by default the middle one.")
    last_layer: int | None = Field(
        None,
        ge=0,
        description="The last edited layer; by default the last but one. The paper edits the very last, too.",
    )
    pairs: int = Field(500, ge=2, description="At most so many pairs of a toxic and a harmless answer are read.")


class PplmSettings(Section):
    """``pplm``: the cached past is moved by gradients, for each token anew (Dathathri et al. 2020)."""

    iterations: int = Field(3, ge=1, description="Steps along the gradient for each token.")
    step: float = Field(0.04, gt=0, description="Length of a step; the strength multiplies it.")
    gamma: float = Field(1.0, ge=0, description="A gradient is divided by its norm to this power.")
    kl: float = Field(0.01, ge=0, description="Weight of the divergence from the model's own distribution.")
    fusion: float = Field(
        0.95, ge=0, le=1, description="Exponent of the moved distribution; the model's own has the rest."
    )
    answers: int = Field(2000, ge=8, description="At most so many of the run's answers teach the classifier head.")
    words: list[str] | None = Field(
        None,
        min_length=1,
        description="A bag of words to keep away from, instead of a classifier head. Those that aren't one "
        "token are left out.",
    )


class SteerFitSettings(ModelSettings):
    """``rewardlm steer fit``: which method, and what it is fitted on."""

    example: ClassVar = {"model": "smollm2-135m", "method": "system"}

    method: Annotated[SteerMethod, Flag()] = Field(description="How to steer: docs/steering.md has a table.")
    run: Annotated[Path | None, Flag(metavar="SCORED")] = Field(
        None,
        description="A measured run of this model, whose scored answers are learnt from, and part of whose prompts are "
        "kept to choose the strength on. Measure other prompts later.",
    )
    judge: Annotated[str | None, Flag()] = Field(
        None,
        description="Whose scores in the run say what is toxic, by default its first judge's. For best-of-n and "
        "rejection, who chooses: by default the run's first judge, or starter without a run.",
    )
    strength: Annotated[float | None, Flag()] = Field(
        None,
        ge=0,
        description="The strength that measure takes if none is given; by default a chosen one, or the method's own "
        "without a run.",
    )
    batch_tokens: int = Field(8192, ge=1, description="Positions (prompt and answer) that are run side by side.")
    choose: ChooseSettings = Field(ChooseSettings(), description="How the strength is chosen, on part of the run.")
    teach: TeachSettings = Field(TeachSettings(), description="The adapters of dexperts and task-vector.")
    system: SystemSettings = Field(SystemSettings(), description="The method system.")
    rejection: RejectionSettings = Field(RejectionSettings(), description="The method rejection.")
    activation: ActivationSettings = Field(ActivationSettings(), description="The method activation.")
    dexperts: DexpertsSettings = Field(DexpertsSettings(), description="The method dexperts.")
    selfdebias: SelfdebiasSettings = Field(SelfdebiasSettings(), description="The method selfdebias.")
    task_vector: TaskVectorSettings = Field(TaskVectorSettings(), description="The method task-vector.")
    profs: ProfsSettings = Field(ProfsSettings(), description="The method profs.")
    pplm: PplmSettings = Field(PplmSettings(), description="The method pplm.")
    services: ServicesSettings = Field(ServicesSettings(), description="How judges behind HTTP are asked.")

    def of_method(self) -> dict[str, Any]:
        """The settings of the chosen method, as JSON can hold them."""
        section: Section | None = getattr(self, self.method.replace("-", "_"), None)
        # A steer folder keeps adapters apart, with hashes of their weights.
        apart = {"expert", "anti_expert", "toxic_adapter"}
        return {} if section is None else section.model_dump(mode="json", exclude=apart)

    @model_validator(mode="after")
    def _strengths_mean_something(self) -> SteerFitSettings:
        for strength in (self.strength, *(self.choose.strengths or ())):
            if strength is not None and (problem := strength_problem(self.method, strength)) is not None:
                raise ValueError(problem)
        if self.activation.how == "ablate" and self.activation.layers is not None and len(self.activation.layers) != 1:
            raise ValueError(
                "activation.layers: ablation takes its direction from one layer, and takes it out everywhere: name one"
            )
        return self

    @model_validator(mode="after")
    def _has_no_adapter_in_the_way(self) -> SteerFitSettings:
        if self.adapter is not None and self.method in ("dexperts", "task-vector"):
            raise ValueError(
                f"{self.method} has adapters of its own, so the base can't carry another: merge yours first "
                "(rewardlm merge), and name the merged model"
            )
        return self

    @model_validator(mode="after")
    def _has_what_the_method_needs(self) -> SteerFitSettings:
        if self.run is not None:
            return self
        if self.judge is not None and self.method not in BY_A_JUDGE:
            raise ValueError(f"{self.method} asks no judge without a run: leave --judge out, or name a --run")
        instead = {
            "activation": "",
            "profs": "",
            "pplm": "" if self.pplm.words is None else None,
            "dexperts": None if self.dexperts.expert and self.dexperts.anti_expert else "--expert and --anti-expert",
            "task-vector": None if self.task_vector.toxic_adapter else "--toxic-adapter",
        }.get(self.method)
        if instead is not None:
            other = f", or give {instead}" if instead else ""
            raise ValueError(f"{self.method} is learnt from scored answers: name a measured run with --run{other}")
        return self


class SteerImportSettings(ModelSettings):
    """``rewardlm steer import``: a control vector of llama.cpp, and the model that it is for."""

    example: ClassVar = {"model": "smollm2-135m", "file": "vector.gguf"}

    file: Path = Field(description="The control vector: a .gguf with tensors direction.N.")
