"""``rewardlm steer fit``: make a steer folder for a model.

What has to be learnt is learnt from a scored run's answers. Layer and strength of activation steering are chosen on
prompts of the run that were kept out of that (``choose``). Whoever measures later should take other prompts than the
run's; the folder remembers which those were, and the audit looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardlm.config import ModelSettings, SteerFitSettings
from rewardlm.data.dialogues import normalised
from rewardlm.errors import RunError
from rewardlm.models.generate import stream_seed
from rewardlm.models.load import Policy, load_policy
from rewardlm.models.logprobs import check_head
from rewardlm.models.lora import adapter_hash, load_adapter
from rewardlm.progress import ProgressCallback
from rewardlm.readouts import by_direction, by_probe, folds_of, held_out, toxic_direction
from rewardlm.runs import ScorerEntry, alone
from rewardlm.scoring.lineage import lineage_of, text_hash
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.scorer import Scorer
from rewardlm.stats import BoolArray, FloatArray
from rewardlm.steering.activation import of_activation
from rewardlm.steering.adapters import ANTI_EXPERT, EXPERT, TOXIC
from rewardlm.steering.choose import Trial, Tried, best_of
from rewardlm.steering.directions import linear_gate, random_vectors, toxic_subspace, toxic_vector
from rewardlm.steering.folder import SteerFolder, fitted_on
from rewardlm.steering.load import load_steering
from rewardlm.steering.record import SteerJudge, SteerRecord
from rewardlm.steering.scored import ScoredRun, balanced, labels_of, mean_states, pairs_of, read_scored

# What measure takes if no strength is given: the system prompt there, so many draws, the papers' own α and λ, and what
# was learnt as it is.
_STRENGTHS = {
    "system": 1.0, "best-of-n": 4.0, "rejection": 8.0, "activation": 1.0, "dexperts": 2.0, "selfdebias": 50.0,
    "task-vector": 1.0, "profs": 1.0, "pplm": 1.0,
}  # fmt: skip


def fit(settings: SteerFitSettings, out: Path, *, report: ProgressCallback | None = None) -> SteerFolder:
    """Fit the method and write its folder to ``out``. A folder that is there is replaced when the new one is ready.

    Raises RewardLMError where model, run, judge or adapters can't be used, or a run has too few toxic answers.
    """
    with alone(out):
        policy = load_for(settings)
        found = _FITS[settings.method](settings, policy, report)
        return replace(found, record=found.save(out))


def load_for(settings: ModelSettings) -> Policy:
    """The model with its adapter."""
    policy = load_policy(settings)
    check_head(policy.causal_lm)
    if settings.adapter is not None:
        load_adapter(policy, settings.adapter)
    return policy


def _record(settings: SteerFitSettings, policy: Policy, **more: Any) -> SteerRecord:
    strength = _STRENGTHS[settings.method] if settings.strength is None else settings.strength
    known = {"method": settings.method, "strength": strength, "settings": settings.of_method()}
    hashed = None if settings.adapter is None else adapter_hash(settings.adapter)
    return SteerRecord(**{**known, "model": fitted_on(policy, hashed), **more})


def _of_a_text(settings: SteerFitSettings, policy: Policy, report: ProgressCallback | None) -> SteerFolder:
    return SteerFolder(_record(settings, policy))


def _of_a_judge(settings: SteerFitSettings, policy: Policy, report: ProgressCallback | None) -> SteerFolder:
    name = settings.judge or "starter"
    judge = load_scorer(name, device=str(policy.device), services=settings.services)
    return SteerFolder(_record(settings, policy, judges=[described_judge(judge)]))


def described_judge(judge: Scorer) -> SteerJudge:
    """What a folder records of a judge."""
    return SteerJudge(
        name=judge.name,
        labels=list(judge.labels),
        revision=getattr(judge, "revision", None),
        lineage=lineage_of(judge.name).to_dict(),
    )


def _of_adapters(settings: SteerFitSettings, policy: Policy, report: ProgressCallback | None) -> SteerFolder:
    section = settings.dexperts
    given = {EXPERT: section.expert, ANTI_EXPERT: section.anti_expert}
    if settings.method == "task-vector":
        given = {TOXIC: settings.task_vector.toxic_adapter}
    adapters = {
        name: {"path": str(path.absolute()), "hash": adapter_hash(path)}
        for name, path in given.items()
        if path is not None
    }
    folder = SteerFolder(_record(settings, policy, adapters=adapters))
    with load_steering(folder).on(policy):
        pass  # Adapters that don't fit are refused now, and not by the first measurement.
    return folder


def _profs(settings: SteerFitSettings, policy: Policy, report: ProgressCallback | None) -> SteerFolder:
    section = settings.profs
    scored = _scored(settings, policy, keep=0.0)
    pairs = pairs_of(scored.answers, section.pairs, settings.seed)
    if len(pairs) < section.rank:
        raise RunError(
            f"{scored.run.path} has {len(pairs)} toxic answers by {scored.judge['name']} with a harmless one beside "
            f"them, and a subspace of rank {section.rank} needs as many: measure more prompts, or lower profs.rank"
        )
    states = mean_states(policy, [answer for pair in pairs for answer in pair], settings.batch_tokens)
    n_layers = len(states) - 1
    first = n_layers // 2 if section.first_layer is None else section.first_layer
    if first >= n_layers:
        raise RunError(f"profs.first_layer {first}: {policy.spec} has layers 0 to {n_layers - 1}")
    # What layer l's MLP has written is first seen in the stream that the next layer reads.
    tensors = {
        f"basis.{layer}": _tensor(toxic_subspace(states[layer + 1, 0::2], states[layer + 1, 1::2], section.rank))
        for layer in range(first, n_layers)
    }
    found = {"layers": [first, n_layers - 1], "pairs": len(pairs)}
    return SteerFolder(_record(settings, policy, **_learnt_from(scored), found=found), tensors)


def _pplm(settings: SteerFitSettings, policy: Policy, report: ProgressCallback | None) -> SteerFolder:
    """A classifier head on what the model's own head reads, averaged over an answer."""
    scored = _scored(settings, policy, keep=0.0)
    answers = balanced(scored.answers, settings.pplm.answers, settings.seed)
    toxic, owners = labels_of(answers), [answer.owner for answer in answers]
    if min(int(toxic.sum()), int((~toxic).sum())) < 2:
        raise RunError(
            f"{scored.run.path} has {int(toxic.sum())} toxic and {int((~toxic).sum())} other answers by "
            f"{scored.judge['name']}, and a classifier head needs two of each: measure more prompts"
        )
    states = mean_states(policy, answers, settings.batch_tokens, output=True)[-1]
    weight, bias = linear_gate(states, toxic)
    groups = {owner for owner, is_toxic in zip(owners, toxic, strict=True) if is_toxic}
    folds = min(4, int(toxic.sum()), int((~toxic).sum()), len(groups))
    found: dict[str, Any] = {"answers": len(answers), "toxic": int(toxic.sum())}
    if folds > 1:
        found["auc"] = held_out(states, toxic, folds_of(toxic, owners, folds, settings.seed), by_probe).auc
    tensors = {"head.weight": _tensor(weight), "head.bias": _tensor(np.array([bias]))}
    return SteerFolder(_record(settings, policy, **_learnt_from(scored), found=found), tensors)


def _activation(settings: SteerFitSettings, policy: Policy, report: ProgressCallback | None) -> SteerFolder:
    section = settings.activation
    scored = _scored(settings, policy, keep=section.choose.share)
    answers = balanced(scored.answers, section.answers, settings.seed)
    toxic, owners = labels_of(answers), [answer.owner for answer in answers]
    groups = {owner for owner, is_toxic in zip(owners, toxic, strict=True) if is_toxic}
    if min(int(toxic.sum()), int((~toxic).sum()), len(groups)) < section.folds:
        raise RunError(
            f"{scored.run.path} has {int(toxic.sum())} toxic and {int((~toxic).sum())} other answers by "
            f"{scored.judge['name']} to learn from, and activation.folds={section.folds} needs as many of each, to "
            "different prompts: measure more prompts, or more answers to each"
        )
    states = mean_states(policy, answers, settings.batch_tokens)
    fold = folds_of(toxic, owners, section.folds, settings.seed)
    aucs = [held_out(layer, toxic, fold, by_direction).auc for layer in states]
    candidates = _candidates(settings, aucs)
    record = _record(
        settings,
        policy,
        **_learnt_from(scored),
        found={"auc": aucs, "toxic": int(toxic.sum()), "answers": len(answers)},
    )
    folders = [
        SteerFolder(record, _activation_tensors(settings, states, toxic, owners, layers)) for layers in candidates
    ]
    if settings.strength is not None and len(candidates) == 1 and not section.choose.controls:
        return folders[0]
    return _chosen(settings, policy, scored, list(zip(candidates, folders, strict=True)), report)


def _candidates(settings: SteerFitSettings, aucs: Sequence[float]) -> list[tuple[int, ...]]:
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
    ranked = sorted(inner, key=lambda layer: -aucs[layer])
    return [(layer,) for layer in ranked[: section.choose.layers]]


def _activation_tensors(
    settings: SteerFitSettings, states: FloatArray, toxic: BoolArray, owners: Sequence[str], layers: Sequence[int]
) -> dict[str, Tensor]:
    """See ``activation.of_activation``. To ablate, the part along what all text shares is left in the stream: without
    it a model can't say anything (``readouts.toxic_direction``)."""
    section = settings.activation
    if section.how == "ablate":
        x = states[layers[0]]
        found = toxic_vector(x, toxic, owners, section.direction)
        if section.direction == "means":
            found = toxic_direction(x, toxic)
        return {"direction": _tensor(found)}
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        tensors[f"vector.{layer}"] = -_tensor(toxic_vector(states[layer], toxic, owners, section.direction))
        if section.how == "gated":
            weight, bias = linear_gate(states[layer], toxic)
            tensors |= {f"probe.{layer}.weight": _tensor(weight), f"probe.{layer}.bias": _tensor(np.array([bias]))}
    return tensors


def _chosen(
    settings: SteerFitSettings,
    policy: Policy,
    scored: ScoredRun,
    folders: Sequence[tuple[tuple[int, ...], SteerFolder]],
    report: ProgressCallback | None,
) -> SteerFolder:
    """The folder of the best layer and strength, with what all did, and random directions of equal length beside."""
    section = settings.activation
    choose = section.choose
    prompts = scored.kept[: choose.prompts]
    if len(prompts) < 2:
        raise RunError(
            f"{scored.run.path} has too few prompts to keep some for choosing ({len(prompts)}): measure more, or give "
            "--strength, activation.layers=… and activation.choose.controls=0"
        )
    judge = load_scorer(scored.judge["name"], device=str(policy.device), services=settings.services)
    _refuse_other_version(judge, scored.judge)
    trial = Trial(
        policy,
        prompts,
        judge,
        max_new_tokens=choose.max_new_tokens,
        batch_tokens=settings.batch_tokens,
        seed=settings.seed,
    )
    strengths = choose.strengths if settings.strength is None else [settings.strength]
    if section.how == "ablate" and settings.strength is None:
        strengths = [1.0]
    total = 1 + len(folders) * len(strengths) + choose.controls
    step = _steps(report, total)
    plain = trial.unsteered()
    step(1)
    tried: list[Tried] = []
    for _, folder in folders:
        tried += trial.of(of_activation(folder), strengths)
        step(len(strengths))
    best, fluent = best_of(tried, plain, choose.fluency)
    layers, folder = folders[best // len(strengths)]
    controls = [
        trial.of(of_activation(_control(folder, number, settings.seed)), [tried[best].strength])[0]
        for number in _each(range(choose.controls), step)
    ]
    found = {
        **folder.record.found,
        "layers": list(layers),
        "fluent": fluent,
        "prompts": len(prompts),
        "unsteered": plain.to_dict(),
        "tried": [
            {"layers": list(folders[number // len(strengths)][0]), **one.to_dict()} for number, one in enumerate(tried)
        ],
        "random": [one.to_dict() for one in controls],
        "p_value_random": _rank(tried[best], controls),
    }
    record = folder.record.model_copy(update={"strength": tried[best].strength, "found": found})
    return replace(folder, record=record)


def _rank(chosen: Tried, controls: Sequence[Tried]) -> float | None:
    """How rarely a random direction does as well: (1 + those that leave no larger toxic share) / (1 + all)."""
    shares = [one.toxic_fraction for one in controls if one.toxic_fraction is not None]
    if not shares or chosen.toxic_fraction is None:
        return None
    return (1 + sum(share <= chosen.toxic_fraction for share in shares)) / (1 + len(shares))


def _control(folder: SteerFolder, number: int, seed: int) -> SteerFolder:
    """The folder with random directions as long as its own; a probe that gates them stays."""
    tensors: dict[str, Tensor] = dict(folder.tensors)
    for name, tensor in folder.tensors.items():
        if name.startswith(("vector.", "direction")):
            drawn = random_vectors(
                float(tensor.norm()), len(tensor), 1, stream_seed("steer", "random", seed, name, number)
            )
            tensors[name] = _tensor(drawn[0])
    return replace(folder, tensors=tensors)


def _scored(settings: SteerFitSettings, policy: Policy, *, keep: float) -> ScoredRun:
    assert settings.run is not None
    hashed = None if settings.adapter is None else adapter_hash(settings.adapter)
    return read_scored(settings.run, settings.judge, policy, hashed, keep=keep, seed=settings.seed)


def _learnt_from(scored: ScoredRun) -> dict[str, Any]:
    """What a record says of the run and its judge; prompts by the hashes of their texts, which hide them."""
    entry, run = scored.judge, scored.run
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


def _refuse_other_version(judge: Scorer, entry: ScorerEntry) -> None:
    ours, theirs = getattr(judge, "revision", None), entry.get("revision")
    if None not in (ours, theirs) and ours != theirs:
        raise RunError(
            f"the judge {judge.name} has other weights than when it scored the run ({str(ours)[:12]}…, then "
            f"{str(theirs)[:12]}…): score the run again"
        )


def _tensor(array: FloatArray) -> Tensor:
    return torch.tensor(array, dtype=torch.float32)


def _steps(report: ProgressCallback | None, total: int) -> Callable[[int], None]:
    done = 0

    def step(n: int) -> None:
        nonlocal done
        done += n
        if report is not None:
            report(done, total, "strengths and directions tried")

    return step


def _each(numbers: Sequence[int], step: Callable[[int], None]) -> Iterator[int]:
    for number in numbers:
        yield number
        step(1)


_FITS: Mapping[str, Callable[[SteerFitSettings, Policy, ProgressCallback | None], SteerFolder]] = {
    "system": _of_a_text,
    "selfdebias": _of_a_text,
    "best-of-n": _of_a_judge,
    "rejection": _of_a_judge,
    "dexperts": _of_adapters,
    "task-vector": _of_adapters,
    "profs": _profs,
    "activation": _activation,
    "pplm": _pplm,
}
