"""LoRA adapters by PEFT: put on, loaded, saved, switched off. The reference is the same base with the adapter off.

One copy of the weights serves policy and reference. Where RL starts from a fine-tuned adapter, the reference is that
adapter, frozen, beside the one that learns.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from rewardlm import fastpath
from rewardlm.config import LoraSettings
from rewardlm.disk import nothing_left, writing
from rewardlm.errors import ModelError
from rewardlm.models.load import Policy
from rewardlm.models.names import check_adapter

POLICY, REFERENCE, CRITIC, ORIGIN = "default", "reference", "critic", "origin"


def add_lora(policy: Policy, settings: LoraSettings, *, seed: int) -> None:
    """Put a fresh, trainable adapter on; B is zero, so outputs are the base's until it learns.

    The adapter is float32 whatever the base's precision: updates are below bfloat16's rounding.
    """
    _add_fresh(policy, POLICY, settings, seed)


def add_critic(policy: Policy, settings: LoraSettings, *, seed: int) -> None:
    """Put a second, trainable adapter beside the policy's, for a critic that has features of its own."""
    _add_fresh(policy, CRITIC, settings, seed)
    policy.model.set_adapter(POLICY)


def add_reference(policy: Policy, settings: LoraSettings, *, seed: int) -> None:
    """Put a copy of the policy's fresh adapter beside it, for a reference that will move: until then it is the base."""
    _add_fresh(policy, REFERENCE, settings, seed)
    policy.model.set_adapter(POLICY)


def _add_fresh(policy: Policy, name: str, settings: LoraSettings, seed: int) -> None:
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if isinstance(policy.model, PeftModel):
                policy.model.add_adapter(name, config)
            else:
                policy.model = get_peft_model(policy.model, config, adapter_name=name, autocast_adapter_dtype=True)
        except ValueError as error:
            raise ModelError(f"lora.targets {settings.targets!r}: {' '.join(str(error).split())[:200]}") from error
    fastpath.fuse(policy.model)


def load_adapter(policy: Policy, folder: Path, *, trainable: bool = False, name: str = POLICY) -> None:
    """Put the adapter in ``folder`` on. Raises ModelError if it is pickled, damaged or another base's."""
    folder = _adapter_folder(folder)
    weights = folder / "adapter_model.safetensors"
    if not weights.exists():
        pickled = folder / "adapter_model.bin"
        what = "pickled weights" if pickled.exists() else "no adapter_model.safetensors"
        raise ModelError(f"{folder} holds {what}: only safetensors adapters are loaded")
    saved = set(_tensor_names(weights))
    _check_finite(weights)
    try:
        _check_kind(folder)
        if isinstance(policy.model, PeftModel):
            policy.model.load_adapter(str(folder), adapter_name=name, is_trainable=trainable)
        else:
            policy.model = PeftModel.from_pretrained(
                policy.model, str(folder), adapter_name=name, is_trainable=trainable
            )
        # The tensors that PEFT would save, without and with a copy of the base's embeddings, which a file may have.
        wanted = set(get_peft_model_state_dict(policy.model, adapter_name=name, save_embedding_layers=False))
        allowed = set(get_peft_model_state_dict(policy.model, adapter_name=name, save_embedding_layers=True))
    except Exception as error:  # PEFT lets exceptions of many types through where a configuration was changed by hand
        raise ModelError(
            f"the adapter in {folder} does not fit {policy.spec}: {' '.join(str(error).split())[:200]}"
        ) from error
    missing, unexpected = sorted(wanted - saved), sorted(saved - allowed)
    if missing or unexpected:
        raise ModelError(
            f"the adapter in {folder} does not fit {policy.spec}: {len(missing)} tensors are missing and "
            f"{len(unexpected)} don't belong ({(missing + unexpected)[0]}, …)"
        )
    policy.model.eval()
    fastpath.fuse(policy.model)
    if name == POLICY:
        policy.adapter = str(folder)


def save_adapter(model: Any, folder: Path, *, name: str = POLICY) -> None:
    """Write one adapter, without those beside it, as safetensors in PEFT's format. Any but the policy's goes into a
    subfolder of its name."""
    # Without the base's embeddings, which PEFT would add where an adapter is on them.
    model.save_pretrained(str(folder), selected_adapters=[name], safe_serialization=True, save_embedding_layers=False)


def restore_adapter(folder: Path, model: Any, *, name: str = POLICY) -> None:
    """Put the weights of a saved adapter, by default the policy's, into the one of that name on ``model``, in place.

    Raises ModelError for an adapter on other layers.
    """
    saved = load_file(str(folder / "adapter_model.safetensors"))
    unknown = set_peft_model_state_dict(model, saved, adapter_name=name).unexpected_keys
    if unknown:
        raise ModelError(
            f"{folder} holds an adapter on other layers than this run's ({unknown[0]}, …): choose another --out"
        )


def replace_adapter(model: Any, folder: Path) -> None:
    """Write the policy's adapter so that ``folder`` holds the old one or the new one at any moment, whatever happens
    meanwhile. Both must be of one configuration, as those of a run are. Raises DiskFullError.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    safe = "the adapter there is as it was" if folder.exists() else "what was written before is safe"
    with writing(folder, safe=safe), nothing_left(temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        save_adapter(model, temporary)
    folder.mkdir(parents=True, exist_ok=True)
    # Folders can't replace each other at once, but files can. The weights come last: the others say what they said.
    for file in sorted(temporary.iterdir(), key=lambda file: file.suffix == ".safetensors"):
        os.replace(file, folder / file.name)
    temporary.rmdir()


@contextlib.contextmanager
def reference(policy: Policy) -> Iterator[None]:
    """Inside, the model is the frozen reference: the base, the adapter that RL started from, or one that follows the
    policy (``move_reference``)."""
    adapters = getattr(policy.model, "peft_config", {})
    with using(policy, REFERENCE if REFERENCE in adapters else None):
        yield


@contextlib.contextmanager
def origin(policy: Policy) -> Iterator[None]:
    """Inside, the model is what RL started from, where the reference has moved since: the base, or an adapter."""
    adapters = getattr(policy.model, "peft_config", {})
    with using(policy, ORIGIN if ORIGIN in adapters else None):
        yield


def move_reference(policy: Policy, mix: float) -> None:
    """Move the reference's adapter towards the policy's: (1 - mix) · reference + mix · policy, matrix by matrix."""
    pairs = zip(adapter_parameters(policy.model, REFERENCE), adapter_parameters(policy.model), strict=True)
    with torch.no_grad():
        for old, new in pairs:
            old.copy_(new if mix == 1 else old.lerp(new, mix))


@contextlib.contextmanager
def using(policy: Policy, name: str | None) -> Iterator[None]:
    """Inside, only the adapter ``name`` is on, or none. Afterwards, what was on before is on again.

    Raises ModelError for an adapter that the model doesn't have.
    """
    model = policy.model
    if not isinstance(model, PeftModel):
        if name is not None:
            raise ModelError(f"{policy.spec} has no adapter {name!r}: it has none at all")
        yield
        return
    if name is not None and name not in model.peft_config:
        raise ModelError(f"{policy.spec} has no adapter {name!r}: it has {', '.join(model.peft_config)}")
    # What an adapter saves besides its matrices (a norm, an embedding) is switched with them.
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    found = [(layer, list(layer.active_adapters), layer.disable_adapters) for layer in layers]
    before, of_tuner = model.active_adapter, model.base_model.active_adapter
    with _trainable_as_found(model):
        try:
            for layer in layers:
                layer.enable_adapters(name is not None)
            if name is not None:
                model.set_adapter(name)
            yield
        finally:
            model.active_adapter, model.base_model.active_adapter = before, of_tuner
            for layer, adapters, disabled in found:
                layer.set_adapter(adapters)
                layer.enable_adapters(not disabled)


@contextlib.contextmanager
def carrying(policy: Policy, adapters: Mapping[str, Path]) -> Iterator[None]:
    """Inside, the model also carries these adapters, by name: on is what was on before. Afterwards they are gone, and
    the model has the modules that it had, even if one of the adapters could not be loaded.

    Raises ModelError as ``load_adapter`` does, and for a name that the model has already.
    """
    model, causal_lm = policy.model, policy.causal_lm
    had_any = isinstance(model, PeftModel)
    for name in adapters:
        if had_any and name in model.peft_config:
            raise ModelError(f"{policy.spec} has an adapter {name!r} already: choose another name")
    wrappers = {id(module) for module in causal_lm.modules() if _wraps(module)}
    learning = [module for module in model.modules() if module.training]
    with _trainable_as_found(model):
        try:
            for name, folder in adapters.items():
                load_adapter(policy, folder, name=name)
            with contextlib.nullcontext() if had_any else using(policy, None):
                yield
        finally:
            if had_any:
                for name in adapters:
                    if name in model.peft_config:
                        model.delete_adapter(name)
            # Where loading broke off, the base's modules are wrapped, but nobody holds the wrapper of them all.
            for parent in list(causal_lm.modules()):
                for child, module in list(parent.named_children()):
                    if _wraps(module) and id(module) not in wrappers:
                        setattr(parent, child, _unwrapped(module))
            if not had_any:
                vars(causal_lm).pop("peft_config", None)
                policy.model = model
            for module in learning:
                module.training = True


def _wraps(module: Any) -> bool:
    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)


def _unwrapped(module: Any) -> Any:
    return module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module.get_base_layer()


def adapter_on(policy: Policy) -> str | None:
    """The name of the adapter that adds its part in passes now; None where none does, or where it is merged."""
    for module in policy.model.modules():
        if isinstance(module, LoraLayer) and not module.disable_adapters and not module.merged:
            for name in module.active_adapters:
                if name in module.scaling:
                    return str(name)
    return None


def adds_more_than_maps(policy: Policy, name: str) -> bool:
    """Whether an adapter that is on the model changes more than W + (alpha / r)·B·A."""
    config = policy.model.peft_config[name]
    layers = [module for module in policy.model.modules() if isinstance(module, LoraLayer)]
    more = any(name in layer.lora_variant or layer.lora_bias.get(name) for layer in layers)
    return bool(config.modules_to_save or config.trainable_token_indices) or more


def set_strength(policy: Policy, strength: float, name: str = POLICY) -> None:
    """Multiply what an adapter adds, the policy's own unless it is named, by ``strength``, for good:
    W + strength·(alpha / r)·B·A.

    0 is the base, 1 the adapter as it was trained, more is beyond it (Ilharco et al. 2023, "Editing Models with Task
    Arithmetic"). Raises ModelError without an adapter, and for one that saves whole modules or biases, which can't be
    scaled.
    """
    layers = [module for module in policy.model.modules() if isinstance(module, LoraLayer) and name in module.scaling]
    if not layers:
        raise ModelError(f"{policy.spec} has no LoRA adapter whose strength could be set: name one with --adapter")
    if adds_more_than_maps(policy, name):
        which = policy.adapter if name == POLICY else name
        raise ModelError(
            f"the adapter {which} changes more than W + (alpha / r)·B·A (whole modules, biases or a variant of LoRA): "
            "its strength can't be set"
        )
    for layer in layers:
        layer.scaling[name] *= strength


@contextlib.contextmanager
def _trainable_as_found(model: Any) -> Iterator[None]:
    # PEFT's switches also change what is trainable, even in a frozen adapter. That is put back as it was found.
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)


@contextlib.contextmanager
def merged(policy: Policy, name: str = POLICY) -> Iterator[None]:
    """Inside, the adapter ``name`` is part of the base's weights, so that a layer costs one matrix and not three.

    This is done in float32 only: half precision would round an early, small B·A away, and quantised weights can't take
    it. It isn't done where an adapted matrix is used elsewhere too (a head tied to the embeddings), because that would
    change as well, nor where no process has the whole matrix. The base's weights are put back from a copy afterwards,
    because subtracting B·A again would let them drift.
    """
    layers = [module for module in policy.model.modules() if isinstance(module, LoraLayer)]
    uses = Counter(id(parameter) for _, parameter in policy.model.named_parameters(remove_duplicate=False))
    tied = any(uses[id(layer.get_base_layer().weight)] > 1 for layer in layers)
    divided = any(isinstance(layer.get_base_layer().weight, DTensor) for layer in layers)
    if policy.dtype != torch.float32 or policy.quantisation is not None or not layers or tied or divided:
        yield
        return
    kept = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    try:
        # Gradients are off meanwhile, and not in the block: who leaves it inside of another one would leave them off.
        with torch.no_grad():
            for layer in layers:
                layer.merge(adapter_names=[name])
        yield
    finally:
        with torch.no_grad():
            for layer, weight in zip(layers, kept, strict=True):
                layer.merged_adapters.clear()
                layer.get_base_layer().weight.copy_(weight)


@contextlib.contextmanager
def scaled(layers: Iterable[LoraLayer], factor: float, name: str | None = None) -> Iterator[None]:
    """Inside, what the adapters on ``layers`` add, or only the adapter ``name``, is multiplied by ``factor``: 0 is off,
    to the bit.

    Raises ModelError where an adapter is merged, because its share of the weights can't be told apart any more.
    """
    layers = list(layers)
    if any(layer.merged for layer in layers):
        raise ModelError("a merged adapter can't be scaled: unmerge it from the base's weights first")
    found = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            for one in layer.scaling:
                if name in (None, one):
                    layer.scaling[one] *= factor
        yield
    finally:
        for layer, scaling in zip(layers, found, strict=True):
            layer.scaling.update(scaling)


def adapter_parameters(model: Any, name: str = POLICY) -> list[torch.nn.Parameter]:
    """The parameters of one adapter, in a fixed order."""
    named = sorted(model.named_parameters())
    return [parameter for key, parameter in named if is_of_adapter(key, name)]


def is_of_adapter(parameter: str, name: str) -> bool:
    """Whether the parameter of that name is one of the adapter ``name``'s LoRA matrices."""
    # PEFT keeps those of embeddings as parameters (lora_embedding_A.NAME), the others as modules (lora_A.NAME.weight).
    return "lora_" in parameter and f".{name}." in f"{parameter}."


def adapter_hash(folder: Path) -> str:
    """SHA-256 of an adapter's weights. Raises ModelError if there is no adapter."""
    weights = _adapter_folder(folder) / "adapter_model.safetensors"
    try:
        with open(weights, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ModelError(f"{weights.parent} holds no adapter_model.safetensors") from None


def head_is_shared(policy: Policy) -> bool:
    """Whether policy and reference have one language-model head, because no adapter is on it."""
    head = policy.causal_lm.get_output_embeddings()
    return not isinstance(head, LoraLayer | ModulesToSaveWrapper)


def _adapter_folder(folder: Path) -> Path:
    """``folder`` itself, or its ``adapter/`` if it is a trained run."""
    for candidate in (folder, folder / "adapter"):
        if (candidate / "adapter_config.json").exists():
            return candidate
    check_adapter(folder)
    raise ModelError(f"adapter {folder}: it has no adapter_config.json; expected a PEFT adapter or a trained run")


# Each moves a part of the base into the adapter, and replaces the base with the rest.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq")


def _check_kind(folder: Path) -> None:
    """Refuse adapters beside the model (a learnt prompt, say): RewardLM calls the model inside PEFT's wrapper."""
    config = json.loads((folder / "adapter_config.json").read_text())
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise ValueError(f"it is of the kind {kind}, and only LoRA adapters are loaded")
    start = str(config.get("init_lora_weights")).casefold()
    if start.startswith(_CHANGES_THE_BASE):
        raise ValueError(
            f"init_lora_weights={start} takes a part of the base's own weights out each time it is loaded, so there "
            "would be no base to compare with; save it as a plain LoRA "
            "(PEFT's path_initial_model_for_weight_conversion)"
        )


def _tensor_names(weights: Path) -> list[str]:
    try:
        with safe_open(weights, framework="pt") as file:
            return list(file.keys())
    except Exception as error:  # safetensors raises its own, undocumented types.
        raise ModelError(f"{weights} is damaged: {' '.join(str(error).split())[:200]}") from error


def _check_finite(weights: Path) -> None:
    for name in _tensor_names(weights):
        with safe_open(weights, framework="pt") as file:
            if not bool(torch.isfinite(file.get_tensor(name).float().sum())):
                raise ModelError(f"the adapter {weights} holds NaN or infinity in {name}: train it again")
