"""The transformer under a causal LM's head: one pass through it, and how the architectures of transformers differ.

``models`` and ``fastpath`` use private names of transformers only through this module.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Iterator
from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import DynamicCache, DynamicLayer
from transformers.cache_utils import DynamicSlidingWindowLayer


def trunk_states(
    body: Any, tokens: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B S"], positions: Int[Tensor, "B T"], cache: Any
) -> Float[Tensor, "B T H"]:
    """The trunk's last states for ``tokens``, read after what ``cache`` holds. They are added to it; S counts both.

    ``cache`` None: nothing comes before them, and nothing is kept.
    """
    arguments = {
        "input_ids": tokens,
        "attention_mask": attention_mask,
        cache_argument(body): cache,
        "use_cache": cache is not None,
    }
    if takes_positions(body):  # ALiBi models (Bloom) have none; their biases come from the mask.
        arguments["position_ids"] = positions
    states: Tensor = body(**arguments)[0]
    return states


def takes_positions(body: Any) -> bool:
    """Whether a pass through ``body`` can be told its tokens' positions."""
    return "position_ids" in inspect.signature(body.forward).parameters


def cache_argument(body: Any) -> str:
    """The name of ``body``'s argument for the cache, which transformers 5.24 renamed."""
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"


def has_window(config: Any) -> bool:
    """Whether some layers see only a limited number of positions back."""
    text = config.get_text_config()
    return any(getattr(text, name, None) for name in ("sliding_window", "window_size", "attention_chunk_size"))


def scales_by_length(config: Any) -> bool:
    """Whether rotary positions are scaled by the length of the pass, for which a module keeps the last one's."""
    text = config.get_text_config()
    rotary = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    # Some families have one for each kind of layer.
    kinds = [rotary, *(kind for kind in rotary.values() if isinstance(kind, dict))]
    return any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)


def keeps_keys_and_values(config: Any) -> bool:
    """Whether all layers cache keys and values of what they have read, and nothing else.

    A state that is carried along (Mamba's, a short convolution's) can't be cut, repeated or padded as these can.
    """
    return {type(layer) for layer in DynamicCache(config=config).layers} <= {DynamicLayer, DynamicSlidingWindowLayer}


def looks_attention_up(body: Any, *, now: str = "sdpa") -> bool:
    """Whether ``body`` looks its attention up by name, so that another can be put in the place of torch's kernel. A
    pass in another thread may have put the one named ``now`` there meanwhile."""
    return bool(getattr(body, "_supports_attention_backend", False)) and (
        body.config._attn_implementation in ("sdpa", now)
    )


def drops_out(model: nn.Module) -> bool:
    """Whether ``model`` in training mode leaves some numbers out at random, in its own modules or in an adapter's.

    Some families keep the dropout share in a module, others as a number that only their configuration names.
    """
    config = cast(Any, model).config.to_dict()
    # Dropout in front of a classifier is not part of a causal LM.
    shares = [config[name] for name in config if "drop" in name and not name.startswith(("classifier", "summary"))]
    shares += [module.p for module in model.modules() if isinstance(module, _DropoutNd)]
    return any(isinstance(share, float | int) and share > 0 for share in shares)


@contextlib.contextmanager
def attending(body: Any, name: str) -> Iterator[None]:
    """Inside, ``body`` uses the attention function that is registered with transformers as ``name``. "eager" is the one
    that shows its attention weights; fused kernels never form them.

    All threads that run ``body`` meanwhile use it. They may be in such a block too, for the same function: the last one
    that leaves puts the former function back.
    """
    config = body.config
    with _switching:
        before, blocks = _switched.get((id(config), name), (config._attn_implementation, 0))
        _switched[id(config), name] = before, blocks + 1
        config._attn_implementation = name
    try:
        yield
    finally:
        with _switching:
            _, blocks = _switched.pop((id(config), name))
            if blocks > 1:
                _switched[id(config), name] = before, blocks - 1
            else:
                config._attn_implementation = before


_switching = threading.Lock()
# Of configurations (by id) whose attention is another one now: by its name, the former one, and how many blocks last.
_switched: dict[tuple[int, str], tuple[str, int]] = {}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, no module drops anything out; afterwards each is in its former mode again."""
    learning = [module for module in model.modules() if module.training]
    try:
        for module in learning:
            module.training = False
        yield
    finally:
        for module in learning:
            module.training = True
