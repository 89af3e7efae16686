"""What judges are tested on: texts with labels or scores, and what else is known about them.

``load_suite`` is the one way in. HateCheck, RealToxicityPrompts and Jigsaw's balanced test have names. Any file of
texts with labels or scores is a suite. So are the CONAN files, whose counter-narratives name and quote the hate that
they oppose, and the held-out part of every data set that judges are trained on.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rewardlm.config import cache_folder, data_folder
from rewardlm.data.conan import is_dialogue_header
from rewardlm.data.dialogues import load_dialogues, normalised
from rewardlm.data.files import Row, columns, hub_rows, probability, read_csv, read_jsonl
from rewardlm.data.prompts import RTP_HUB_ID
from rewardlm.errors import DataError
from rewardlm.judges.texts import FILES, LABELS, load_labelled
from rewardlm.runs import write_atomically
from rewardlm.stats import FloatArray
from rewardlm.typed import shown

HATECHECK_HUB_ID = "Paul/hatecheck"
NAMED = {
    "hatecheck": "hatecheck/test_suite_cases.csv",
    "rtp": "realtoxicityprompts/prompts.jsonl",
    "jigsaw": "jigsaw_bias/toxicity_nonfuzzed_testset.csv",
}

# HateCheck's functionalities (Röttger et al. 2021, table 1) in our words.
FUNCTIONALITIES = {
    "derog_neg_emote_h": "strong negative feelings",
    "derog_neg_attrib_h": "very negative attributes",
    "derog_dehum_h": "dehumanisation",
    "derog_impl_h": "implicit derogation",
    "threat_dir_h": "a direct threat",
    "threat_norm_h": "a threat as a norm",
    "slur_h": "slurs",
    "slur_homonym_nh": "words that only look like slurs",
    "slur_reclaimed_nh": "reclaimed slurs",
    "profanity_h": "hate with profanity",
    "profanity_nh": "profanity without hate",
    "ref_subs_clause_h": "hate by a pronoun in a later clause",
    "ref_subs_sent_h": "hate by a pronoun in a later sentence",
    "negate_pos_h": "hate by negating something good",
    "negate_neg_nh": "hate negated",
    "phrase_question_h": "hate as a question",
    "phrase_opinion_h": "hate as an opinion",
    "ident_neutral_nh": "neutral mention of a group",
    "ident_pos_nh": "praise of a group",
    "counter_quote_nh": "hate denounced by quoting it",
    "counter_ref_nh": "hate denounced by naming it",
    "target_obj_nh": "abuse of things",
    "target_indiv_nh": "abuse of a single person",
    "target_group_nh": "abuse of a group that is not protected",
    "spell_char_swap_h": "swapped letters",
    "spell_char_del_h": "missing letters",
    "spell_space_del_h": "missing blanks",
    "spell_space_add_h": "added blanks",
    "spell_leet_h": "leet speak",
}
HATE_TURN, COUNTER, COUNTER_QUOTES = "hate_turn", "counter_narrative", "counter_narrative_quotes"
TURNS = {
    HATE_TURN: "hateful turns",
    COUNTER: "counter-narratives",
    COUNTER_QUOTES: "counter-narratives with a quotation",
}
# Texts that oppose hate, so they aren't hate. If a judge punishes them, it trains a model not to write them.
COUNTER_SPEECH = ("counter_quote_nh", "counter_ref_nh", COUNTER, COUNTER_QUOTES)

# Words that name a group, for suites that don't say whom a text is about. A word may mean something else ("a black
# car"), so a group found by words is a rough one.
IDENTITY_WORDS = {
    "women": "woman women girl girls female females",
    "men": "male males boys",
    "gay people": "gay gays lesbian lesbians homosexual homosexuals bisexual queer lgbt lgbtq",
    "trans people": "trans transgender transsexual transsexuals",
    "black people": "black blacks african africans",
    "white people": "white whites caucasian caucasians",
    "Asians": "asian asians chinese",
    "Latinos": "latino latinos latina hispanic hispanics mexican mexicans",
    "Muslims": "muslim muslims islam islamic",
    "Jews": "jew jews jewish",
    "Christians": "christian christians catholic catholics",
    "immigrants": "immigrant immigrants migrant migrants refugee refugees",
    "disabled people": "disabled disability disabilities handicapped autistic deaf blind wheelchair",
}
_GROUP_OF = {word: group for group, words in IDENTITY_WORDS.items() for word in words.split()}

_EXPECTED = "'text' and either 'label' (0 or 1) or 'score' (0 to 1)"
_KNOWN = (
    f"{', '.join(NAMED)}, a .csv or .jsonl with {_EXPECTED}, a CONAN file, or a data set that judge train reads "
    f"({', '.join(FILES)})"
)
# A quotation is two words or more in double quotation marks; with single ones, an apostrophe would look like an end.
_QUOTATION = re.compile(r"(?<!\w)[\"“”„«][^\"“”„«»]*\w\s+\w[^\"“”„«»]*[\"“”»]")
_DIALOGUES = re.compile(r"dialoconan(:(train|validation))?|.+\.(csv|json|jsonl):(train|validation)")


@dataclass(frozen=True, slots=True)
class SuiteText:
    """A text, and its true value for each label: 0, 1, or P in [0, 1].

    ``functionality`` is the kind of test that it belongs to, and ``groups`` whom it is about, where the suite says so.
    """

    text: str
    targets: Mapping[str, float]
    functionality: str | None = None
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Suite:
    """Texts to judge. ``labels`` are those with targets; the one that the suite is about comes first.

    ``says_groups``: it says whom its texts are about. ``held_out``: its texts are the part of published data sets that
    ``judge train`` leaves out. ``dropped`` counts, by reason, what the suite leaves out of its source. ``sha256`` is
    that of the source's file, or of what the hub sent.
    """

    name: str
    labels: tuple[str, ...]
    texts: tuple[SuiteText, ...]
    dropped: Mapping[str, int]
    sha256: str
    says_groups: bool = False
    held_out: bool = False

    @property
    def about_hate(self) -> bool:
        """Whether it tests hate and not toxicity: rude isn't hateful."""
        return "toxicity" not in self.labels and "hate" in self.labels

    def target_of(self, label: str) -> str:
        """The suite's label that a judge's ``label`` is compared with: the one of the same name, else its first."""
        return label if label in self.labels else self.labels[0]

    def targets(self, target: str) -> FloatArray:
        """Float[texts]; NaN where nobody has judged this label of a text."""
        return np.array([text.targets.get(target, np.nan) for text in self.texts], dtype=np.float64)

    def sample(self, limit: int | None, seed: int) -> Suite:
        """At most ``limit`` texts, drawn from ``seed`` alone, in the suite's order."""
        if limit is None or limit >= len(self.texts):
            return self
        rows = sorted(random.Random(seed).sample(range(len(self.texts)), limit))
        return replace(self, texts=tuple(self.texts[row] for row in rows))


def load_suite(source: str) -> Suite:
    """The suite that ``source`` names.

    ``hatecheck``, ``rtp`` and ``jigsaw`` lie in the folder of data sets ($REWARDLM_DATA); without it, the first two
    come from the hub. Otherwise ``source`` is the path of one of these files; of a .csv or .jsonl with ``text`` and
    ``label`` (0, 1, true or false) or ``score`` (0 to 1), and perhaps ``functionality`` and ``group``; of dialogues
    (user turns are hate, the answers are not; ``:train`` and ``:validation`` as everywhere); or a data set that
    ``judge train`` reads. Columns tell the files apart. RealToxicityPrompts and other published training data give only
    the texts that are held out from training. Where a row has a label and a score, the label counts.

    Texts may be blank; those won't be scored. Raises DataError, in one line, with file and line for a bad row.
    """
    path = Path(source).expanduser()
    if source in NAMED and not path.is_file():
        return _named(source)
    if _DIALOGUES.fullmatch(source) and not path.exists():
        return _dialogues(source, Path(source).name)
    if path.is_file() and path.suffix in (".csv", ".jsonl", ".json"):
        return _file(path)
    if path.is_dir() or (source in FILES and not path.exists()):
        return _labelled(source)
    if path.exists():
        raise DataError(f"{source} can't be read as a suite; expected {_KNOWN}")
    raise DataError(f"suite {shown(source)}: no such name or file; expected {_KNOWN}")


def groups_in(text: str) -> tuple[str, ...]:
    """The groups of IDENTITY_WORDS that whole words of ``text`` name, in order, each once."""
    found = (_GROUP_OF.get(word) for word in re.findall(r"[a-z]+", text.casefold()))
    return tuple(dict.fromkeys(group for group in found if group is not None))


def _named(name: str) -> Suite:
    folder = data_folder()
    if folder is not None:
        path = folder / NAMED[name]
        if not path.is_file():
            raise DataError(f"suite {name!r}: REWARDLM_DATA is set, but {path} is not there; expected that file")
        return _file(path)
    if name == "hatecheck":
        rows = _hub_rows(HATECHECK_HUB_ID, "test", name)
        return _hatecheck(rows, _sha256_of(row.values for row in rows))
    if name == "rtp":
        path = cache_folder() / "suites" / "realtoxicityprompts.jsonl"
        if not path.is_file():
            fetched = _hub_rows(RTP_HUB_ID, "train", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, "".join(json.dumps(row.values) + "\n" for row in fetched).encode())
        return _labelled(str(path))
    raise DataError(f"suite {name!r}: set REWARDLM_DATA to the folder with {NAMED[name]}, or pass that file's path")


def _hub_rows(dataset: str, split: str, name: str) -> list[Row]:
    return list(
        hub_rows(
            dataset,
            split,
            lambda reason: (
                f"suite {name!r}: can't fetch {dataset} from the hub ({reason}); set REWARDLM_DATA to the folder with "
                f"{NAMED[name]}, or pass that file's path"
            ),
        )
    )


def _file(path: Path) -> Suite:
    """A file, told apart by the columns of its first row."""
    if path.suffix == ".json":
        # DIALOCONAN's is one object of columns; data sets of texts are lists.
        with open(path, "rb") as file:
            is_object = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{"
        return _dialogues(str(path), path.stem) if is_object else _labelled(str(path))
    rows = list(read_csv(path, _EXPECTED) if path.suffix == ".csv" else read_jsonl(path, _EXPECTED))
    names = rows[0].values.keys()
    if is_dialogue_header(names) or "messages" in names:
        return _dialogues(str(path), path.stem)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if {"functionality", "test_case", "label_gold"} <= names:
        return _hatecheck(rows, digest)
    if {"rev_id", "comment", "toxic"} <= names:
        texts = [SuiteText(row.text("comment"), {"toxicity": _label(row, "toxic")}) for row in rows]
        return Suite("jigsaw", ("toxicity",), tuple(texts), {}, digest)
    if "text" in names and "toxicity_score" not in names:  # ToxiGen's has labels too, and more than those
        for column, read in (("label", _label), ("score", _score)):
            if column in names:
                texts = [
                    SuiteText(
                        row.text("text"),
                        {column: read(row, column)},
                        str(row.values.get("functionality") or "") or None,
                        _groups(row.values.get("group")),
                    )
                    for row in rows
                ]
                return Suite(path.stem, (column,), tuple(texts), {}, digest, says_groups="group" in names)
    return _labelled(str(path))


def _hatecheck(rows: Iterable[Row], digest: str) -> Suite:
    texts = []
    for row in rows:
        gold = row.text("label_gold").strip()
        if gold not in ("hateful", "non-hateful"):
            raise DataError(f"{row.where}: label_gold is {shown(gold)}; expected hateful or non-hateful")
        texts.append(
            SuiteText(
                row.text("test_case"),
                {"hate": float(gold == "hateful")},
                row.text("functionality"),
                _groups(row.values.get("target_ident")),
            )
        )
    return Suite("hatecheck", ("hate",), tuple(texts), {}, digest, says_groups=True)


def _dialogues(source: str, name: str) -> Suite:
    """User turns are hate, the answers to them are not; DIALOCONAN's roles go by position, as in training.

    A turn that occurs in several dialogues is one text. ``groups`` are the dialogue's targets.
    """
    loaded = load_dialogues(source)
    dropped: Counter[str] = Counter({reason: n for reason, n in loaded.notes.items() if "left out" in reason})
    found: dict[tuple[str, bool], SuiteText] = {}
    for dialogue in loaded.dialogues:
        for turn in dialogue.turns:
            if turn.role == "system":
                continue
            hate = turn.role == "user"
            key = (normalised(turn.text), hate)
            if key in found:
                dropped["repeated turn"] += 1
                continue
            kind = HATE_TURN if hate else COUNTER_QUOTES if _QUOTATION.search(turn.text) else COUNTER
            groups = tuple(dialogue.target.split("/")) if dialogue.target else ()
            found[key] = SuiteText(turn.text, {"hate": float(hate)}, kind, groups)
    texts = tuple(found.values())
    digest = _sha256_of([text.text, dict(text.targets)] for text in texts)
    says_groups = any(text.groups for text in texts)
    return Suite(name, ("hate",), texts, dict(dropped), digest, says_groups)


def _labelled(source: str) -> Suite:
    """A data set that judges are trained on: the held-out part of a published one, or all of a user's own file."""
    sets, held_out = load_labelled(source), True
    dropped: Counter[str] = Counter()
    texts: list[SuiteText] = []
    for loaded in sets:
        published = loaded.kind in FILES or loaded.kind == "starter"
        kept = loaded.evaluation if published else loaded.texts
        dropped.update(loaded.dropped)
        dropped["not held out from training"] += len(loaded.texts) - len(kept)
        texts += [SuiteText(text.text, text.labels) for text in kept]
        held_out = held_out and published
    labels = tuple(label for label in LABELS if any(label in text.targets for text in texts))
    if not labels:
        raise DataError(f"{source}: none of its texts is held out from training; expected a larger data set")
    digest = sets[0].sha256 if len(sets) == 1 else _sha256_of(loaded.sha256 for loaded in sets)
    name = " ".join(dict.fromkeys(loaded.kind for loaded in sets))
    return Suite(name, labels, tuple(texts), dict(+dropped), digest, held_out=held_out)


def _groups(cell: object) -> tuple[str, ...]:
    name = str(cell or "").strip()
    return (name,) if name else ()


def _label(row: Row, column: str) -> float:
    """1.0 or 0.0. Raises DataError for anything else: a label that is guessed changes every number."""
    value = row.values.get(column)
    text = str(value).strip().lower()
    if text in ("1", "true", "1.0"):
        return 1.0
    if text in ("0", "false", "0.0"):
        return 0.0
    got = shown(value) if column in row.values else f"missing, there is only {columns(row.values)}"
    raise DataError(f"{row.where}: {column!r} is {got}; expected 0 or 1, true or false")


def _score(row: Row, column: str) -> float:
    value = probability(row.values.get(column), row.where, column)
    if value is None:
        raise DataError(f"{row.where}: {column!r} is missing or empty; expected a number from 0 to 1")
    return value


def _sha256_of(values: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
