"""Loads an adapter that ``judge train`` wrote, and merges it into its encoder.

No random weight may judge. A weight that the adapter's file lacks, one that is not a number, or an encoder of another
shape ends in a one-line error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rewardlm.errors import ScorerError
from rewardlm.scoring.encoder import locate_encoder, public_name, require_encoder, sha256_of
from rewardlm.scoring.record import JudgeRecord, read_json

_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds an adapter, which needs an encoder beneath it."""
    return (folder / _ADAPTER_CONFIG).is_file()


def require_base(folder: Path, record: JudgeRecord) -> str:
    """The encoder that the adapter in ``folder`` names as its base. Loads nothing.

    Raises ScorerError where it names none, or that one is neither installed nor on a hub within reach.
    """
    base = read_json(folder / _ADAPTER_CONFIG).get("base_model_name_or_path") or record.encoder
    if not isinstance(base, str):
        raise ScorerError(f"{folder / _ADAPTER_CONFIG} names no base model: train the judge again")
    what = f"the encoder {public_name(base)} of {folder}"
    require_encoder(base, what=what, instead="a folder that holds it", error=ScorerError)
    return base


def load_adapter(folder: Path, record: JudgeRecord) -> tuple[Any, Any, Any, str]:
    """Config, tokenizer, model on the CPU in float32 with the adapter merged into it, and revision.

    The encoder is the one that the adapter names as its base. The revision is the SHA-256 of the adapter's weights, @,
    and the commit of the encoder, or the SHA-256 of its weights where it is a folder. Raises ScorerError if the files
    can't be read, are pickles, don't fit the encoder, or leave a weight random or not a number.
    """
    weights = folder / _ADAPTER_WEIGHTS
    if not weights.is_file():
        raise ScorerError(
            f"{folder} has no {_ADAPTER_WEIGHTS}: pickled adapters (.bin) are refused; save it again with "
            "save_pretrained"
        )
    base = require_base(folder, record)
    source, revision = locate_encoder(base)
    revision = revision or (record.encoder_revision if not Path(source).is_dir() else None)
    _refuse_pickles(source)
    try:
        config, tokenizer, model, random = _base_with_new_head(folder, source, revision, record)
        merged = _merge(folder, weights, model, random)
    except ScorerError:
        raise
    except Exception as error:  # Damaged files make the parsers raise types of their own.
        raise ScorerError(
            f"can't load the judge {folder} on the encoder {base} ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}): expected the adapter of a sequence classifier and the encoder "
            "that it was trained on"
        ) from error
    if Path(source).is_dir() and revision is None:
        revision = sha256_of(sorted(Path(source).glob("*.safetensors")))
    return config, tokenizer, merged, f"{sha256_of([weights])}@{revision or config._commit_hash}"


def _base_with_new_head(
    folder: Path, source: str, revision: str | None, record: JudgeRecord
) -> tuple[Any, Any, Any, set[str]]:
    """Config, tokenizer and encoder with a head for the record's labels, and the names of its random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    pinned = {"revision": revision, "trust_remote_code": False}
    lowest = {} if record.encoder_layers is None else {"num_hidden_layers": record.encoder_layers}
    config = AutoConfig.from_pretrained(
        source,
        **lowest,
        id2label=dict(enumerate(record.labels)),
        label2id={label: number for number, label in enumerate(record.labels)},
        problem_type=record.problem_type,
        **pinned,
    )
    own = (folder / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False) if own else None
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(source, **pinned)
    with _silent():
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            # An encoder may bring a head for other labels: the adapter's replaces it, which is checked below.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **pinned,
        )
    return config, tokenizer, model, {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}


def _merge(folder: Path, weights: Path, model: Any, random: set[str]) -> Any:
    """``model`` with the adapter merged into its weights. Every weight that was random must come from the adapter."""
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import load_file

    stored = load_file(weights)
    broken = sorted(name for name, tensor in stored.items() if not tensor.isfinite().all())
    if broken:
        raise ScorerError(f"{weights}: {len(broken)} tensors are not finite ({broken[0]}): train the judge again")
    # peft warns of what is missing and goes on: the comparison below refuses it.
    with _silent():
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    # For a module that is saved whole, the adapter's file uses the encoder's own names.
    lacking = sorted((wanted - stored.keys()) | {name for name in random if f"base_model.model.{name}" not in stored})
    if lacking:
        raise ScorerError(
            f"{folder} lacks weights of its classifier, {len(lacking)} in all ({', '.join(lacking[:3])}): they would "
            "be random; was the head saved with the adapter (modules_to_save)?"
        )
    foreign = sorted(stored.keys() - wanted)
    if foreign:
        raise ScorerError(
            f"{folder} has {len(foreign)} weights that its encoder has no place for ({foreign[0]}): it was trained on "
            "another one"
        )
    return adapted.merge_and_unload()


def _refuse_pickles(source: str) -> None:
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ScorerError(f"the encoder {source} has no safetensors: pickled weights (.bin, .pt) are refused")


@contextmanager
def _silent() -> Iterator[None]:
    """Silence the libraries' reports of missing weights: here they are checked, and an error."""
    import warnings

    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
