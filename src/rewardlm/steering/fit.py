"""``rewardlm steer fit``: make a steer folder for a model.

What has to be learnt is learnt from a scored run's answers (``learn``). Strength, and for activation steering the
layer, are chosen on prompts of the run that were kept out of that (``choose``). Whoever measures later should take
other prompts than the run's; the folder remembers which those were, and the audit looks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rewardlm.config import BY_A_JUDGE, ModelSettings, SteerFitSettings
from rewardlm.errors import RunError
from rewardlm.models.generate import stream_seed
from rewardlm.models.load import Policy, load_policy
from rewardlm.models.logprobs import check_head
from rewardlm.models.lora import adapter_hash, load_adapter
from rewardlm.progress import ProgressCallback
from rewardlm.runs import alone
from rewardlm.scoring.load import load_scorer
from rewardlm.steering.choose import Trial, Tried, best_of, p_value_random
from rewardlm.steering.directions import random_vectors
from rewardlm.steering.folder import SteerFolder
from rewardlm.steering.learn import LEARN, STRENGTHS, Finetune, Lesson, remove_other_adapters
from rewardlm.steering.load import load_steering
from rewardlm.steering.scored import ScoredRun, read_scored
from rewardlm.steering.selection import refuse_other_version
from rewardlm.steering.steered import Drawing


def fit(
    settings: SteerFitSettings, out: Path, *, finetune: Finetune, report: ProgressCallback | None = None
) -> SteerFolder:
    """Fit the method and write its folder to ``out``. A folder that is there is replaced when the new one is ready.

    ``finetune`` is ``training.sft.finetune``, which makes adapters that a method needs and nobody named. Raises
    RewardLMError where model, run, judge or adapters can't be used, or a run has too few toxic answers.
    """
    with alone(out):
        policy = load_for(settings)
        scored = None
        if settings.run is not None and settings.method not in BY_A_JUDGE:
            hashed = None if settings.adapter is None else adapter_hash(settings.adapter)
            keep = settings.choose.share
            scored = read_scored(
                settings.run, settings.judge, policy, hashed, settings.chat, keep=keep, seed=settings.seed
            )
        chooses = _is_open(settings)
        if scored is not None and chooses and len(scored.kept) < 2:
            raise RunError(
                f"{settings.run} has too few prompts to keep some for choosing ({len(scored.kept)}): measure more, or "
                "give --strength (and for activation activation.layers=… and choose.controls=0)"
            )
        folders = LEARN[settings.method](Lesson(settings, policy, scored, out, finetune, report))
        found = folders[0]
        if scored is not None and chooses:
            found = _chosen(settings, policy, scored, folders, report)
        saved = replace(found, record=found.save(out))
        remove_other_adapters(saved.record, out)
        return saved


def load_for(settings: ModelSettings) -> Policy:
    """The model with its adapter."""
    policy = load_policy(settings)
    check_head(policy.causal_lm)
    # Nothing here learns by gradients of weights, and the fast path takes a model only where nothing could.
    policy.model.requires_grad_(False)
    if settings.adapter is not None:
        load_adapter(policy, settings.adapter)
    return policy


def _is_open(settings: SteerFitSettings) -> bool:
    """Whether there is something to find out: which strength, which layer, or whether random directions do as well."""
    choose = settings.choose
    layers = 1 if settings.activation.layers is not None else choose.layers
    return settings.strength is None or (settings.method == "activation" and (layers > 1 or choose.controls > 0))


def _chosen(
    settings: SteerFitSettings,
    policy: Policy,
    scored: ScoredRun,
    folders: Sequence[SteerFolder],
    report: ProgressCallback | None,
) -> SteerFolder:
    """The folder and strength that do best, with what all did, and random directions of equal length beside.

    A direction that was chosen because it did well on some prompts would beat random ones there by being chosen. So it
    is chosen on every second prompt, and compared with them on the others.
    """
    choose = settings.choose
    prompts = scored.kept[: choose.prompts]
    judge = load_scorer(scored.judge["name"], device=str(policy.device), services=settings.services)
    refuse_other_version(judge, scored.judge.get("revision"), "it scored the run", "score the run again")
    strengths = _strengths(settings)
    controls = choose.controls if settings.method == "activation" and len(prompts) > 3 else 0
    drawing = Drawing(choose.max_new_tokens, scored.generation, settings.batch_tokens)
    halves = [prompts[0::2], prompts[1::2]] if controls else [prompts, []]
    trial, test = (
        Trial(policy, half, judge, drawing, settings.seed, toxic_above=scored.toxic_above) for half in halves
    )
    step = _steps(report, 1 + len(folders) * len(strengths) + (1 + controls if controls else 0))
    plain = trial.unsteered()
    step(1)
    tried: list[Tried] = []
    for folder in folders:
        tried += trial.of(load_steering(folder, settings.services), strengths)
        step(len(strengths))
    best, fluent = best_of(tried, plain, choose.fluency)
    folder = folders[best // len(strengths)]
    compared: list[Tried] = []
    for number in range(1 + controls if controls else 0):
        one = folder if number == 0 else _control(folder, number - 1, settings.seed)
        compared += test.of(load_steering(one), [tried[best].strength])
        step(1)
    found = {
        **folder.record.found,
        "fluent": fluent,
        "toxic_above": scored.toxic_above,
        "prompts": len(halves[0]),
        "unsteered": plain.to_dict(),
        "tried": [{**_layers(folders[number // len(strengths)]), **one.to_dict()} for number, one in enumerate(tried)],
        "chosen": best,
    }
    if controls:
        own, *random = compared
        found |= {
            "tested": own.to_dict(),
            "random": [one.to_dict() for one in random],
            "p_value_random": p_value_random(own, random, len(folders)),
        }
    record = folder.record.model_copy(update={"strength": tried[best].strength, "found": found})
    return replace(folder, record=record)


def _strengths(settings: SteerFitSettings) -> list[float]:
    if settings.strength is not None:
        return [settings.strength]
    if settings.choose.strengths is not None:
        return settings.choose.strengths
    if settings.method == "activation" and settings.activation.how == "ablate":
        return [1.0]
    return list(STRENGTHS[settings.method][1])


def _layers(folder: SteerFolder) -> dict[str, object]:
    """For activation steering, the layers that a folder changes."""
    return {"layers": folder.record.found["layers"]} if "layers" in folder.record.found else {}


def _control(folder: SteerFolder, number: int, seed: int) -> SteerFolder:
    """The folder with random directions as long as its own; a probe that gates them stays."""
    tensors: dict[str, Tensor] = dict(folder.tensors)
    for name, tensor in folder.tensors.items():
        if name.startswith(("vector.", "direction")):
            drawn = stream_seed("steer", "random", seed, name, number)
            tensors[name] = torch.tensor(random_vectors(float(tensor.norm()), len(tensor), 1, drawn)[0]).float()
    return replace(folder, tensors=tensors)


def _steps(report: ProgressCallback | None, total: int) -> Callable[[int], None]:
    done = 0

    def step(n: int) -> None:
        nonlocal done
        done += n
        if report is not None:
            report(done, total, "strengths and directions tried")

    return step
