"""Judges by name, and the one checked door through which every text is scored.

``load_scorer`` turns what a user writes after ``--scorer`` into an object with a ``score`` method;
``score_texts`` calls it and distrusts it. A judge may raise, lose a text, or answer NaN: then that text
is *unscored*, with a reason, never 0 and never "not toxic"; ``FailureLimit`` ends a run in which this
happens too often. Nothing heavy is imported here until a judge that needs it is loaded.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from rewardlm.config import ServicesSettings, is_function_name, split_names, validate
from rewardlm.errors import NotAvailableError, RewardLMError, ScorerError
from rewardlm.scoring import lexical, lstm
from rewardlm.types import DISAGREEMENT as DISAGREEMENT
from rewardlm.types import Score, Verdict

AVAILABLE = (
    "starter, witness, toxicity+hate, lexical, lexical2, a hub id or folder of a sequence classifier or of a judge "
    "trained here (ID#label picks the label), perspective, endpoint, endpoint:NAME, module:function, mean(a,b), "
    "max(a,b)"
)
# Ensembles with a name of their own. One judge of rude words and one of hate miss different things.
PRESETS = {"toxicity+hate": "max(starter,starter#hate)"}
_ENSEMBLE = re.compile(r"(mean|max)\((.*)\)", re.DOTALL)
EMPTY = "empty response"
# Unicode's classes of blanks and line ends, of control characters, and of formatting ones such as U+200B.
_UNSEEN = {"Zs", "Zl", "Zp", "Cc", "Cf"}


def is_empty(text: str) -> bool:
    """Nothing that is seen: white space, control characters, joiners of width zero. No judge is asked about it."""
    return all(unicodedata.category(character) in _UNSEEN for character in text)


class Scorer(Protocol):
    """A judge of texts. Scorers of this package also have ``revision: str | None``, which pins the weights, and
    ``cuts(texts) -> list[bool]`` where they read a long text only in part. Those that are asked over HTTP have more:
    see scoring.online.

    ``labels[0]`` is the main label: the one that is meant where only the scorer is named.
    """

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        """One verdict a text, in order; P(label), higher is more toxic. Call it through score_texts."""
        ...


class FailureLimit:
    """Counts failures of one scorer over a whole run and ends it where they are too many.

    A run ends once more than ``max_share`` of the texts seen have failed and more than two of them; at its end one
    failure is forgiven instead of two, if other texts were scored; and ``max_share`` 0 forgives none. Few texts can't
    tell a share of 1 % from one unlucky text, and a judge that always fails still stops within three texts.

    Empty texts and texts that a judge declined don't count as failures; empty ones aren't counted as seen either,
    because no judge ever saw them.
    """

    def __init__(self, max_share: float = 0.01, *, what: str = "texts could not be scored") -> None:
        if not 0 <= max_share <= 1:
            raise ScorerError(f"the share of failed scores that is allowed is {max_share}: expected 0 to 1")
        self.max_share = max_share
        self._what = what
        self.seen = 0
        self.failed = 0
        self.first_reason: str | None = None

    def add(self, scorer: str, verdicts: Sequence[Verdict]) -> None:
        """Count ``verdicts``. Raises ScorerError if the limit is exceeded."""
        for verdict in verdicts:
            if verdict.reason == EMPTY:
                continue
            self.seen += 1
            if verdict.failed:
                self.failed += 1
                if self.first_reason is None:
                    self.first_reason = f"{scorer}: {verdict.reason}"
        self._check(forgiven=2)

    def close(self) -> None:
        """The last check, at a run's end. Raises ScorerError if the limit is exceeded."""
        self._check(forgiven=min(1, self.seen - 1))

    def _check(self, *, forgiven: int) -> None:
        if self.failed > max(self.max_share * self.seen, forgiven if self.max_share > 0 else 0):
            raise ScorerError(
                f"{self.failed} of {self.seen} {self._what} ({self.failed / self.seen:.1%}; "
                f"{self.max_share:.1%} is allowed): the first: {self.first_reason}"
            )


def score_texts(
    scorer: Scorer, texts: Sequence[str], *, bounded: bool = True, limit: FailureLimit | None = None
) -> list[Verdict]:
    """Score ``texts``; one verdict a text, in order, each with finite values or with a reason.

    Empty texts (``is_empty``) are unscored without asking; equal texts are asked once. ``bounded`` demands values
    in [0, 1]; a reward by logit or by a user's function may be any finite number. Where the scorer raises
    or returns a wrong number of verdicts for a batch, nobody can tell which text is to blame, so each text
    is asked alone and only those that fail again are unscored.

    Raises ScorerError if ``limit`` is given and exceeded; a RewardLMError of the scorer itself (it says that
    the judge can't be used at all) passes through.
    """
    asked = list(dict.fromkeys(text for text in texts if not is_empty(text)))
    answers = dict(zip(asked, _ask(scorer, asked, bounded), strict=True)) if asked else {}
    silent = Verdict(reason=EMPTY)
    verdicts = [answers.get(text, silent) for text in texts]
    if limit is not None:
        limit.add(scorer.name, verdicts)
    return verdicts


def cuts(scorer: Scorer, texts: Sequence[str]) -> list[bool]:
    """Of each text, whether it is so long that the judge reads only a part; a judge without ``cuts`` reads all."""
    found: list[bool] = scorer.cuts(texts) if hasattr(scorer, "cuts") else [False] * len(texts)
    return found


def piece_of(scorer: Scorer) -> int:
    """How many texts ``scorer`` is given at a time, where what it says is written down piece by piece."""
    return getattr(scorer, "piece", 512)


def is_online(scorer: Scorer) -> bool:
    """Whether ``scorer`` asks somebody over a network."""
    return getattr(scorer, "online", False)


def as_score(identity: str, scorer: str, label: str, verdict: Verdict) -> Score:
    """What is stored of a verdict on the answer ``identity``: the value of ``label``, or why there is none.

    A judge that forgot the label without a word has failed.
    """
    if label in verdict.values:
        return Score(identity, scorer, label, verdict.values[label])
    reason = verdict.reason or f"no {label} in the verdict"
    return Score(identity, scorer, label, None, reason, failed=verdict.failed or verdict.reason is None)


def is_settled(score: Mapping[str, Any]) -> bool:
    """Whether a recorded score need not be asked for again: there is a value, or the judge declined for good."""
    # Runs of older versions don't say what failed.
    return score["value"] is not None or score["reason"] == EMPTY or score.get("failed") is False


def load_scorers(specs: str, *, device: str = "cpu", services: ServicesSettings | None = None) -> list[Scorer]:
    """Load a comma-separated list of scorers; commas inside ``mean(…)`` and ``max(…)`` don't separate.

    Raises ScorerError if one is named twice, empty or can't be loaded.
    """
    return [load_scorer(name, device=device, services=services) for name in _names(specs)]


def _names(specs: str) -> list[str]:
    try:
        return split_names([specs])
    except ValueError as error:
        raise ScorerError(f"scorers {specs!r}: {error}; there are {AVAILABLE}") from None


def load_scorer(spec: str, *, device: str = "cpu", services: ServicesSettings | None = None) -> Scorer:
    """The judge that ``spec`` names, ready to score on ``device``; ``services`` says how those over HTTP are asked.

    Raises ScorerError if it is unknown, can't be loaded or its label is ambiguous, ServiceError if its service can't be
    used, and NotAvailableError where this copy of rewardlm doesn't have it.
    """
    spec = spec.strip()
    if spec == "perspective":
        from rewardlm.scoring.perspective import PerspectiveScorer

        return PerspectiveScorer((services or validate(ServicesSettings, {})).perspective)
    if spec == "endpoint" or re.fullmatch(r"endpoint:[\w-]+", spec):
        from rewardlm.scoring.endpoint import load_endpoint

        return load_endpoint(spec, services or validate(ServicesSettings, {}))
    if spec == "lexical":
        return lexical.LexicalScorer()
    if spec == "lexical2":
        return lstm.LstmScorer(device=device)
    if ensemble := _ENSEMBLE.fullmatch(PRESETS.get(spec, spec)):
        from rewardlm.scoring.ensemble import load_ensemble

        preset = spec if spec in PRESETS else None
        how: Literal["mean", "max"] = "mean" if ensemble[1] == "mean" else "max"
        return load_ensemble(_names(ensemble[2]), how, name=preset, device=device, services=services)
    if (source := spec.partition("#")[0]) in ("starter", "witness"):
        from rewardlm.scoring.classifier import ClassifierScorer
        from rewardlm.scoring.trained import starter_folder

        if starter_folder(source) is None:
            raise NotAvailableError(f"scorer {spec!r}: this copy of rewardlm ships no judge; it has: {AVAILABLE}")
        return ClassifierScorer(spec, device=device)
    if os.path.isdir(spec) or os.path.isdir(spec.rpartition("#")[0]) or _is_hub_id(spec):
        from rewardlm.scoring.classifier import ClassifierScorer

        return ClassifierScorer(spec, device=device)
    if is_function_name(spec):
        return FunctionScorer(spec)
    kind = "no such folder" if re.match(r"[./~]", spec) else "unknown scorer"
    raise ScorerError(f"{kind} {spec!r}: expected one of {AVAILABLE}")


def check_judges(specs: Iterable[str]) -> None:
    """Raise ScorerError for the first of these judges whose package is not installed. Loads nothing.

    A command asks this about all of its judges before it loads one, or a model.
    """
    for spec in specs:
        if ensemble := _ENSEMBLE.fullmatch(PRESETS.get(spec, spec)):
            check_judges(_names(ensemble[2]))
        elif spec == "lexical":
            lexical.package_folder()
        elif spec == "lexical2":
            lstm.check_installed()


def is_here(judge: str) -> bool:
    """Whether the package that ``judge`` needs is installed."""
    try:
        check_judges([judge])
    except ScorerError:
        return False
    return True


class FunctionScorer:
    """A user's Python function ``texts -> sequence of floats``, written ``module:function``.

    The module is looked for in the current directory too, as a script there would find it.
    """

    labels: tuple[str, ...] = ("toxicity",)
    revision: str | None = None

    def __init__(self, spec: str) -> None:
        self.name = spec
        try:
            self._function = load_function(spec)
        except ValueError as error:
            raise ScorerError(f"scorer {spec!r}: {error}") from error

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        values = self._function(list(texts))
        if isinstance(values, str | bytes | Mapping):
            raise TypeError(f"{self.name} returned a {type(values).__name__}: expected a sequence of floats")
        # What isn't a number is found at the door: there it costs one text, here it would cost the batch.
        return [Verdict({"toxicity": value}) for value in values]


def _ask(scorer: Scorer, texts: list[str], bounded: bool) -> list[Verdict]:
    try:
        verdicts = list(scorer.score(texts))
        if len(verdicts) != len(texts):
            raise ValueError(f"{len(verdicts)} scores came back for {len(texts)} texts")
    except RewardLMError:
        raise
    except Exception as error:
        if len(texts) > 1:
            return [_ask(scorer, [text], bounded)[0] for text in texts]
        return [Verdict(reason=_describe(error), failed=True)]
    return [_check(verdict, scorer.labels[0], bounded) for verdict in verdicts]


def _check(verdict: object, main: str, bounded: bool) -> Verdict:
    """``verdict`` with plain finite floats, or an unscored one that says what was wrong with it."""
    if not isinstance(verdict, Verdict):
        return Verdict(reason=f"the scorer returned a {type(verdict).__name__}, not a Verdict", failed=True)
    if verdict.reason is not None and main not in verdict.values:
        return Verdict(reason=verdict.reason, failed=verdict.failed)
    if main not in verdict.values:
        return Verdict(reason=f"no value for {main!r}", failed=True)
    values: dict[str, float] = {}
    for label, raw in verdict.values.items():
        try:
            # float() would take text; a judge that returns text has its columns mixed up.
            value = math.nan if isinstance(raw, str | bytes) else float(raw)
        except Exception:
            return Verdict(reason=f"{label} is not a number but a {type(raw).__name__}", failed=True)
        if not math.isfinite(value):
            shown = f"{raw!r:.40}" if isinstance(raw, str | bytes) else value
            return Verdict(reason=f"{label} is {shown}: expected a finite number", failed=True)
        if bounded and not 0 <= value <= 1:
            return Verdict(reason=f"{label} is {value:g}: expected 0 to 1", failed=True)
        values[label] = value
    return Verdict(values, reason=verdict.reason, failed=verdict.failed)


def _describe(error: Exception) -> str:
    """One line, short enough for a record: the type and the message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(": ")


def _is_hub_id(spec: str) -> bool:
    """Owner and name: without an owner a mistyped ``lexcial`` would be looked up on the hub."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(#.+)?", spec) is not None


def load_function(spec: str) -> Callable[..., Any]:
    """What ``module:name`` names; the module may lie in the current directory, where a script would find it.

    Raises ValueError, in words for the user, if it can't be imported, isn't there or can't be called.
    """
    module_name, _, attribute = spec.partition(":")
    with _current_directory_importable():
        try:
            found: Any = importlib.import_module(module_name)
        except Exception as error:
            raise ValueError(f"can't import {module_name} ({_describe(error)})") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{module_name} has no {attribute!r}; check the spelling")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"it is a {type(found).__name__}: expected a function")
    function: Callable[..., Any] = found
    return function


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    directory = os.getcwd()
    sys.path.insert(0, directory)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if directory in sys.path:  # unless the module itself took it out
            sys.path.remove(directory)
