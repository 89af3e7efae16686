"""Judges by name: what a user writes after ``--scorer``, as an object with a ``score`` method.

A new judge of this package is a class in a file of its own, and a line in ``load_scorer``. Nothing heavy is imported
until a judge that needs it is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from rewardlm import hub
from rewardlm.config import ServicesSettings, is_function_name, split_names, validate
from rewardlm.errors import NotAvailableError, ScorerError, did_you_mean
from rewardlm.scoring import lexical, lstm
from rewardlm.scoring.adapter import is_adapter, require_base
from rewardlm.scoring.ensemble import PRESETS, Ensemble, Member
from rewardlm.scoring.function import FunctionScorer
from rewardlm.scoring.pairs import check_pair_class, load_pair_class, names_pair_judge
from rewardlm.scoring.record import SHIPPED, judge_folder, record_of
from rewardlm.scoring.scorer import PairScorer, Scorer

AVAILABLE = (
    "starter, starter-large, witness, toxicity+hate, lexical, lexical2, a hub id or folder of a sequence classifier or "
    "of a judge trained here (ID#label picks the label), perspective, endpoint, endpoint:NAME, module:function, "
    "mean(a,b), max(a,b)"
)
# Judges with a name of their own; ``starter#hate`` is another label of starter.
KNOWN = (
    "starter", "starter#hate", "starter-large", "starter-large#hate", "witness", *PRESETS, "lexical", "lexical2",
    "perspective", "endpoint",
)  # fmt: skip
_ENSEMBLE = re.compile(r"(mean|max)\((.*)\)", re.DOTALL)


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
        how: Literal["mean", "max"] = "mean" if ensemble[1] == "mean" else "max"
        members = _members(_names(ensemble[2]), device, services)
        return Ensemble(members, how, name=spec if spec in PRESETS else None)
    if (source := spec.partition("#")[0]) in SHIPPED and judge_folder(source) is None:
        raise NotAvailableError(f"scorer {spec!r}: this copy of rewardlm ships no judge; it has: {AVAILABLE}")
    if source in SHIPPED or os.path.isdir(spec) or os.path.isdir(spec.rpartition("#")[0]) or _is_hub_id(spec):
        from rewardlm.scoring.classifier import ClassifierScorer

        return ClassifierScorer(spec, device=device)
    if is_function_name(spec):
        return FunctionScorer(spec)
    raise _unknown(spec)


def load_reward(spec: str, *, device: str = "cpu", services: ServicesSettings | None = None) -> Scorer | PairScorer:
    """A judge as a reward: what ``load_scorer`` knows, or a class of a judge of pairs (``starter_pairs#agreement``).

    Raises as ``load_scorer`` and ``load_pair_class`` do.
    """
    if names_pair_judge(spec.strip()):
        return load_pair_class(spec.strip(), device=device)
    return load_scorer(spec, device=device, services=services)


def check_rewards(specs: Iterable[str], services: ServicesSettings | None = None) -> None:
    """``check_judges`` for rewards, which may be judges of pairs."""
    for spec in specs:
        if names_pair_judge(spec.strip()):
            check_pair_class(spec.strip())
        else:
            check_judges([spec], services)


def _unknown(spec: str) -> ScorerError:
    kind = "no such folder" if re.match(r"[./~]", spec) else "unknown scorer"
    return ScorerError(f"{kind} {spec!r}: {did_you_mean(spec, KNOWN, first=True)}expected one of {AVAILABLE}")


def check_judges(specs: Iterable[str], services: ServicesSettings | None = None) -> None:
    """Raise ScorerError for the first of these judges that can't be used: an unknown name or label, a package that is
    not installed, a service without address or key, a hub that can't be reached. Loads no weights.

    A command asks this about all of its judges before it loads one, or a model.
    """
    for spec in specs:
        spec = spec.strip()
        source = spec.partition("#")[0]
        if ensemble := _ENSEMBLE.fullmatch(PRESETS.get(spec, spec)):
            check_judges(_names(ensemble[2]), services)
        elif spec == "lexical":
            lexical.package_folder()
        elif spec == "lexical2":
            lstm.check_installed()
        elif spec == "perspective":
            from rewardlm.scoring.perspective import check_key

            check_key((services or validate(ServicesSettings, {})).perspective)
        elif spec == "endpoint" or re.fullmatch(r"endpoint:[\w-]+", spec):
            from rewardlm.scoring.endpoint import check_address

            check_address(spec, services or validate(ServicesSettings, {}))
        elif source in SHIPPED or os.path.isdir(spec) or os.path.isdir(source):
            _check_trained(spec)
        elif _is_hub_id(spec):
            from rewardlm.scoring.classifier import OFFLINE

            hub.require(source, what=f"the judge {source}", instead=OFFLINE, error=ScorerError)
        elif is_function_name(spec):
            FunctionScorer(spec)
        else:
            raise _unknown(spec)


def _check_trained(spec: str) -> None:
    """Raise ScorerError where a judge that was trained here lacks the label that ``spec`` names, or its encoder is out
    of reach.
    """
    from rewardlm.scoring.classifier import choose_label, split_label

    source, label = split_label(spec)
    record = record_of(source)
    if record is not None and record.kind == "text" and label is not None:
        choose_label(source, record.labels, label)
    folder = judge_folder(source)
    if record is not None and folder is not None and is_adapter(folder):
        require_base(folder, record)


def is_here(judge: str) -> bool:
    """Whether the package that ``judge`` needs is installed."""
    try:
        check_judges([judge])
    except ScorerError:
        return False
    return True


def _names(specs: str) -> list[str]:
    try:
        return split_names([specs])
    except ValueError as error:
        raise ScorerError(f"scorers {specs!r}: {error}; there are {AVAILABLE}") from None


def _members(names: Sequence[str], device: str, services: ServicesSettings | None) -> list[Member]:
    """The members of an ensemble. Labels of one classifier (``ID``, ``ID#label``) share one pass."""
    from rewardlm.scoring.classifier import ClassifierScorer, split_label

    members: list[Member] = []
    loaded: dict[str, ClassifierScorer] = {}
    for spec in names:
        source, label = split_label(spec)
        if source in loaded:
            members.append(Member(spec, loaded[source], loaded[source].also(label)))
            continue
        scorer = load_scorer(spec, device=device, services=services)
        if isinstance(scorer, ClassifierScorer):
            loaded[source] = scorer
        members.append(Member(scorer.name, scorer, scorer.labels[0]))
    return members


def _is_hub_id(spec: str) -> bool:
    """Whether ``spec`` has owner and name: without an owner, a mistyped ``lexcial`` would be looked up on the hub."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(#.+)?", spec) is not None
