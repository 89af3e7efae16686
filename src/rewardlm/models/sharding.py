"""A base that is too large for one device, its layers divided between the processes of a machine (FSDP2).

A layer's weights are gathered while it runs and let go afterwards, forwards and backwards, so a device holds its share
of all layers and one or two whole ones. The base is frozen, so nothing of it is ever sent to another machine: each has
all of it. Adapters, embeddings, the last norm and the head stay whole everywhere: they are small, and are used outside
of any layer's pass. So a machine's processes must make each pass through the model together: see ``in_step``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from rewardlm.config import TrainingSettings
from rewardlm.errors import ConfigError, ModelError, RewardLMError
from rewardlm.models.load import Policy, load_policy, resolve_device, resolve_dtype
from rewardlm.models.logprobs import body_and_head
from rewardlm.models.processes import Processes

T = TypeVar("T")

# What a process is about to do; the highest counts.
_NOTHING, _READ, _LEARN = range(3)


def load_for(settings: TrainingSettings, processes: Processes, put_on: Callable[[Policy], T]) -> tuple[Policy, T]:
    """The policy on this process's device, and what ``put_on`` returns, which puts its adapters on. With
    ``settings.shard`` its layers are divided between a machine's processes.

    Until it is divided, the whole base lies in main memory, in one process of a machine at a time. Raises ConfigError
    where there is only one process to divide it between, or the base is quantised.
    """
    device = resolve_device(processes.device or settings.device)
    if not settings.shard:
        policy = load_policy(settings.model_copy(update={"device": str(device)}))
        return policy, put_on(policy)
    if _local("WORLD_SIZE") == 1:
        raise ConfigError(
            "shard=true divides the base between a machine's processes: start several (torchrun, accelerate launch)"
        )
    if settings.load is not None:
        raise ConfigError(f"shard=true with --load {settings.load}: quantised weights can't be divided; leave one out")
    dtype = str(resolve_dtype(settings.dtype, device)).removeprefix("torch.")
    whole = settings.model_copy(update={"device": "cpu", "dtype": dtype})
    loaded: list[tuple[Policy, T]] = []

    def load() -> None:
        policy = load_policy(whole)
        policy.device = device
        # PEFT takes a layer's size from the weights that it sees, so they are whole until here.
        loaded.append((policy, put_on(policy)))
        _divide(policy)

    for turn in range(_local("WORLD_SIZE")):
        processes.each(load if turn == _local("RANK") else lambda: None)
    _first_pass(loaded[0][0])
    return loaded[0]


def divided_names(model: nn.Module) -> list[str]:
    """The names of the parameters that no process has whole."""
    return [name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)]


@contextmanager
def in_step(policy: Policy) -> Iterator[None]:
    """Inside, a machine's processes may make different numbers of passes through a divided model, each forwards alone
    or forwards and then backwards. A process that leaves early keeps stepping on a padding token until all have left.

    Nothing happens where the model isn't divided. After an error that is no RewardLMError the processes are out of
    step, and the launcher has to end them.
    """
    body: nn.Module = body_and_head(policy.causal_lm)[0]
    weights = [parameter for parameter in body.parameters() if isinstance(parameter, DTensor)]
    if not weights:
        yield
        return
    device = policy.device
    group = weights[0].device_mesh.get_group()

    def announce(what: int) -> torch.Tensor:
        """The highest of what all are about to do, Int[1]; a process that makes a pass doesn't wait for it."""
        highest = torch.tensor([what], device=device)
        torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX, group=group)
        return highest

    def before_a_pass(*_: object) -> None:
        announce(_LEARN if torch.is_grad_enabled() else _READ)

    hook = body.register_forward_pre_hook(before_a_pass, prepend=True)
    error: RewardLMError | None = None
    try:
        yield
    except RewardLMError as raised:
        error = raised
    finally:
        hook.remove()
    while (what := int(announce(_NOTHING))) != _NOTHING:
        _run_along(body, device, learning=what == _LEARN)
    if error is not None:
        raise error


def _run_along(body: nn.Module, device: torch.device, *, learning: bool) -> None:
    with torch.set_grad_enabled(learning):
        states = body(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))[0]
        if learning:
            states.backward(torch.zeros_like(states))


def _divide(policy: Policy) -> None:
    """Layer by layer, so that the device never holds more than a whole layer and its share of the others."""
    body, _ = body_and_head(policy.causal_lm)
    here = _local("WORLD_SIZE")
    machines = torch.distributed.get_world_size() // here
    mesh = init_device_mesh(policy.device.type, (machines, here), mesh_dim_names=("machines", "here"))["here"]
    for layer in _layers(policy):
        adapters = {parameter for name, parameter in layer.named_parameters() if "lora_" in name}
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=adapters)
    # The trunk itself is not divided. Wrapped, it lets the layers know of each other: one is gathered as another runs.
    whole = {parameter for parameter in body.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(body, mesh=mesh, ignored_params=whole)
    policy.model.to(policy.device)


def _layers(policy: Policy) -> nn.ModuleList:
    body, _ = body_and_head(policy.causal_lm)
    n_layers = policy.causal_lm.config.get_text_config().num_hidden_layers
    for module in body.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return module
    raise ModelError(f"{policy.spec} ({type(body).__name__}) has no list of {n_layers} layers to divide: not supported")


@torch.no_grad()
def _first_pass(policy: Policy) -> None:
    # The buffers that layers are gathered in are made now: made in inference mode, they would let no gradient through.
    _run_along(body_and_head(policy.causal_lm)[0], policy.device, learning=False)


def _local(what: str) -> int:
    """RANK or WORLD_SIZE among this machine's processes, as the launcher set them."""
    return int(os.environ.get(f"LOCAL_{what}", {"RANK": "0", "WORLD_SIZE": "1"}[what]))
