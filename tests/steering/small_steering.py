"""Requests, answers and naive references that the tests of this folder share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from small_models import tiny_policy

from rewardlm.config import GenerationSettings, LoraSettings, SteerFitSettings
from rewardlm.models.generate import Sampled, stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.lora import adapter_hash, add_lora, save_adapter
from rewardlm.steering.folder import SteerFolder, fitted_on
from rewardlm.steering.record import SteerJudge, SteerRecord
from rewardlm.steering.steered import Drawing, Steering
from rewardlm.types import Message

QUESTIONS = [
    "Hi",
    "Why do people say that they should all go back to where they came from?",
    "Who?",
    "Hi",
    "Tell me a story about a small town, its river, and the two families who could not agree on the bridge.",
]
GREEDY = GenerationSettings(temperature=0)
VECTOR = torch.randn(64, generator=torch.Generator().manual_seed(11))
BASIS = torch.linalg.qr(torch.randn(64, 2, generator=torch.Generator().manual_seed(12))).Q


def answered(
    policy: Policy,
    steering: Steering,
    strengths: Sequence[float],
    *,
    n: int = 8,
    sampling: GenerationSettings | None = None,
    questions: Sequence[str] = QUESTIONS,
    **more: Any,
) -> list[Sampled]:
    """An answer to each question, at the strength of its place."""
    with steering.on(policy) as steered:
        requests = [
            steered.request([Message("user", text)], stream_seed("test", row), strength, 400)[0]
            for row, (text, strength) in enumerate(zip(questions, strengths, strict=True))
        ]
        drawing = Drawing(n, sampling or GenerationSettings(), **more)
        found = sorted(steered.answers(requests, drawing), key=lambda answer: answer.index)
    assert [answer.index for answer in found] == list(range(len(questions)))
    return found


def prompts_of(policy: Policy, questions: Sequence[str] = QUESTIONS) -> list[list[int]]:
    return [policy.chat.encode_prompt([Message("user", text)]) for text in questions]


def greedy(logits_of: Callable[[list[int], int], torch.Tensor], prompt: Sequence[int], n: int, ends: Any) -> list[int]:
    """Greedy decoding without cache, batch or padding; ``logits_of(tokens, start)`` gives the next token's."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(logits_of(tokens, len(prompt)).argmax()))
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :]


@contextlib.contextmanager
def changed_inputs(module: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """A hook of the test's own, which knows nothing of ``rewardlm.stream``."""

    def hook(_module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def state_of(policy: Policy) -> dict[str, Any]:
    """All that a steering may not leave behind."""
    hooks = [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks), type(module).__name__, module.training)
        for name, module in policy.causal_lm.named_modules()
    ]
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([[1, 300, 301, 302, 2, 17, 900]])).logits.clone()
    return {
        "hooks": hooks,
        "weights": {name: tensor.clone() for name, tensor in policy.model.state_dict().items()},
        "learns": {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad},
        "logits": logits,
        "guide": policy.guide,
        "chat": policy.chat,
        "model": type(policy.model),
        "adapters": sorted(getattr(policy.model, "peft_config", {})),
    }


def assert_unchanged(policy: Policy, before: dict[str, Any]) -> None:
    after = state_of(policy)
    assert {key: value for key, value in after.items() if key not in ("weights", "logits")} == {
        key: value for key, value in before.items() if key not in ("weights", "logits")
    }
    assert torch.equal(after["logits"], before["logits"])
    assert after["weights"].keys() == before["weights"].keys()
    assert all(torch.equal(after["weights"][name], tensor) for name, tensor in before["weights"].items())


def saved_adapter(make: Callable[[], Policy], folder: Path, seed: int, size: float = 0.1) -> Path:
    """A LoRA adapter for the model that ``make`` makes, with weights that do something."""
    policy = make()
    add_lora(policy, LoraSettings(r=4, alpha=8), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(policy.model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    save_adapter(policy.model, folder)
    return folder


def folder_of(method: str, adapters: Callable[[str], Path]) -> SteerFolder:
    """A steer folder as ``steer fit`` makes it, for tiny."""
    name = {"ablation": "activation", "gated": "activation"}.get(method, method)
    settings: dict[str, Any] = {"model": "tiny", "method": name}
    if name in ("activation", "profs", "pplm"):
        settings["run"] = "nowhere"
    if method == "dexperts":
        settings["dexperts"] = {"expert": "a", "anti_expert": "b"}
    if method == "task-vector":
        settings["task_vector"] = {"toxic_adapter": "b"}
    if method in ("ablation", "gated"):
        settings["activation"] = {"how": {"ablation": "ablate", "gated": "gated"}[method]}
    own = SteerFitSettings.model_validate(settings).of_method()
    tensors = {
        "activation": {"vector.1": VECTOR},
        "ablation": {"direction": VECTOR},
        "gated": {"vector.1": VECTOR, "probe.1.weight": VECTOR, "probe.1.bias": torch.zeros(1)},
        "profs": {"basis.1": BASIS},
        "pplm": {"head.weight": VECTOR, "head.bias": torch.zeros(1)},
    }.get(method, {})
    named = {"dexperts": ("expert", "anti_expert"), "task-vector": ("toxic",)}.get(method, ())
    record = SteerRecord(
        method=name,
        strength=2.0,
        model=fitted_on(tiny_policy()),
        settings=own,
        judges=[SteerJudge(name="lexical", labels=["toxicity"])] if method in ("best-of-n", "rejection") else [],
        adapters={one: {"path": str(adapters(one)), "hash": adapter_hash(adapters(one))} for one in named},
    )
    return SteerFolder(record, tensors)
