"""The models that are looked into: each run's base with its adapter. Runs of one base share one copy of its weights.

A model is switched on while it reads, and is left as it was found: mode, adapters, what is trainable, hooks and
gradients. With every adapter off it must be the base to the bit, or nothing said about an adapter would be true. That
is checked whenever adapters are put on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from rewardlm.config import (
    CausesSettings,
    GenerationSettings,
    InsideSettings,
    InterpretSettings,
    ModelSettings,
    validate,
)
from rewardlm.errors import ModelError, RunError
from rewardlm.interpreting.treatments import found_in, left_out, treatment_of
from rewardlm.models.load import Policy, hash_weights, load_policy, resolve_device
from rewardlm.models.logprobs import check_head
from rewardlm.models.lora import POLICY, adapter_hash, load_adapter, merged, set_strength, using
from rewardlm.runs import Run, unique_labels
from rewardlm.steering.activation import StreamSteering
from rewardlm.steering.adapters import TOXIC, located
from rewardlm.steering.load import load_steering
from rewardlm.steering.steered import Steered, Steering

_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
Answering = TypeVar("Answering", InsideSettings, CausesSettings)


@dataclass(frozen=True)
class RunModel:
    """One run's model. ``adapter`` is the adapter's name on ``policy``, which the runs of one base share; None is the
    base itself. An adapter that the run had at another strength, or that steering took away, is on at that strength.

    ``method`` and ``strength`` say how the run was steered, if it was. ``steering`` is there for methods that are more
    than an adapter. ``left_out`` says which parts of an interpretation can't be had of such a model, and why.
    """

    label: str
    run: Run
    policy: Policy
    adapter: str | None
    method: str | None = None
    strength: float = 0.0
    steering: Steering | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def changes_stream(self) -> bool:
        """Whether the model is steered in its residual stream, so that a pass can be as it was while it answered."""
        return isinstance(self.steering, StreamSteering)

    @property
    def room(self) -> int:
        """How many tokens a prompt could have when it was measured."""
        return self.policy.max_positions - int(self.run.setting("max_new_tokens", int))

    @contextlib.contextmanager
    def on(self, *, merge: bool = False) -> Iterator[Any]:
        """Inside, the policy's causal LM (which this gives) is this model, in evaluation mode and frozen. If its stream
        is steered, so it is here, at all tokens or where answers are predicted from.

        ``merge`` puts the adapter into the base's weights meanwhile, where that is exact enough (``models.lora.merged``
        says where), which is quicker and differs by rounding. Raises ModelError for a model that is steered otherwise:
        passes of the causal LM alone would not be its own.
        """
        if self.steering is None:
            with self._unsteered(merge):
                yield self.policy.causal_lm
        elif not self.changes_stream:
            raise ModelError(f"{self.label} is steered by {self.method}, so no pass of its model alone shows it")
        else:
            with self.steered(merge=merge) as steered, steered.at(self.strength):
                yield self.policy.causal_lm

    @contextlib.contextmanager
    def steered(self, *, merge: bool = False) -> Iterator[Steered]:
        """Inside, the model can be asked as it was steered; for models with a ``steering``."""
        assert self.steering is not None
        with self._unsteered(merge), self.steering.on(self.policy) as steered:
            yield steered

    @contextlib.contextmanager
    def _unsteered(self, merge: bool) -> Iterator[None]:
        policy = self.policy
        with contextlib.ExitStack() as held:
            held.enter_context(_as_found(policy.model))
            held.enter_context(using(policy, self.adapter))
            if merge and self.adapter is not None:
                held.enter_context(merged(policy, self.adapter))
            policy.model.eval()
            policy.model.requires_grad_(False)
            yield


@contextlib.contextmanager
def _as_found(model: Any) -> Iterator[None]:
    """Restores modes and what is trainable, whatever the block switches."""
    training = [(module, module.training) for module in model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, wanted in trainable:
            parameter.requires_grad_(wanted)


def as_measured(section: Answering, settings: InterpretSettings, run: Run) -> Answering:
    """A section of these settings with the seed and resamples of the whole, and answers drawn as the run's were, but
    for what the section says of these itself.
    """
    whole = {
        name: getattr(settings, name)
        for name in ("seed", "n_resamples")
        if name in type(section).model_fields and name not in section.model_fields_set
    }
    drawn = {**run.setting("generation", dict[str, Any]), **section.generation.model_dump(exclude_unset=True)}
    return section.model_copy(update={**whole, "generation": validate(GenerationSettings, drawn)})


def readers_of(run_models: Sequence[RunModel], part: str) -> list[int]:
    """The numbers of the models that ``part`` of an interpretation can read, the baseline's first."""
    return [number for number, run_model in enumerate(run_models) if part not in run_model.left_out]


def load_models(runs: Sequence[Run], settings: InterpretSettings) -> list[RunModel]:
    """The models of measured runs, the baseline first; those of one base share its weights.

    Raises RunError for a run without a model here (an import, a server's), or whose weights or steer folder have
    changed since, and where the baseline can't be read; ModelError where tokenizers differ, or a base with its adapters
    off is not the base.
    """
    bases: dict[str, _Base] = {}
    run_models = []
    for run, label in zip(runs, unique_labels([run.label for run in runs]), strict=True):
        wanted = model_settings(run, settings)
        key = wanted.model_copy(update={"adapter": None}).model_dump_json()
        if key not in bases:
            bases[key] = _Base(load_policy(wanted))
        base = bases[key]
        _check_weights(run, base)
        run_models.append(base.model_of(label, run, wanted.adapter, settings))
    first = run_models[0]
    if first.left_out.keys() & {"drift", "attribution"}:
        raise RunError(
            f"{first.run.path} is the baseline, and was answered under steering ({first.method}): "
            f"{next(iter(first.left_out.values()))}; name a run of the unsteered model first"
        )
    for base in bases.values():
        base.check_untouched()
    _check_vocabularies(run_models)
    return run_models


class _Base:
    """A base, what it was before any adapter, and the adapters that it carries since."""

    def __init__(self, policy: Policy) -> None:
        check_head(policy.causal_lm)
        self.policy = policy
        self._alone = _probe(policy)
        self._names: dict[tuple[Path, float], str] = {}
        # Hashes in every precision in which a run may have been measured; adapters change the names of tensors later.
        self.hashes = {dtype: hash_weights(policy.model, dtype) for dtype in _PRECISIONS if dtype != policy.dtype}
        self.hashes[policy.dtype] = policy.weights_hash

    def model_of(self, label: str, run: Run, adapter: Path | None, settings: InterpretSettings) -> RunModel:
        """The run's model, as it was treated."""
        scale = run.meta.get("adapter_strength")
        name = None if adapter is None or scale == 0 else self._put_on(adapter, 1.0 if scale is None else scale)
        treatment = treatment_of(run)
        if treatment is None:
            return RunModel(label, run, self.policy, name)
        how = (treatment.method, treatment.strength)
        if treatment.method == "task-vector":
            name = self._put_on(located(treatment.folder, TOXIC), -treatment.strength)
            return RunModel(label, run, self.policy, name, *how)
        steering = load_steering(treatment.folder)
        return RunModel(label, run, self.policy, name, *how, steering, left_out(steering, settings))

    def _put_on(self, adapter: Path, strength: float) -> str:
        """The adapter's name on the policy, which carries each once at a strength."""
        key = (adapter.resolve(), strength)
        if key not in self._names:
            name = self._names[key] = POLICY if not self._names else f"run_model_{len(self._names)}"
            load_adapter(self.policy, adapter, name=name)
            if strength != 1:
                set_strength(self.policy, strength, name)
        return self._names[key]

    def check_untouched(self) -> None:
        with using(self.policy, None):
            if not torch.equal(_probe(self.policy), self._alone):
                raise ModelError(
                    f"{self.policy.spec} with its adapters off is not {self.policy.spec}, so what an adapter "
                    "changed can't be told: interpret each of these runs with its baseline alone to see which one it is"
                )


def model_settings(run: Run, settings: InterpretSettings) -> ModelSettings:
    """How the run's model is loaded: as it was measured, but for what ``settings`` say of precision and device."""
    if run.meta["kind"] != "measure":
        raise RunError(
            f"{run.path} is a run of kind {run.meta['kind']!r}: expected a measurement, whose model can be "
            "looked into; make one with rewardlm measure"
        )
    measured = run.meta["settings"]
    if measured.get("engine", "local") == "openai":
        raise RunError(f"{run.path} was answered by a server: measure its model here (--engine local) to look into it")
    adapter = measured.get("adapter")
    return validate(
        ModelSettings,
        {
            "model": measured["model"],
            "adapter": None if adapter is None else found_in(run, adapter, "adapter"),
            "chat": measured.get("chat", {}),
            "seed": settings.seed,
            "device": settings.device,
            "dtype": _precision(run, settings),
            "load": settings.load or measured.get("load"),
            "quantisation": measured.get("quantisation", {}),
        },
    )


def _precision(run: Run, settings: InterpretSettings) -> str:
    """As the settings say. Else float32 on a CPU, since what is looked at are small differences, and an adapter can be
    merged there; on a device, whose memory may not hold that, the precision that was measured.
    """
    if settings.dtype != "auto":
        return settings.dtype
    return "float32" if resolve_device(settings.device).type == "cpu" else str(run.meta.get("dtype", "auto"))


def _check_weights(run: Run, base: _Base) -> None:
    policy, recorded = base.policy, run.meta.get("model_hash")
    measured_in = getattr(torch, str(run.meta.get("dtype")), policy.dtype)
    # Weights can't be compared if they were rounded more than the measured ones, quantised in another way, or quantised
    # from another precision.
    held_in = (measured_in,) if policy.quantisation else (torch.float32, measured_in)
    comparable = policy.quantisation == run.meta.get("quantisation") and policy.dtype in held_in
    if recorded and comparable and recorded != base.hashes[measured_in]:
        raise RunError(
            f"weights_differ: {run.path} was measured with other weights of {policy.spec} (hash {recorded[:12]}…, here "
            f"{base.hashes[measured_in][:12]}…): measure it again"
        )
    adapter = run.meta["settings"].get("adapter")
    if adapter is not None and run.meta.get("adapter_hash") is not None:
        found = adapter_hash(found_in(run, adapter, "adapter"))
        if found != run.meta["adapter_hash"]:
            raise RunError(
                f"weights_differ: {run.path}: its adapter {adapter} was trained further since then: measure it again"
            )


@torch.no_grad()
def _probe(policy: Policy) -> Tensor:
    """Logits of a few tokens, Float[1, 8, V]."""
    vocabulary = policy.causal_lm.get_input_embeddings().weight.shape[0]
    tokens = torch.arange(8, device=policy.device)[None] * (vocabulary // 9) + 1
    logits: Tensor = policy.model(input_ids=tokens).logits
    return logits


def _check_vocabularies(run_models: Sequence[RunModel]) -> None:
    first = run_models[0].policy.tokenizer.get_vocab()
    for run_model in run_models[1:]:
        if run_model.policy is not run_models[0].policy and run_model.policy.tokenizer.get_vocab() != first:
            raise ModelError(
                f"{run_model.label} and {run_models[0].label} have different tokenizers, so their tokens can't be "
                "compared: interpret models of one family"
            )
