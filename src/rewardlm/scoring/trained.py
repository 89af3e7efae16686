"""What ``judge train`` leaves on disk, read back: ``judge.json``, and an adapter merged into its encoder.

Nothing here may be random and judge all the same: a weight that the adapter's file lacks, one that is no number, or an
encoder of another shape ends in one line.
"""

from __future__ import annotations

import importlib.resources
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardlm.errors import ScorerError
from rewardlm.scoring.encoder import locate_encoder, sha256_of

if TYPE_CHECKING:
    import numpy as np

RECORD = "judge.json"
# The judges of texts that this package ships: a reward, and a witness that shares neither texts nor teachers with it.
SHIPPED = ("starter", "witness")
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PROBLEMS = ("multi_label_classification", "single_label_classification")


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A monotone calibration: P ← straight lines between the points (``x``, ``y``), constant beyond the outer ones."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, probabilities: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Float[...] → Float[...]; NaN stays NaN."""
        import numpy as np

        calibrated: np.ndarray[Any, np.dtype[np.float64]] = np.interp(probabilities, self.x, self.y)
        return calibrated


@dataclass(frozen=True, slots=True)
class JudgeRecord:
    """The part of ``judge.json`` that scoring needs; ``kind`` is "text" or "pairs".

    ``layers``: the judge stands on that many of the encoder's lowest layers; None means all of them.
    """

    labels: tuple[str, ...]
    main: str
    problem_type: str
    kind: str
    encoder: str | None
    encoder_revision: str | None
    max_length: int | None
    calibration: Mapping[str, Isotonic]
    layers: int | None = None


def starter_folder(name: str = "starter") -> Path | None:
    """The folder of a judge that this package ships, None where it has none of that name."""
    folder = Path(str(importlib.resources.files("rewardlm"))) / "judges" / name
    return folder if (folder / RECORD).is_file() else None


def judge_folder(name: str) -> Path | None:
    """The folder of the judge that ``--scorer name`` means; None where it has none."""
    source = name if Path(name).is_dir() else name.partition("#")[0]
    if source in SHIPPED:
        return starter_folder(source)
    return Path(source) if Path(source).is_dir() else None


def is_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds an adapter, which needs an encoder beneath it."""
    return (folder / _ADAPTER_CONFIG).is_file()


def read_record(folder: Path) -> JudgeRecord | None:
    """``judge.json`` of ``folder``, None where there is none. Raises ScorerError if it is not what it should be."""
    path = folder / RECORD
    if not path.is_file():
        return None
    found = _read_json(path)
    labels = found.get("labels")
    if not (isinstance(labels, list) and labels and all(isinstance(label, str) and label for label in labels)):
        raise ScorerError(f"{path}: labels are {labels!r:.80}: expected a list of names")
    if len(set(labels)) < len(labels):
        raise ScorerError(f"{path}: two labels have the same name, so none can be chosen by name: {labels}")
    main: Any = found.get("main", labels[0])
    if main not in labels:
        raise ScorerError(f"{path}: main is {main!r}: expected one of the labels {', '.join(labels)}")
    problem_type = found.get("problem_type", _PROBLEMS[0])
    if problem_type not in _PROBLEMS:
        raise ScorerError(f"{path}: problem_type is {problem_type!r}: expected {' or '.join(_PROBLEMS)}")
    max_length = found.get("max_length")
    if max_length is not None and not (isinstance(max_length, int) and max_length >= 3):
        raise ScorerError(f"{path}: max_length is {max_length!r}: expected a number of tokens, 3 or more")
    layers = found.get("encoder_layers")
    if layers is not None and not (type(layers) is int and layers >= 1):
        raise ScorerError(f"{path}: encoder_layers is {layers!r}: expected a number of layers, 1 or more")
    calibration = found.get("calibration") or {}
    if not isinstance(calibration, dict) or not calibration.keys() <= set(labels):
        raise ScorerError(f"{path}: calibration is of {list(calibration)!r:.80}: expected labels of the judge")
    return JudgeRecord(
        labels=tuple(labels),
        main=main,
        problem_type=problem_type,
        kind=found.get("kind", "text"),
        encoder=found.get("encoder"),
        encoder_revision=found.get("encoder_revision"),
        max_length=max_length,
        calibration={label: _isotonic(path, label, entry) for label, entry in calibration.items()},
        layers=layers,
    )


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
    base = _read_json(folder / _ADAPTER_CONFIG).get("base_model_name_or_path") or record.encoder
    if not isinstance(base, str):
        raise ScorerError(f"{folder / _ADAPTER_CONFIG} names no base model: train the judge again")
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
    lowest = {} if record.layers is None else {"num_hidden_layers": record.layers}
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
    """``model`` with the adapter in its weights; all that was random in it must have come from the adapter."""
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
    # Of a module that is saved whole, the adapter's file has the names that the encoder has.
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


def _isotonic(path: Path, label: str, entry: Any) -> Isotonic:
    where = f"{path}: calibration of {label}"
    if not isinstance(entry, dict) or entry.get("kind") != "isotonic":
        kind = entry.get("kind") if isinstance(entry, dict) else entry
        raise ScorerError(f"{where} is {kind!r:.40}: expected isotonic; others are folded into the head")
    x: Any = entry.get("x")
    y: Any = entry.get("y")
    for name, values in (("x", x), ("y", y)):
        if not isinstance(values, list) or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
            raise ScorerError(f"{where}: {name} is {values!r:.60}: expected a list of numbers")
        if not all(0 <= v <= 1 for v in values):
            raise ScorerError(f"{where}: {name} leaves [0, 1], so it is no map of probabilities")
    if len(x) != len(y) or not x:
        raise ScorerError(f"{where} has {len(x)} x and {len(y)} y: expected as many, one at least")
    if any(b <= a for a, b in pairwise(x)) or any(b < a for a, b in pairwise(y)):
        raise ScorerError(f"{where} is not monotone: x must rise and y must never fall")
    return Isotonic(tuple(map(float, x)), tuple(map(float, y)))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScorerError(f"can't read {path} ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(found, dict):
        raise ScorerError(f"{path} holds a {type(found).__name__}: expected an object")
    return found


@contextmanager
def _silent() -> Iterator[None]:
    """Without the libraries' reports of weights that are missing: here it is checked, and an error."""
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
