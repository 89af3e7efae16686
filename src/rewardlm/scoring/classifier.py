"""Any Hugging Face sequence classifier as a judge, from the hub or a folder, and the judges that are trained here.

Two things are guarded: the *label* is chosen by name, because index 1 is "toxic" in one model and
"not toxic" in the next, and the *weights* are safetensors that fill the whole network, because a
classification head that is missing from the file would be random, and would still judge.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import copy, deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rewardlm import hub
from rewardlm.errors import ScorerError
from rewardlm.scoring.adapter import is_adapter, load_adapter
from rewardlm.scoring.encoder import sha256_of
from rewardlm.scoring.record import JudgeRecord, judge_folder, read_record
from rewardlm.types import Verdict

if TYPE_CHECKING:
    import numpy as np

# Names that mean "toxic" in published classifiers, lower-cased, with spaces for - and _. Whole names only:
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
# What works without the hub.
OFFLINE = "the judges starter, witness and lexical, a folder of a classifier"
# Padded tokens per forward pass: enough to keep the cores busy, few enough for their caches.
_TOKEN_BUDGET = 2048
# In bf16 with AMX, batches with a number of tokens between these two are padded to the larger one for long sums. Maps
# with more than _LARGE inputs and outputs take _FEW tokens at a time: there the order depends on the threads, too.
_FEW, _MANY, _LARGE = 32, 512, 384
# Special tokens that a text spells out ("[SEP]") are plain text.
_PLAIN: dict[str, Any] = {"split_special_tokens": True, "verbose": False}
_LONGEST_WITHOUT_LIMIT = 512  # for a tokenizer and a model that both state no maximum


class ClassifierScorer:
    """P(label) by the sequence classifier ``ID`` or ``ID#label``; evaluation mode, no gradients.

    A multi-label model returns all its labels (a sigmoid each), the main one first; a single-label model
    returns the chosen label's softmax share alone, since the others aren't degrees of toxicity; a model
    with one output returns its sigmoid as "toxicity", or under the name in its ``judge.json``. A folder's
    ``judge.json``, and the judges that the package ships, bring the main label, the longest input and the
    calibration with them. Texts longer than that are cut at the end; ``cuts`` says which. ``revision`` is the
    hub commit, or the SHA-256 of a folder's weights; for an adapter that of the adapter, @, and that of its
    encoder.

    ``precision`` "auto" is fp32, except for judges with a ``judge.json`` on a CPU that multiplies in bf16.
    There all layers but the last multiply in bf16, which moves P by less than 0.01 and takes half the time.
    In either precision, the other texts in a call move a text's score by less than 1e-5.

    Raises ScorerError if the model can't be loaded, has no safetensors, has weights missing, or its
    label is ambiguous.
    """

    def __init__(
        self, spec: str, *, device: str = "cpu", precision: Literal["auto", "float32", "bfloat16"] = "auto"
    ) -> None:
        self.name = spec
        source, label = split_label(spec)
        folder = judge_folder(source)
        record = read_record(folder) if folder is not None else None
        with (
            nullcontext()
            if folder is not None
            else hub.access(source, what=f"the judge {source}", instead=OFFLINE, error=ScorerError)
        ):
            config, self._tokenizer, self._model, self.revision = _load(source, folder, record)
        self._source = source
        self._names = [config.id2label[i] for i in range(config.num_labels)]
        main = choose_label(source, self._names, label or (record.main if record is not None else None))
        if config.num_labels > 1 and config.problem_type == "regression":
            raise ScorerError(f"{source} is a regression with {config.num_labels} outputs: not probabilities")
        self._sigmoid = config.num_labels == 1 or config.problem_type == "multi_label_classification"
        if config.num_labels == 1:
            self._columns = {"toxicity" if record is None else record.main: 0}
        elif self._sigmoid:
            order = [main, *(i for i in range(len(self._names)) if i != main)]
            self._columns = {self._names[i]: i for i in order}
        else:
            self._columns = {self._names[main]: main}
        self.labels = tuple(self._columns)
        calibration = record.calibration if record is not None else {}
        self._calibration = {self._names.index(name): found for name, found in calibration.items()}
        self.max_length = _max_length(self._tokenizer, self._model)
        if record is not None and record.max_length is not None:
            self.max_length = min(self.max_length, record.max_length)
        self._device = device
        if self._tokenizer.pad_token_id is not None and config.pad_token_id is None:
            # A decoder finds its last real token by this id.
            self._model.config.pad_token_id = self._tokenizer.pad_token_id
        self._model.to(device).eval()
        lower = precision == "bfloat16" or (precision == "auto" and record is not None and _multiplies_in_bf16(device))
        self.precision = "bfloat16" if lower and _use_bf16(self._model) else "float32"
        # transformers' own attention adds up in another order for one text alone than for several. In fp32 that is
        # nothing, but where the next layer rounds to bf16, P would move by a thousandth.
        self._never_alone = self.precision == "bfloat16" and self._model.config._attn_implementation == "eager"

    def also(self, label: str | None) -> str:
        """Have verdicts hold ``label`` too (only a single-label model's lack it), and return its exact name.

        None is the main label. Raises ScorerError as the choice of a main label does.
        """
        if label is None or len(self._names) == 1:
            return self.labels[0]
        index = choose_label(self._source, self._names, label)
        self._columns.setdefault(self._names[index], index)
        self.labels = tuple(self._columns)
        return str(self._names[index])

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        import numpy as np

        rows = self._encode(texts)
        probabilities = np.empty((len(rows), len(self._names)))
        for batch, width in self._batches([len(row["input_ids"]) for row in rows]):
            probabilities[batch] = self._forward([rows[i] for i in batch], width)
        for column, calibration in self._calibration.items():
            probabilities[:, column] = calibration.curve(probabilities[:, column])
        return [Verdict({name: row[i] for name, i in self._columns.items()}) for row in probabilities.tolist()]

    def twin(self) -> ClassifierScorer:
        """The same judge for another thread, to be used at the same time, with the same weights in memory.

        Tokenizer and modules are its own: a tokenizer keeps how it cuts, and some models set switches in themselves
        for a text's length. So are the buffers that a model keeps for itself, such as frequencies of its positions.
        """
        twin = copy(self)
        twin._tokenizer = deepcopy(self._tokenizer)
        weights = self._model.state_dict(keep_vars=True).values()
        twin._model = deepcopy(self._model, {id(weight): weight for weight in weights})
        return twin

    def cuts(self, texts: Sequence[str]) -> list[bool]:
        """For each text, whether it is longer than the model takes."""
        if not texts:
            return []
        return [len(ids) > self.max_length for ids in self._tokenizer(list(texts), **_PLAIN)["input_ids"]]

    def _encode(self, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        """Token ids and masks of each text. One call for all costs half as much as one call per text."""
        if not texts:
            return []
        found = self._tokenizer(list(texts), truncation=True, max_length=self.max_length, **_PLAIN)
        return [{key: values[i] for key, values in found.items()} for i in range(len(texts))]

    def _batches(self, lengths: Sequence[int]) -> list[tuple[list[int], int]]:
        """Indices of texts of similar length and the width that they are padded to, longest first.

        The width follows from a text's own length, not from its neighbours', so its score doesn't depend on them
        beyond the rounding of fp32. A tokenizer that can't pad gets batches of one text.
        """
        if self._tokenizer.pad_token_id is None:
            return [([i], length) for i, length in enumerate(lengths)]
        groups: dict[int, list[int]] = {}
        for i, length in enumerate(lengths):
            groups.setdefault(min(_width(length), self.max_length), []).append(i)
        batches = []
        for width in sorted(groups, reverse=True):
            group, size = groups[width], max(1, _TOKEN_BUDGET // width)
            batches += [(group[start : start + size], width) for start in range(0, len(group), size)]
        return batches

    def _forward(self, rows: list[dict[str, list[int]]], width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """P(label) before calibration, Float[B, L]."""
        import torch

        if len(rows) == 1 and self._never_alone:
            return self._forward([*rows, *rows], width)[:1]
        if self._tokenizer.pad_token_id is None:
            inputs = {key: torch.tensor([value]) for key, value in rows[0].items()}
        else:
            inputs = dict(self._tokenizer.pad(rows, padding="max_length", max_length=width, return_tensors="pt"))
        with torch.inference_mode():
            logits = self._model(**{k: v.to(self._device) for k, v in inputs.items()}).logits.float()
            probabilities = logits.sigmoid() if self._sigmoid else logits.softmax(-1)
        found: np.ndarray[Any, np.dtype[np.float32]] = probabilities.cpu().numpy()
        return found


def _width(length: int) -> int:
    """``length`` rounded up to few enough widths for large batches, near enough to waste about 3 % in padding."""
    step = 2 if length <= 32 else 4 if length <= 64 else 8 if length <= 128 else 16
    return -(-length // step) * step


def _multiplies_in_bf16(device: str) -> bool:
    """Whether ``device`` is a CPU with bf16 instructions. A GPU runs a judge in fp32 faster than texts arrive."""
    abilities = _abilities()
    return device == "cpu" and bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def _abilities() -> Mapping[str, Any]:
    """Which instructions the processor has, as far as torch can tell."""
    import torch

    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def _use_bf16(model: Any) -> bool:
    """Let the linear maps of all layers but the last multiply in bf16; False where the model has no such layers.

    What flows between them stays fp32 (residual stream, norms, attention, head). With the whole model in bf16, P would
    move ten times as far, and would depend on the padding.
    """
    import torch
    from torch import nn
    from torch.nn.functional import linear, pad

    with_amx = bool(_abilities().get("amx_bf16"))

    def forward(module: Any, x: Any) -> Any:
        rows = x.bfloat16().flatten(0, -2)
        n_rows = len(rows)
        # oneDNN adds up long sums in another order for some numbers of tokens, so a text's score would depend on the
        # other texts. Without AMX it doesn't, and padding would cost a batch of four more than a third of its speed.
        if with_amx and min(module.in_features, module.out_features) > _LARGE:
            found = torch.cat([linear(some, module.weight, module.bias) for some in rows.split(_FEW)])
            return found.float().view(*x.shape[:-1], -1)
        if with_amx and _FEW < n_rows < _MANY and module.in_features > module.out_features:
            rows = pad(rows, (0, 0, 0, _MANY - n_rows))
        return linear(rows, module.weight, module.bias)[:n_rows].float().view(*x.shape[:-1], -1)

    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = list(max(stacks, key=len, default=[]))[:-1]
    maps = [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)]
    for module in maps:
        module.bfloat16()
        module.forward = partial(forward, module)  # type: ignore[method-assign]
    return bool(maps)


def split_label(spec: str) -> tuple[str, str | None]:
    """``ID#label`` as (ID, label); a folder whose own name holds a # is taken whole."""
    if os.path.isdir(spec) or "#" not in spec:
        return spec, None
    source, _, label = spec.rpartition("#")
    return source, label


def choose_label(source: str, names: Sequence[str], wanted: str | None) -> int:
    """The index of the main label: the one named, or the only one whose name says toxic.

    A model with one output may be named ``#toxicity`` whatever its label is called: whoever writes
    that vouches that this output rises with toxicity. Raises ScorerError that lists the labels.
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


def _load(source: str, folder: Path | None, record: JudgeRecord | None) -> tuple[Any, Any, Any, str | None]:
    """Config, tokenizer, model on the CPU in float32, and revision."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    if record is not None and record.kind != "text":
        raise ScorerError(f"{source} is a judge of {record.kind}, not of texts: it can't score an answer alone")
    if folder is not None and is_adapter(folder):
        if record is None:
            raise ScorerError(
                f"{source} is an adapter without judge.json, which names its labels: "
                "was it made by rewardlm judge train?"
            )
        return load_adapter(folder, record)
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
    names = [config.id2label[i] for i in range(config.num_labels)]
    if record is not None and list(record.labels) != names:
        raise ScorerError(f"{source}: judge.json has the labels {list(record.labels)}, config.json {names}")
    return config, tokenizer, model, sha256_of(weights) if folder else commit


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
