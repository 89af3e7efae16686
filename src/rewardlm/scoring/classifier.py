"""Any Hugging Face sequence classifier as a judge, with its own tokenizer, from the hub or a folder.

Two things are guarded: the *label* is chosen by name, because index 1 is "toxic" in one model and
"not toxic" in the next, and the *weights* are safetensors that fill the whole network, because a
classification head that is missing from the file would be random and judge all the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewardlm.errors import ScorerError
from rewardlm.types import Verdict

# Names that mean "toxic" in published classifiers, lower-cased, with blanks for - and _. Whole names only:
# "nothate", "non toxic" and "severe toxic" must not match.
TOXIC_NAMES = frozenset(
    {
        "toxic",
        "toxicity",
        "hate",
        "hateful",
        "hate speech",
        "hatespeech",
        "offensive",
        "offensive language",
        "abuse",
        "abusive",
        "profane",
        "profanity",
        "harmful",
        "unsafe",
    }
)
_TOKEN_BUDGET = 4096  # padded tokens a forward pass: some tens of MB of activations for a base-size encoder
_LONGEST_WITHOUT_LIMIT = 512  # for a tokenizer and a model that both state no maximum


class ClassifierScorer:
    """P(label) by the sequence classifier ``ID`` or ``ID#label``; fp32, evaluation mode, no gradients.

    A multi-label model returns all its labels (a sigmoid each), the main one first; a single-label model
    returns the chosen label's softmax share alone, since the others aren't degrees of toxicity; a model
    with one output returns its sigmoid as "toxicity". ``truncated`` counts texts longer than the model
    takes (they are cut at the end); ``revision`` is the hub commit, or the SHA-256 of a folder's weights.

    Raises ScorerError if the model can't be loaded, has no safetensors, has weights missing, or its
    label is ambiguous.
    """

    def __init__(self, spec: str, *, device: str = "cpu") -> None:
        self.name = spec
        source, label = split_label(spec)
        config, self._tokenizer, self._model, self.revision = _load(source)
        names = [config.id2label[i] for i in range(config.num_labels)]
        main = choose_label(source, names, label)
        if config.num_labels > 1 and config.problem_type == "regression":
            raise ScorerError(f"{source} is a regression with {config.num_labels} outputs: not probabilities")
        self._sigmoid = config.num_labels == 1 or config.problem_type == "multi_label_classification"
        if config.num_labels == 1:
            self._columns = {"toxicity": 0}
        elif self._sigmoid:
            order = [main, *(i for i in range(len(names)) if i != main)]
            self._columns = {names[i]: i for i in order}
        else:
            self._columns = {names[main]: main}
        self.labels = tuple(self._columns)
        self.truncated = 0
        self.max_length = _max_length(self._tokenizer, self._model)
        self._device = device
        if self._tokenizer.pad_token_id is not None and config.pad_token_id is None:
            # A decoder finds its last real token by this id.
            self._model.config.pad_token_id = self._tokenizer.pad_token_id
        self._model.to(device).eval()

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        import torch

        encoded = self._encode(texts)
        verdicts: list[Verdict] = [Verdict()] * len(texts)
        for batch in self._batches([len(row["input_ids"]) for row in encoded]):
            # A tokenizer that can't pad gets batches of one text.
            rows = [encoded[i] for i in batch]
            if len(rows) > 1:
                inputs = dict(self._tokenizer.pad(rows, return_tensors="pt"))
            else:
                inputs = {key: torch.tensor([value]) for key, value in rows[0].items()}
            with torch.inference_mode():
                logits = self._model(**{k: v.to(self._device) for k, v in inputs.items()}).logits.float()
                probabilities = logits.sigmoid() if self._sigmoid else logits.softmax(-1)
            for i, row in zip(batch, probabilities.tolist(), strict=True):
                verdicts[i] = Verdict({name: row[column] for name, column in self._columns.items()})
        return verdicts

    def _encode(self, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        """Token ids and masks a text. Special tokens that a text spells out ("[SEP]") are plain text."""
        options: dict[str, Any] = {"split_special_tokens": True, "verbose": False}
        rows = []
        for text in texts:
            row = self._tokenizer(text, **options)
            if len(row["input_ids"]) > self.max_length:
                self.truncated += 1
                row = self._tokenizer(text, truncation=True, max_length=self.max_length, **options)
            rows.append(dict(row))
        return rows

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of texts of like length, longest first: little padding, and memory peaks at once."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        batches: list[list[int]] = []
        for i in order:
            longest = lengths[batches[-1][0]] if batches else 0
            fits = batches and longest * (len(batches[-1]) + 1) <= _TOKEN_BUDGET
            if fits and self._tokenizer.pad_token_id is not None:
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches


def split_label(spec: str) -> tuple[str, str | None]:
    """``ID#label`` as (ID, label); a folder whose own name holds a # is taken whole."""
    if os.path.isdir(spec) or "#" not in spec:
        return spec, None
    source, _, label = spec.rpartition("#")
    return source, label


def choose_label(source: str, names: Sequence[str], wanted: str | None) -> int:
    """The index of the main label: the one named, or the only one whose name says toxic.

    A model with one output may be named ``#toxicity`` whatever its label is called: who writes it vouches
    that this output rises with toxicity. Raises ScorerError that lists the labels.
    """
    listed = f"{source} has the labels {', '.join(map(repr, names))}"
    if len(set(names)) < len(names):
        raise ScorerError(f"{listed}: two have the same name, so none can be chosen by name")
    if wanted is not None:
        if wanted in names:
            return names.index(wanted)
        found = [i for i, name in enumerate(names) if name.lower() == wanted.lower()]
        if len(names) == 1 and wanted == "toxicity":
            found = [0]
        if len(found) != 1:
            raise ScorerError(f"{listed}, not {wanted!r}: write ID#label with one of them")
        return found[0]
    plain = [" ".join(name.lower().replace("_", " ").replace("-", " ").split()) for name in names]
    found = [i for i, name in enumerate(plain) if name in TOXIC_NAMES]
    if len(found) == 1:
        return found[0]
    if len(names) == 1:
        raise ScorerError(f"{listed} alone: write {source}#toxicity if higher is more toxic")
    which = "more than one of which means" if found else "none of which is known to mean"
    raise ScorerError(f"{listed}, {which} toxic: write ID#label, for example {source}#{names[-1]}")


def _load(source: str) -> tuple[Any, Any, Any, str | None]:
    """Config, tokenizer, model on the CPU in float32, and revision."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    folder = Path(source) if os.path.isdir(source) else None
    weights = sorted(folder.glob("model*.safetensors")) if folder else []
    if folder:
        if not (folder / "config.json").is_file():
            raise ScorerError(f"{source} is not a classifier: it has no config.json")
        if not weights:
            raise ScorerError(
                f"{source} has no model.safetensors: pickled weights (.bin, .pt) are refused; "
                "save the model again with save_pretrained"
            )
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        commit = getattr(config, "_commit_hash", None)
        # One commit for all three parts; it also keeps transformers from asking the hub to convert a pickle.
        pinned: dict[str, Any] = {"trust_remote_code": False}
        if folder is None and commit:
            pinned["revision"] = commit
        tokenizer = AutoTokenizer.from_pretrained(source, **pinned)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **pinned,
        )
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise ScorerError(
            f"can't load the classifier {source} ({type(error).__name__}: {first_line}): expected a folder "
            "or hub id of a sequence classifier with its tokenizer and safetensors weights"
        ) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ScorerError(
            f"{source} lacks weights of its classifier, {len(missing)} in all ({', '.join(missing[:3])}): "
            "they would be random; is it a base model that was never trained to classify?"
        )
    return config, tokenizer, model, _sha256(weights) if folder else commit


def _sha256(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _max_length(tokenizer: Any, model: Any) -> int:
    """The longest input in tokens, special ones included, that both tokenizer and model take."""
    import torch

    limits = []
    if tokenizer.model_max_length < 1 << 24:  # transformers writes 1e30 for "not stated"
        limits.append(tokenizer.model_max_length)
    if getattr(model.config, "max_position_embeddings", None):
        limits.append(model.config.max_position_embeddings)
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from pad + 1 on, so the table has that many rows to spare.
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            spare = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - spare)
    return min(limits, default=_LONGEST_WITHOUT_LIMIT)
