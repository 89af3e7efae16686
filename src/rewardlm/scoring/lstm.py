"""The ``lexical2`` judge: the bidirectional LSTM that the package tox_block carries, run in torch.

A second packaged scorer, of another origin than ``lexical`` (Jigsaw's six labels, GloVe words), so that two
judges can disagree. The package itself needs TensorFlow and unpickles its tokenizer; it is never
imported. Its two files are compared with known SHA-256 hashes and read as data: weights with h5py, the
vocabulary with an unpickler that knows only five harmless names.

The network: 100 word ids (pad 0 on the left) → 50-d embedding → LSTM of 50 units each way → maximum over
all 100 positions, pads included, because the embedding does not mask → 50 ReLU → 6 sigmoids.
"""

from __future__ import annotations

import collections
import importlib.metadata
import importlib.util
import io
import pickle
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardlm.errors import ScorerError
from rewardlm.types import Verdict

if TYPE_CHECKING:
    import numpy as np
    import torch

PACKAGE = "tox_block"
_VERSION = "0.1.2"
# Without its dependency TensorFlow, which nothing here uses.
_INSTALL = f"pip install --no-deps {PACKAGE}=={_VERSION}"
FILES = {
    "lstm_model_0.1.2.h5": "587d40726f1250341a3661fac099e46582cf34cdd5136eb88a726bf6d62ec24e",
    "encoder_0.1.2.pkl": "f73db76ce4138c0a566cf91a84077ab66db1f5da40d795d2f751b5a157d91ce7",
}
_WEIGHTS = {
    "embeddings": "embedding/embedding/embeddings:0",
    "forward.kernel": "bidirectional/bidirectional/forward_lstm/kernel:0",
    "forward.recurrent": "bidirectional/bidirectional/forward_lstm/recurrent_kernel:0",
    "forward.bias": "bidirectional/bidirectional/forward_lstm/bias:0",
    "backward.kernel": "bidirectional/bidirectional/backward_lstm/kernel:0",
    "backward.recurrent": "bidirectional/bidirectional/backward_lstm/recurrent_kernel:0",
    "backward.bias": "bidirectional/bidirectional/backward_lstm/bias:0",
    "hidden.kernel": "dense/dense/kernel:0",
    "hidden.bias": "dense/dense/bias:0",
    "output.kernel": "dense_1/dense_1/kernel:0",
    "output.bias": "dense_1/dense_1/bias:0",
}
_LENGTH = 100
_BATCH = 256


class LstmScorer:
    """P of Jigsaw's six labels under Perspective's names, "toxicity" first; no rescaling of the sigmoids.

    Raises ScorerError if tox_block is absent, of another version, or its files were changed.
    """

    name = "lexical2"
    # The order of the network's outputs: toxic, severe_toxic, obscene, threat, insult, identity_hate.
    labels: tuple[str, ...] = (
        "toxicity",
        "severe_toxicity",
        "profanity",
        "threat",
        "insult",
        "identity_attack",
    )
    revision = f"{PACKAGE}=={_VERSION}"

    def __init__(self, *, device: str = "cpu") -> None:
        import torch

        check_installed()
        files = package_files()
        self._vocabulary = Vocabulary(read_tokenizer(files["encoder_0.1.2.pkl"]))
        weights = read_weights(files["lstm_model_0.1.2.h5"])
        self._weights = {name: torch.from_numpy(array).to(device) for name, array in weights.items()}
        self._device = device

    def twin(self) -> LstmScorer:
        """Itself: it changes nothing while it scores, so several threads may use it at the same time."""
        return self

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        import torch

        verdicts: list[Verdict] = []
        for start in range(0, len(texts), _BATCH):
            ids = [pad(self._vocabulary.ids(text)) for text in texts[start : start + _BATCH]]
            with torch.inference_mode():
                probabilities = forward(self._weights, torch.tensor(ids, device=self._device))
            for row in probabilities.tolist():
                verdicts.append(Verdict(dict(zip(self.labels, row, strict=True))))
        return verdicts

    def cuts(self, texts: Sequence[str]) -> list[bool]:
        """For each text, whether it has more known words than the network reads, which are the last 100."""
        return [len(self._vocabulary.ids(text)) > _LENGTH for text in texts]


class Vocabulary:
    """Words to ids as Keras's tokenizer does: lower case, punctuation to spaces, unknown words dropped."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        if not (state["lower"] and state["split"] == " " and not state["char_level"] and not state["oov_token"]):
            raise ScorerError("scorer 'lexical2': the tokenizer's settings aren't those of tox_block 0.1.2")
        # Ids from num_words up have no embedding: those words are dropped like unknown ones.
        self._ids = {word: i for word, i in state["word_index"].items() if i < state["num_words"]}
        self._blanks = str.maketrans(dict.fromkeys(state["filters"], " "))

    def ids(self, text: str) -> list[int]:
        words = text.lower().translate(self._blanks).split(" ")
        return [self._ids[word] for word in words if word in self._ids]


def pad(ids: list[int]) -> list[int]:
    """The last 100 ids, with zeros on the left: Keras's default truncates and pads in front."""
    return [0] * (_LENGTH - len(ids)) + ids[-_LENGTH:]


def forward(weights: Mapping[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """Probabilities, Float[B, 6], for word ids, Int[B, 100]."""
    import torch

    words = weights["embeddings"][ids]
    pooled = torch.cat(
        [
            _lstm_maximum(weights, "forward", words),
            # Where in the text the maximum lies doesn't matter, so nothing is turned back.
            _lstm_maximum(weights, "backward", words.flip(1)),
        ],
        dim=1,
    )
    hidden = torch.relu(pooled @ weights["hidden.kernel"] + weights["hidden.bias"])
    return torch.sigmoid(hidden @ weights["output.kernel"] + weights["output.bias"])


def _lstm_maximum(weights: Mapping[str, torch.Tensor], direction: str, words: torch.Tensor) -> torch.Tensor:
    """The maximum over time of one LSTM's outputs, Float[B, H], for embedded words, Float[B, T, E].

    torch.nn.LSTM can't do this: Keras 2.2 gates with the hard sigmoid, clip(0.2 x + 0.5, 0, 1).
    """
    import torch

    recurrent = weights[f"{direction}.recurrent"]
    inputs = words @ weights[f"{direction}.kernel"] + weights[f"{direction}.bias"]
    h = words.new_zeros(len(words), recurrent.shape[0])
    c = torch.zeros_like(h)
    best = torch.full_like(h, -torch.inf)
    for step in range(words.shape[1]):
        i, f, candidate, o = (inputs[:, step] + h @ recurrent).chunk(4, dim=1)
        c = _hard_sigmoid(f) * c + _hard_sigmoid(i) * torch.tanh(candidate)
        h = _hard_sigmoid(o) * torch.tanh(c)
        best = torch.maximum(best, h)
    return best


def _hard_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return (0.2 * x + 0.5).clamp(0, 1)


def check_installed() -> None:
    """Raise ScorerError if tox_block, or h5py, which reads its weights, is not installed."""
    if importlib.util.find_spec("h5py") is None:
        raise ScorerError("judge 'lexical2' needs h5py: pip install 'rewardlm[lexical]', or choose other judges")
    if importlib.util.find_spec(PACKAGE) is None:
        raise ScorerError(f"judge 'lexical2' needs the files of the package {PACKAGE}: {_INSTALL}")


def package_files() -> dict[str, bytes]:
    """Contents of tox_block's two files, by name. Raises ScorerError unless they are the known ones."""
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ScorerError(f"judge 'lexical2' needs the files of the package {PACKAGE}: {_INSTALL}") from None
    if distribution.version != _VERSION:
        raise ScorerError(f"judge 'lexical2' needs {PACKAGE} {_VERSION}, found {distribution.version}: {_INSTALL}")
    contents = {}
    for name, expected in FILES.items():
        path = Path(str(distribution.locate_file(f"tox_block/trained_models/{name}")))
        data = path.read_bytes() if path.is_file() else b""
        if sha256(data).hexdigest() != expected:
            raise ScorerError(
                f"judge 'lexical2': {path} is absent or not the file of {PACKAGE} {_VERSION} (SHA-256): "
                f"{_INSTALL} --force-reinstall"
            )
        contents[name] = data
    return contents


def read_weights(data: bytes) -> dict[str, np.ndarray]:
    """The network's weights from the contents of the Keras file, float32, by our names."""
    import h5py
    import numpy as np

    with h5py.File(io.BytesIO(data), "r") as file:
        return {name: np.asarray(file[f"model_weights/{path}"]) for name, path in _WEIGHTS.items()}


class _Shell:
    """Stands in for a class of the pickle: takes its attributes, has none of its code."""


_ALLOWED_IN_PICKLE: dict[tuple[str, str], type] = {
    ("tox_block.data_processing.preprocessors", "TokenSequencer"): _Shell,
    ("keras_preprocessing.text", "Tokenizer"): _Shell,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("builtins", "int"): int,
}


class _TokenizerUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED_IN_PICKLE[module, name]
        except KeyError:
            raise ScorerError(
                f"scorer 'lexical2': the tokenizer's pickle asks for {module}.{name}, which isn't allowed"
            ) from None


def read_tokenizer(data: bytes) -> dict[str, Any]:
    """Attributes of the pickled Keras tokenizer. Raises ScorerError if the pickle names anything else."""
    tokenizer = vars(_TokenizerUnpickler(io.BytesIO(data)).load())["tokenizer"]
    return dict(vars(tokenizer))
