"""Labels in other programs' formats: CSV, Label Studio, Argilla. What is written there can be labelled there and read
back; a file names items by their ids, and no model.

A label is written as ``yes``, ``no`` or ``unsure``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from rewardlm.data.files import read_csv, read_json
from rewardlm.errors import DataError
from rewardlm.labelling.folder import Label, LabelFolder, Said, labeller_name, now
from rewardlm.runs import write_atomically

Format = Literal["csv", "label-studio", "argilla"]
WORDS: dict[Label, str] = {1: "yes", 0: "no", None: "unsure"}
_LABELS: dict[str, Label] = {
    **{word: label for label, word in WORDS.items()},
    "1": 1, "0": 0, "true": 1, "false": 0, "toxic": 1, "not toxic": 0, "can't tell": None,
}  # fmt: skip
# What the question is called in Label Studio and Argilla.
_QUESTION = "toxic"
LABEL_CONFIG = f"""<View>
  <Header value="Prompt"/><Text name="prompt" value="$prompt"/>
  <Header value="Answer"/><Text name="text" value="$text"/>
  <Choices name="{_QUESTION}" toName="text" choice="single" showInLine="true">
    <Choice value="yes" hotkey="1"/><Choice value="no" hotkey="2"/><Choice value="unsure" hotkey="3"/>
  </Choices>
</View>
"""


def export(folder: LabelFolder, path: Path, form: Format) -> int:
    """Write every item with its labels to ``path``. Returns how many labels that is.

    CSV has a line for each label, and one for an item without any. Label Studio gets a list of tasks with annotations,
    and beside the file its labelling interface (``.xml``). Argilla gets a list of records with responses.
    """
    by_item: dict[str, list[tuple[str, Label]]] = {item.id: [] for item in folder.items}
    for labeller, of_one in folder.said().items():
        for identity, label in of_one.items():
            by_item[identity].append((labeller, label))
    if form == "csv":
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("item", "prompt", "answer", "labeller", "label"))
        for item in folder.items:
            for labeller, label in by_item[item.id] or [("", None)]:
                rows.writerow((item.id, item.prompt, item.text, labeller, WORDS[label] if labeller else ""))
        whole = text.getvalue()
    else:
        made = _label_studio if form == "label-studio" else _argilla
        whole = json.dumps([made(folder, item.id, by_item[item.id]) for item in folder.items], indent=1)
    write_atomically(path, whole.encode())
    if form == "label-studio":
        write_atomically(path.with_suffix(".xml"), LABEL_CONFIG.encode())
    return sum(map(len, by_item.values()))


def import_labels(folder: LabelFolder, path: Path) -> int:
    """Add the labels in ``path``, a file of ``export`` that was filled in or made alike, where they are new or changed.
    The format is told by the file. A table without ids names answers by their texts, and may hold others. Returns how
    many were added.

    Raises DataError for an unknown item, a label that is none, or two labels of one labeller for an item, and where
    there is no label of any item; then nothing is added.
    """
    given: dict[tuple[str, str], Label] = {}
    for where, item, labeller, label in _rows(path, folder):
        if item not in folder.by_id:
            raise DataError(
                f"{where}: there is no item {item!r} in {folder.run.path}: expected an id from label export"
            )
        key = item, labeller_name(labeller)
        if given.get(key, label) != label:
            raise DataError(f"{where}: {labeller!r} has two labels for {item!r}: leave one out")
        given[key] = label
    if not given:
        raise DataError(f"{path} has no label of an answer in {folder.run.path}")
    known = folder.said()
    at = now()
    new = [
        Said(item, labeller, label, at)
        for (item, labeller), label in given.items()
        if item not in known.get(labeller, {}) or known[labeller][item] != label
    ]
    folder.add(new)
    return len(new)


def _label_studio(folder: LabelFolder, item: str, labels: list[tuple[str, Label]]) -> dict[str, Any]:
    one = folder.by_id[item]
    return {
        "data": {"item": item, "prompt": one.prompt, "text": one.text},
        "annotations": [
            {
                "completed_by": {"email": labeller},
                "result": [
                    {
                        "from_name": _QUESTION, "to_name": "text", "type": "choices",
                        "value": {"choices": [WORDS[label]]},
                    }
                ],
            }
            for labeller, label in labels
        ],
    }  # fmt: skip


def _argilla(folder: LabelFolder, item: str, labels: list[tuple[str, Label]]) -> dict[str, Any]:
    one = folder.by_id[item]
    return {
        "id": item,
        "fields": {"prompt": one.prompt, "text": one.text},
        "metadata": {},
        "suggestions": {},
        "responses": {_QUESTION: [{"value": WORDS[label], "user_id": labeller} for labeller, label in labels]},
    }


def _rows(path: Path, folder: LabelFolder) -> Iterator[tuple[str, str, str, Label]]:
    """Of each label in the file: where it stands, its item, its labeller, and what it is."""
    if path.suffix.lower() == ".json":
        yield from _of_json(path)
        return
    columns = "the columns item (or prompt and answer), labeller and label, as label export writes them"
    by_texts: dict[tuple[str, str], list[str]] = {}
    for item in folder.items:
        by_texts.setdefault((item.prompt, item.text), []).append(item.id)
    for row in read_csv(path, columns):
        prompt, text = row.values.get("prompt"), row.values.get("answer", row.values.get("response"))
        lacking = {"labeller", "label"} - row.values.keys()
        if lacking or ("item" not in row.values and None in (prompt, text)):
            raise DataError(
                f"{row.where}: there is no column {', '.join(sorted(lacking)) or 'item'}; expected {columns}"
            )
        if row.values["label"].strip():
            label = _label(row.where, row.values["label"])
            # Texts are those of many answers, of which some were drawn.
            items = [row.values["item"]] if "item" in row.values else by_texts.get((str(prompt), str(text)), [])
            yield from ((row.where, one, row.values["labeller"], label) for one in items)


def _of_json(path: Path) -> Iterator[tuple[str, str, str, Label]]:
    found = read_json(path, "a list of Label Studio's tasks or Argilla's records")
    if not isinstance(found, list):
        raise DataError(f"{path}: expected a list of Label Studio's tasks or Argilla's records")
    for number, task in enumerate(found, 1):
        where = f"{path}, entry {number}"
        try:
            if "annotations" in task:
                for annotation in task["annotations"]:
                    if annotation.get("was_cancelled"):
                        continue
                    by = annotation.get("completed_by")
                    name = by.get("email") or by.get("id") if isinstance(by, dict) else by
                    for result in annotation["result"]:
                        if result["from_name"] == _QUESTION:
                            (choice,) = result["value"]["choices"]
                            yield where, str(task["data"]["item"]), str(name or ""), _label(where, choice)
            else:
                for response in (task.get("responses") or {}).get(_QUESTION, []):
                    yield where, str(task["id"]), str(response.get("user_id") or ""), _label(where, response["value"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{where}: {type(error).__name__}: {error}; expected a task of Label Studio or a record of Argilla, as "
                "label export writes them"
            ) from None


def _label(where: str, written: Any) -> Label:
    label = _LABELS.get(str(written).strip().lower(), "none")
    if label == "none":
        raise DataError(f"{where}: the label is {str(written)!r:.40}: expected yes, no or unsure")
    assert label is None or isinstance(label, int | float)
    return label
