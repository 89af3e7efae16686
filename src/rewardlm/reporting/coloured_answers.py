"""A few answers, word by word: how far the tuned model moved at each, and which earlier words a word rests on.

The steps of both colour scales are fixed, so a colour means the same on every answer, model and page.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rewardlm.formats import number
from rewardlm.interpreting.findings import ColouredAnswer, ColouredExample, ColouredReading, Interpretation
from rewardlm.measuring.metrics import LOW_BELOW
from rewardlm.reporting.shell import in_line

# Where a colour begins. Drift in nats, attribution as a share.
DRIFT_STEPS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
SHARE_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
_NAMES = {
    "usual": "A usual answer",
    "moved": "Moved most",
    "fell": "Toxicity fell most",
    "rose": "Toxicity rose most",
}
_RULES = {
    "usual": "Its drift is the median of the answers read in which no text may offend.",
    "moved": "Of the answers read its drift is the largest.",
    "fell": "Of the answers read its toxicity fell most.",
    "rose": "Of the answers read its toxicity rose most.",
}
_USUAL_OF_ALL = "Its drift is the median of the answers read. All of them have a text that may offend."
# Words that a sentence names, of those that a token rests on.
_NAMED = 4


def coloured(result: Interpretation) -> list[dict[str, Any]]:
    """What answers.html.j2 shows: an entry per example, with a panel for each tuned model."""
    base, *tuned = [model.label for model in result.models if "drift" not in model.left_out]
    return [
        {
            "name": _NAMES[example.chosen],
            "how": _how(example, result),
            "hide": _may_offend(example),
            "prompt": example.prompt,
            "panels": [_panel(example, base, label) for label in tuned],
        }
        for example in result.shown
    ]


def scales() -> dict[str, Any]:
    """The legends, and the steps of the shares, per mille, for the script that colours by them."""
    return {
        "drift": _legend([f"{step:g}" for step in DRIFT_STEPS]),
        "share": _legend([_whole_percent(step) for step in SHARE_STEPS]),
        "steps": [round(1000 * step) for step in SHARE_STEPS],
    }


def _legend(steps: Sequence[str]) -> list[tuple[int, str]]:
    """(level, text) of each colour."""
    between = [f"{low} – {high}" for low, high in pairwise(steps)]
    return list(enumerate([f"under {steps[0]}", *between, f"{steps[-1]} or more"]))


def level(value: float, steps: Sequence[float]) -> int:
    """Which colour a value has: 0 below the first step."""
    return bisect_right(steps, value)


def shown_token(text: str) -> str:
    """A piece of an answer with its line breaks made visible."""
    return text.replace("\n", "⏎\n")


def quoted(text: str) -> str:
    """A token in quotes, with its line breaks made visible."""
    return f"“{text.replace(chr(10), '⏎').strip(' ') or '␣'}”"


def _how(example: ColouredExample, result: Interpretation) -> str:
    rule = _USUAL_OF_ALL if example.chosen == "usual" and _may_offend(example) else _RULES[example.chosen]
    scores = ", ".join(
        f"{model.label} {score:.2f}" for model, score in zip(result.models, example.toxicity, strict=True)
    )
    return f"{rule} Toxicity by {result.sample.scorer}: {scores}."


def _may_offend(example: ColouredExample) -> bool:
    """As everywhere on the page: a judge scored a text medium or high, or nobody scored it."""
    scores = [example.prompt_toxicity, *(answer.highest for answer in example.answers)]
    return any(score is None or score >= LOW_BELOW for score in scores)


def _panel(example: ColouredExample, base: str, label: str) -> dict[str, Any]:
    answers = {answer.label: answer for answer in example.answers}
    labels = list(answers)
    both = (labels.index(base), labels.index(label))
    old, new = answers[base], answers[label]
    return {
        "model": label,
        "drift": [
            {"label": old.label, "mean": _mean(old.kl[both[1]]), "tokens": _tokens(old, labels, both, both[1])},
            {"label": new.label, "mean": _mean(new.kl[both[0]]), "tokens": _tokens(new, labels, both, both[0])},
        ],
        "attribution": [
            {"label": one.label, "readers": readers, "chosen": chosen, "words": words}
            for one, names in ((old, (base, label)), (new, (label,)))
            for readers, chosen, words in [_readings(one, names)]
            if readers
        ],
    }


def _mean(values: Sequence[float]) -> str:
    return number(math.fsum(values) / len(values), ".2f") if values else "—"


def _tokens(answer: ColouredAnswer, labels: Sequence[str], both: tuple[int, int], other: int) -> list[dict[str, Any]]:
    """The answer's tokens with their colour by drift, and what is said of each. ``other`` is the model that reads."""
    found = []
    for place, text in enumerate(answer.tokens):
        # A letter that is spread over tokens belongs to the last of them.
        if not text:
            continue
        given = ", ".join(f"{labels[model]} {_percent(answer.logprobs[model][place])}" for model in both)
        first = ", ".join(f"{labels[model]} {quoted(answer.first_choices[model][place])}" for model in both)
        kl = answer.kl[other][place]
        found.append(
            {
                "text": text,
                "level": level(kl, DRIFT_STEPS),
                "kl": kl,
                "note": f"{quoted(text)}: drift {kl:.2f} nats. Its probability: {given}.",
                "first": f"First choice here: {first}.",
            }
        )
    return found


def _whole_percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _percent(logprob: float) -> str:
    share = 100 * math.exp(min(logprob, 0))
    return "under 0.01 %" if share < 0.01 else f"{share:.2f} %" if share < 1 else f"{share:.0f} %"


def _readings(
    answer: ColouredAnswer, names: Sequence[str]
) -> tuple[list[dict[str, Any]], int | None, list[dict[str, Any]]]:
    """How the readers ``names`` explain an answer: their shares and sentences for each explained word, the number of
    the word that is shown first, and all words.

    A word counts as explained if every reader has shares of one of its tokens; the first such token speaks for it.
    """
    readings = [reading for name in names for reading in answer.readings if reading.reader == name]
    explained: dict[int, int] = {}
    for number_, word in enumerate(answer.at_words):
        if all(reading.shares[number_] for reading in readings):
            explained.setdefault(word, number_)
    if not readings or not explained:
        return [], None, []
    places = list(explained)
    chosen = max(range(len(places)), key=lambda place: _of_prompt(answer, readings[-1], explained[places[place]]))
    readers = [
        {
            "label": reading.reader,
            # Per mille, a list per explained word.
            "shares": [[round(1000 * share) for share in reading.shares[k] or ()] for k in explained.values()],
            "notes": [in_line(_note(answer, reading, k)) for k in explained.values()],
            "levels": [level(share, SHARE_STEPS) for share in (reading.shares[explained[places[chosen]]] or ())],
        }
        for reading in readings
    ]
    words = [
        # The template's line breaks would only make the page long.
        {
            "text": text.replace("\n", "⏎") if kind == "template" else text,
            "kind": kind,
            "explained": places.index(word) if word in explained else None,
        }
        for word, (text, kind) in enumerate(answer.words)
    ]
    return readers, chosen, words


def _of_prompt(answer: ColouredAnswer, reading: ColouredReading, k: int) -> float:
    """The share of the prompt's words: what a reader looks for first is an answer that reads its prompt."""
    shares = reading.shares[k] or []
    return sum(share for share, (_, kind) in zip(shares, answer.words, strict=False) if kind == "prompt")


def _note(answer: ColouredAnswer, reading: ColouredReading, k: int) -> str:
    """What a token rests on, in a sentence."""
    shares = reading.shares[k] or []
    words = [(share, text) for share, (text, _) in zip(shares, answer.words, strict=False)]
    top = ", ".join(
        f"{quoted(text)} {_whole_percent(share)}" for share, text in sorted(words, key=lambda one: -one[0])[:_NAMED]
    )
    names = {"prompt": "the prompt’s words", "template": "the template", "answer": "the answer so far"}
    kinds = [kind for _, kind in answer.words]
    sums = ", ".join(
        f"{name} {_whole_percent(sum(share for share, of in zip(shares, kinds, strict=False) if of == kind))}"
        for kind, name in names.items()
    )
    return f"{quoted(answer.tokens[answer.positions[k]])} rests on {top}. In all: {sums}."
