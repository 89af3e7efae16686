"""A base whose linear layers bitsandbytes holds in 8 or 4 bits: how it is loaded, and what it takes to train on it.

docs/quantisation.md has the formulas. Embeddings, norms and the head stay in the model's precision.

bitsandbytes has a trap on CPUs that compute in bfloat16: the first pass without gradients puts a 4-bit layer's weights
into another layout, for inference alone. No gradient passes through that layer afterwards, and no error says so;
weights that are put back later have lost precision. The layout is switched off here (``keep_layout``), and training
asks ``check_gradients`` whether that worked.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rewardlm.config import QuantisationSettings
from rewardlm.errors import ModelError, TrainingError

_KINDS = {"Linear4bit": "4bit", "Linear8bitLt": "8bit"}


def bitsandbytes_config(load: Literal["8bit", "4bit"], settings: QuantisationSettings, dtype: torch.dtype) -> Any:
    """What transformers is to load with. Raises ModelError where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"--load {load} needs the package bitsandbytes: pip install 'rewardlm[quantised]'")
    from transformers import BitsAndBytesConfig

    # It warns at every product that float32 inputs are rounded, and on import that a faster kernel is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if load == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=settings.outliers)
    compute = dtype if settings.compute_dtype == "auto" else getattr(torch, settings.compute_dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.kind,
        bnb_4bit_use_double_quant=settings.double,
        bnb_4bit_compute_dtype=compute,
    )


@contextlib.contextmanager
def falcon_in_plain_layers() -> Iterator[None]:
    """Inside, Falcon is built of torch's own linear layers, which compute the same.

    To quantise, transformers replaces only these layers, not classes derived from them: a Falcon would be loaded in
    full precision, without an error.
    """
    from transformers.models.falcon import modeling_falcon

    own = modeling_falcon.FalconLinear
    modeling_falcon.FalconLinear = nn.Linear
    try:
        yield
    finally:
        modeling_falcon.FalconLinear = own


def quantised_layers(model: nn.Module) -> dict[str, Any]:
    """The layers of ``model`` whose weights bitsandbytes holds, by name."""
    # By name, so that full precision doesn't need the package; PEFT's wrappers have these names too, hence the module.
    return {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ in _KINDS and type(module).__module__.startswith("bitsandbytes.")
    }


def quantisation_of(model: nn.Module) -> str | None:
    """``8bit`` or ``4bit``, as the user or the checkpoint itself asked for it. None in full precision."""
    return next((_KINDS[type(layer).__name__] for layer in quantised_layers(model).values()), None)


def keep_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from putting 4-bit weights into its layout for inference, which lets no gradient through."""
    for layer in quantised_layers(model).values():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def forget_inputs(model: nn.Module) -> None:
    """Make 8-bit layers release their inputs, which bitsandbytes keeps for the gradient of weights that learn nothing.

    They are kept beside the graph, so that gradient checkpointing would not free them either.
    """
    for layer in quantised_layers(model).values():
        if _KINDS[type(layer).__name__] == "8bit":
            layer.register_forward_hook(_forget)


def _forget(layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    made_by: Any = output.grad_fn
    if made_by is None or layer.weight.requires_grad or output.numel() == 0:
        return
    # Of its two ways of multiplying, one keeps the input as A and the other among the tensors.
    if hasattr(made_by, "A"):
        made_by.A = None
    if hasattr(made_by, "tensors"):
        made_by.tensors = (None, None, None)


def full_weight(layer: Any) -> Tensor:
    """What a quantised layer's weights stand for, Float[out, in], float32."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    weight = layer.weight
    if type(layer).__name__ == "Linear4bit":
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            raise ModelError("bitsandbytes has put 4-bit weights into its layout for inference: load the model again")
        state = weight.quant_state
        return dequantize_4bit(weight.data, state).float()  # type: ignore[no-any-return]
    # The scales move from the weight to the layer's state at its first pass.
    scales = layer.state.SCB if weight.SCB is None else weight.SCB
    return int8_vectorwise_dequant(weight.data, scales).float()  # type: ignore[no-any-return]


def weight_bytes(model: nn.Module) -> int:
    """Bytes that the parameters take, the scales of quantised ones included; a tied matrix counts once."""
    stored = [*{id(parameter): parameter for parameter in model.parameters()}.values()]
    for layer in quantised_layers(model).values():
        weight = layer.weight
        if type(layer).__name__ == "Linear4bit":
            state = weight.quant_state
            stored += [state.absmax, *([state.state2.absmax] if state.nested else [])]
        else:
            stored.append(layer.state.SCB if weight.SCB is None else weight.SCB)
    return sum(tensor.numel() * tensor.element_size() for tensor in stored)


def check_gradients(model: nn.Module) -> None:
    """Check that each quantised layer hands a gradient on to what comes before it; a plain model passes.

    Where one doesn't, an adapter below learns nothing, or the wrong thing: in a model with residual connections some
    gradient always arrives another way. Raises TrainingError that names the first such layer.
    """
    layers = quantised_layers(model)
    blocked = [name for name, layer in layers.items() if not _hands_on(layer)]
    if blocked:
        raise TrainingError(
            f"no gradient passes through {len(blocked)} of {len(layers)} quantised layers ({blocked[0]}, …): what is "
            "below them would not learn; nothing was updated: train with another version of bitsandbytes, or without "
            "--load"
        )


def _hands_on(layer: Any) -> bool:
    """Whether the gradient of the outputs' sum reaches one token's inputs."""
    bias = layer.bias
    device = layer.weight.device
    dtype = getattr(layer, "compute_dtype", None) or (torch.float32 if bias is None else bias.dtype)
    with torch.enable_grad():
        inputs = torch.ones(1, layer.in_features, device=device, dtype=dtype, requires_grad=True)
        outputs = layer(inputs)
        if not outputs.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(outputs.sum(), inputs, allow_unused=True)
    return gradient is not None and bool(gradient.any())
