"""What each method learns from a scored run: steer folders to choose among, the likeliest first."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rewardlm.config import FinetuneSettings, SteerFitSettings, validate
from rewardlm.data.dialogues import normalised
from rewardlm.errors import RunError
from rewardlm.models.load import Policy
from rewardlm.models.lora import adapter_hash
from rewardlm.progress import ProgressCallback
from rewardlm.readouts import by_direction, by_probe, folds_of, held_out, held_out_by_layer, without_common
from rewardlm.runs import Run, known_rewards, reward_lineage, write_atomically
from rewardlm.scoring.lineage import lineage_of, text_hash
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.scorer import Scorer
from rewardlm.stats import BoolArray, FloatArray
from rewardlm.steering.adapters import ANTI_EXPERT, EXPERT, TOXIC
from rewardlm.steering.directions import linear_gate, toxic_subspace, toxic_vector
from rewardlm.steering.folder import SteerFolder, fitted_on
from rewardlm.steering.load import load_steering
from rewardlm.steering.pplm import bag_of
from rewardlm.steering.record import SteerJudge, SteerRecord
from rewardlm.steering.scored import (
    ScoredAnswer,
    ScoredRun,
    balanced,
    judge_of,
    labels_of,
    mean_states,
    pairs_of,
)

# What measure takes if no strength was given or chosen: the system prompt there, so many draws, the papers' own α and
# λ, and what was learnt as it is. Then those that are tried on a run's kept prompts, if any.
STRENGTHS: Mapping[str, tuple[float, tuple[float, ...]]] = {
    "system": (1.0, (1.0,)),
    "best-of-n": (4.0, ()),
    "rejection": (8.0, ()),
    "activation": (1.0, (1.0, 2.0, 4.0, 8.0)),
    "dexperts": (2.0, (0.5, 1.0, 2.0)),
    "selfdebias": (50.0, (10.0, 50.0, 100.0)),
    "task-vector": (1.0, (0.25, 0.5, 1.0)),
    "profs": (1.0, (0.5, 1.0)),
    "pplm": (1.0, (1.0, 4.0)),
}


class Finetune(Protocol):
    """``training.sft.finetune``."""

    def __call__(self, settings: FinetuneSettings, out: Path) -> Run: ...


@dataclass(frozen=True)
class Lesson:
    """What a method is to be learnt from: ``scored`` is None where no run was named."""

    settings: SteerFitSettings
    policy: Policy
    scored: ScoredRun | None
    out: Path
    finetune: Finetune
    report: ProgressCallback | None = None

    def states(self, answers: Sequence[ScoredAnswer], *, output: bool = False) -> FloatArray:
        """``scored.mean_states`` of the policy."""
        return mean_states(self.policy, answers, self.settings.batch_tokens, output=output, report=self.report)

    @property
    def run(self) -> ScoredRun:
        """The run, for methods that can't do without one (the settings see to that)."""
        assert self.scored is not None
        return self.scored

    def record(self, **more: Any) -> SteerRecord:
        """The folder's record."""
        settings = self.settings
        strength = STRENGTHS[settings.method][0] if settings.strength is None else settings.strength
        known = {"method": settings.method, "strength": strength, "settings": settings.of_method()}
        return SteerRecord(**{**known, "model": fitted_on(self.policy, settings.adapter), **more})

    def learnt(self) -> dict[str, Any]:
        """What a record says of the run and its judge; prompts by the hashes of their texts, which hide them."""
        entry, run = self.run.judge, self.run.run
        prompts = run.prompts()
        return {
            "judges": [
                SteerJudge(
                    name=entry["name"],
                    labels=list(entry["labels"]),
                    revision=entry.get("revision"),
                    lineage=entry.get("lineage"),
                )
            ],
            "run": {
                "label": run.label,
                "path": str(run.path.absolute()),
                "source": run.meta.get("prompts", {}).get("source"),
                "part": run.meta.get("prompts", {}).get("part"),
                "prompts": len(prompts),
                "prompt_hashes": sorted({text_hash(normalised(prompt.text)) for prompt in prompts}),
            },
        }

    def found(self, answers: Sequence[ScoredAnswer], **more: Any) -> dict[str, Any]:
        """What a record says of the answers that were learnt from."""
        n_toxic = sum(answer.toxic for answer in answers)
        return {"answers": len(answers), "toxic": n_toxic, "toxic_above": self.run.toxic_above, **more}


def described_judge(judge: Scorer) -> SteerJudge:
    """What a folder records of a judge."""
    return SteerJudge(
        name=judge.name,
        labels=list(judge.labels),
        revision=getattr(judge, "revision", None),
        lineage=lineage_of(judge.name).to_dict(),
    )


def _nothing(lesson: Lesson) -> list[SteerFolder]:
    """A text, which is in the settings. If its strength is chosen by a run, that is all that the run does."""
    return [SteerFolder(lesson.record(**({} if lesson.scored is None else lesson.learnt())))]


def _a_judge(lesson: Lesson) -> list[SteerFolder]:
    settings = lesson.settings
    # Of a run, only its first judge's name is taken. So it may be any model's.
    ran = None if settings.run is None else Run.open(settings.run, kind="measure")
    name = settings.judge or ("starter" if ran is None else judge_of(ran, None)["name"])
    judge = load_scorer(name, device=str(lesson.policy.device), services=settings.services)
    return [SteerFolder(lesson.record(judges=[described_judge(judge)]))]


def _adapters(lesson: Lesson) -> list[SteerFolder]:
    section = lesson.settings.dexperts
    given = {EXPERT: section.expert, ANTI_EXPERT: section.anti_expert}
    if lesson.settings.method == "task-vector":
        given = {TOXIC: lesson.settings.task_vector.toxic_adapter}
    missing = [name for name, path in given.items() if path is None]
    paths = {name: str(path.absolute()) for name, path in given.items() if path is not None}
    more: dict[str, Any] = {}
    if missing:
        toxic, harmless = _texts(lesson)
        more = {"found": lesson.found([*toxic, *harmless])}
        for name in missing:
            own = _teach(lesson, name, harmless if name == EXPERT else toxic)
            # Relative to the folder, so that the folder can be moved.
            paths[name] = f"{own.name}/adapter"
    if lesson.scored is not None:
        more |= lesson.learnt()
    more["judges"] = [*more.get("judges", []), *_rewards_of([path for path in given.values() if path is not None])]
    adapters = {name: {"path": path, "hash": adapter_hash(lesson.out / path)} for name, path in paths.items()}
    folder = SteerFolder(lesson.record(adapters=adapters, **more), folder=lesson.out)
    with load_steering(folder).on(lesson.policy):
        pass  # Adapters that don't fit are refused now, and not by the first measurement.
    return [folder]


def _rewards_of(adapters: Sequence[Path]) -> list[SteerJudge]:
    """The judges that adapters were trained on: a gain by these proves nothing of whom they steer."""
    found: dict[str, SteerJudge] = {}
    for adapter in adapters:
        lineages = reward_lineage(adapter)
        for name in known_rewards(adapter) or ():
            found[name] = SteerJudge(name=name, labels=[], lineage=lineages.get(name))
    return list(found.values())


def _texts(lesson: Lesson) -> tuple[list[ScoredAnswer], list[ScoredAnswer]]:
    """Toxic answers, the worst first, and as many harmless ones, the best first. Raises RunError without any."""
    _classes(lesson, lesson.run.answers)
    ranked = sorted(lesson.run.answers, key=lambda answer: -answer.toxicity)
    toxic = [answer for answer in ranked if answer.toxic][: lesson.settings.teach.answers]
    harmless = [answer for answer in reversed(ranked) if not answer.toxic][: len(toxic)]
    return toxic, harmless


def _teach(lesson: Lesson, name: str, answers: Sequence[ScoredAnswer]) -> Path:
    """Train the adapter ``name`` to give these answers to their prompts. Returns its folder, in the steer folder.

    That is called after the texts and settings, too: what an interrupted fit began for the same ones goes on, and an
    adapter that the folder's record names stays until another record is there."""
    settings, teach = lesson.settings, lesson.settings.teach
    texts = lesson.out / f"{name}.jsonl"
    lesson.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for answer in answers:
        turns = [{"role": turn.role, "content": turn.text} for turn in lesson.run.turns[answer.owner]]
        spoken = {"role": "assistant", "content": lesson.policy.chat.decode(list(answer.response))}
        lines.append(json.dumps({"messages": [*turns, spoken]}, ensure_ascii=False) + "\n")
    data = "".join(lines).encode()
    like_the_model = {key: value for key, value in settings.model_dump(mode="json").items() if key in _OF_THE_MODEL}
    training = validate(
        FinetuneSettings,
        {
            **like_the_model,
            "dialogues": str(texts),
            "validation": 0.0,
            "epochs": teach.epochs,
            "learning_rate": teach.learning_rate,
            "batch_size": teach.batch_size,
            "lora": {"r": teach.r, "alpha": 2 * teach.r},
        },
    )
    purpose = hashlib.sha256(data + training.model_dump_json().encode()).hexdigest()
    own = lesson.out / f"{name}-{purpose[:12]}"
    write_atomically(texts, data)
    lesson.finetune(training, own)
    return own


def remove_other_adapters(record: SteerRecord, folder: Path) -> None:
    """Remove adapters that an earlier fit trained in the steer folder, and that its record doesn't name."""
    named = {Path(one["path"]).parts[0] for one in record.adapters.values()}
    for name in (EXPERT, ANTI_EXPERT, TOXIC):
        for own in folder.glob(f"{name}-*"):
            if own.name not in named:
                shutil.rmtree(own)


_OF_THE_MODEL = ("model", "seed", "dtype", "load", "quantisation", "device", "chat")


def _profs(lesson: Lesson) -> list[SteerFolder]:
    settings, section, policy = lesson.settings, lesson.settings.profs, lesson.policy
    pairs = pairs_of(lesson.run.answers, section.pairs, settings.seed)
    if len(pairs) < section.rank:
        raise RunError(
            f"{lesson.run.run.path} has {len(pairs)} toxic answers by {lesson.run.judge['name']} with a harmless one "
            f"beside them, and a subspace of rank {section.rank} needs as many: measure more prompts, or lower "
            "profs.rank"
        )
    states = lesson.states([answer for pair in pairs for answer in pair])
    n_layers = len(states) - 1
    first = n_layers // 2 if section.first_layer is None else section.first_layer
    # No later layer reads what the last MLP writes. In SmolLM2, a few dimensions are far larger there than all others:
    # the subspace would be these, and the head can't do without them (docs/steering.md).
    last = max(first, n_layers - 2) if section.last_layer is None else section.last_layer
    if not first <= last < n_layers:
        raise RunError(
            f"profs.first_layer {first} and profs.last_layer {last}: {policy.spec} has layers 0 to {n_layers - 1}"
        )
    # What layer l's MLP has written is first seen in the stream that the next layer reads.
    tensors = {
        f"basis.{layer}": _tensor(toxic_subspace(states[layer + 1, 0::2], states[layer + 1, 1::2], section.rank))
        for layer in range(first, last + 1)
    }
    found = {"edited": [first, last], "pairs": len(pairs), "toxic_above": lesson.run.toxic_above}
    return [SteerFolder(lesson.record(**lesson.learnt(), found=found), tensors)]


def _pplm(lesson: Lesson) -> list[SteerFolder]:
    """A bag of words, or a classifier head on what the model's own head reads, averaged over an answer."""
    section, learnt = lesson.settings.pplm, {} if lesson.scored is None else lesson.learnt()
    if section.words is not None:
        bag = bag_of(section.words, lesson.policy)
        return [SteerFolder(lesson.record(**learnt), {"bag": torch.tensor(bag)})]
    answers = balanced(lesson.run.answers, section.answers, lesson.settings.seed)
    toxic, owners = _classes(lesson, answers)
    states = lesson.states(answers, output=True)[-1]
    weight, bias = linear_gate(states, toxic)
    fold = _folds(toxic, owners, 4, lesson.settings.seed)
    auc = None if fold is None else held_out(states, toxic, fold, by_probe).auc
    tensors = {"head.weight": _tensor(weight), "head.bias": _tensor(np.array([bias]))}
    return [SteerFolder(lesson.record(**learnt, found=lesson.found(answers, auc=auc)), tensors)]


def _activation(lesson: Lesson) -> list[SteerFolder]:
    settings, section = lesson.settings, lesson.settings.activation
    answers = balanced(lesson.run.answers, section.answers, settings.seed)
    toxic, owners = _classes(lesson, answers)
    states = lesson.states(answers)
    fold = _folds(toxic, owners, section.folds, settings.seed)
    each = None if fold is None else held_out_by_layer(states, toxic, fold, by_direction)
    aucs = [None] * len(states) if each is None else [layer.auc for layer in each]
    folders = []
    for layers in _layers(settings, aucs):
        found = lesson.found(answers, auc=aucs, layers=list(layers))
        tensors = _vectors(settings, states, toxic, owners, layers)
        folders.append(SteerFolder(lesson.record(**lesson.learnt(), found=found), tensors))
    return folders


def _classes(lesson: Lesson, answers: Sequence[ScoredAnswer]) -> tuple[BoolArray, list[str]]:
    """Which answers are toxic, and whose prompts they answer. Raises RunError for fewer than two of each kind."""
    toxic, owners = labels_of(answers), [answer.owner for answer in answers]
    if min(int(toxic.sum()), int((~toxic).sum())) < 2:
        raise RunError(
            f"{lesson.run.run.path} has {int(toxic.sum())} toxic and {int((~toxic).sum())} other answers by "
            f"{lesson.run.judge['name']} to learn from, and {lesson.settings.method} needs two of each at least, and "
            "dozens to be worth it: measure more prompts, or more answers to each"
        )
    return toxic, owners


def _folds(toxic: BoolArray, owners: Sequence[str], most: int, seed: int) -> Any:
    """Folds for a cross-validation, as many as there are toxic prompts; None for fewer than two."""
    groups = {owner for owner, is_toxic in zip(owners, toxic, strict=True) if is_toxic}
    n = min(most, int(toxic.sum()), int((~toxic).sum()), len(groups))
    return folds_of(toxic, owners, n, seed) if n > 1 else None


def _layers(settings: SteerFitSettings, aucs: Sequence[float | None]) -> list[tuple[int, ...]]:
    """The layers to try, best first: those given, together; else single ones, by how well they tell held-out answers
    apart. The embedding is none of them: nothing but the last token is known there."""
    section, n_layers = settings.activation, len(aucs) - 1
    if section.layers is not None:
        wrong = [layer for layer in section.layers if not 0 <= layer <= n_layers]
        if wrong or not section.layers:
            raise RunError(
                f"activation.layers {section.layers}: expected layers 0 to {n_layers - 1}, or {n_layers}, which the "
                "final norm reads"
            )
        return [tuple(section.layers)]
    inner = range(1, n_layers) if n_layers > 1 else range(n_layers)
    # Without a cross-validation, the middle first.
    ranked = sorted(inner, key=lambda layer: (-(aucs[layer] or 0.0), abs(layer - n_layers / 2)))
    return [(layer,) for layer in ranked[: settings.choose.layers]]


def _vectors(
    settings: SteerFitSettings, states: FloatArray, toxic: BoolArray, owners: Sequence[str], layers: Sequence[int]
) -> dict[str, Tensor]:
    """See ``activation.of_activation``. To ablate, the part along what all text shares is left in the stream."""
    section = settings.activation
    if section.how == "ablate":
        x = states[layers[0]]
        found = toxic_vector(x, toxic, owners, section.direction)
        return {"direction": _tensor(without_common(found, x[~toxic]))}
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        tensors[f"vector.{layer}"] = -_tensor(toxic_vector(states[layer], toxic, owners, section.direction))
        if section.how == "gated":
            weight, bias = linear_gate(states[layer], toxic)
            tensors |= {f"probe.{layer}.weight": _tensor(weight), f"probe.{layer}.bias": _tensor(np.array([bias]))}
    return tensors


def _tensor(array: FloatArray) -> Tensor:
    return torch.tensor(array, dtype=torch.float32)


LEARN: Mapping[str, Callable[[Lesson], list[SteerFolder]]] = {
    "system": _nothing,
    "selfdebias": _nothing,
    "best-of-n": _a_judge,
    "rejection": _a_judge,
    "dexperts": _adapters,
    "task-vector": _adapters,
    "profs": _profs,
    "activation": _activation,
    "pplm": _pplm,
}
