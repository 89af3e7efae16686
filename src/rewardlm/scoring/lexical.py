"""The ``lexical`` judge: the linear SVM over word counts in the package alt-profanity-check.

It knows words, not meaning: near Perspective on RealToxicityPrompts, at chance on hate without swear words.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from rewardlm.errors import ScorerError
from rewardlm.types import Verdict

PACKAGE = "alt-profanity-check"
_VERSION = "1.9.1"
_INSTALL = "pip install 'rewardlm[lexical]'"
FILES = {
    "model.joblib": "aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b",
    "vectorizer.joblib": "19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831",
}


class LexicalScorer:
    """P(toxicity) by a calibrated linear SVM trained on Jigsaw-like comments; any number of texts at once.

    Raises ScorerError if the package is absent, of another version, or its files were changed.
    """

    name = "lexical"
    labels: tuple[str, ...] = ("toxicity",)
    revision = f"{PACKAGE}=={_VERSION}"

    def __init__(self) -> None:
        self._predict = _load()

    def twin(self) -> LexicalScorer:
        """Itself: it changes nothing while it scores, so several threads may use it at the same time."""
        return self

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        if not texts:  # the package's numpy code fails on an empty list
            return []
        return [Verdict({"toxicity": float(value)}) for value in self._predict(list(texts))]


def package_folder() -> Path:
    """The installed package's folder, without importing it. Raises ScorerError if it is absent or another version."""
    spec = importlib.util.find_spec("profanity_check")
    if spec is None or not spec.submodule_search_locations:
        raise ScorerError(f"judge 'lexical' needs {PACKAGE}: {_INSTALL}, or choose other judges")
    version = importlib.metadata.version(PACKAGE)
    if version != _VERSION:
        raise ScorerError(f"judge 'lexical' needs {PACKAGE} {_VERSION}, found {version}: {_INSTALL}")
    return Path(spec.submodule_search_locations[0])


def _load() -> Callable[[list[str]], Any]:
    """The package's ``predict_prob``. Importing it unpickles two files, so they are checked first."""
    folder = package_folder()
    for name, expected in FILES.items():
        path = folder / "data" / name
        if not path.is_file() or sha256(path.read_bytes()).hexdigest() != expected:
            raise ScorerError(
                f"judge 'lexical': {path} is not the file of {PACKAGE} {_VERSION} (another SHA-256), and "
                f"a pickle that was changed isn't opened: pip install {PACKAGE}=={_VERSION} --force-reinstall"
            )
    from profanity_check import predict_prob

    predict: Callable[[list[str]], Any] = predict_prob
    return predict
