"""What a labeller sees next, and what they can take back."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from rewardlm.errors import DataError
from rewardlm.labelling.folder import Label, LabelFolder, LabelItem, Said


@dataclass(frozen=True, slots=True)
class LabelProgress:
    """Of the items that are meant for a labeller: ``done`` by them, and ``left``."""

    done: int
    left: int


class Session:
    """A folder's items, handed to labellers one by one. Shared items go to each; any other to the first who comes, and
    to nobody else while that labeller hasn't answered it.
    """

    def __init__(self, folder: LabelFolder) -> None:
        self.folder = folder
        self._held: dict[str, str] = {}

    def next(self, labeller: str) -> LabelItem | None:
        """The first item that this labeller should see now; None if there is none left."""
        said = self.folder.said()
        mine = said.get(labeller, {})
        taken = {item for other, of_one in said.items() if other != labeller for item in of_one}
        for item in self.folder.items:
            if item.id in mine:
                continue
            if not item.shared and (item.id in taken or self._held.get(item.id, labeller) != labeller):
                continue
            if not item.shared:
                self._held[item.id] = labeller
            return item
        return None

    def label(self, labeller: str, item: str, label: Label, seconds: float | None) -> None:
        """What they say of an item. Raises DataError for an item or a label that doesn't exist."""
        if item not in self.folder.by_id:
            raise DataError(f"there is no item {item!r}")
        if label not in (0, 1, None):
            raise DataError(f"label is {label!r}: expected 1, 0 or null")
        self.folder.add([Said(item, labeller, label, _now(), seconds)])
        self._held.pop(item, None)

    def undo(self, labeller: str) -> LabelItem | None:
        """Take their last label back. Returns its item, which comes next again; None if there is nothing to undo."""
        mine = self.folder.said().get(labeller, {})
        last = next((one.item for one in reversed(self.folder.lines) if self._stands(one, labeller, mine)), None)
        if last is None:
            return None
        self.folder.add([Said(last, labeller, None, _now(), undone=True)])
        return self.folder.by_id[last]

    def progress(self, labeller: str) -> LabelProgress:
        """How far they are."""
        said = self.folder.said()
        mine = said.get(labeller, {})
        others = {item for other, of_one in said.items() if other != labeller for item in of_one}
        left = sum(one.id not in mine and (one.shared or one.id not in others) for one in self.folder.items)
        return LabelProgress(len(mine), left)

    @staticmethod
    def _stands(one: Said, labeller: str, mine: dict[str, Label]) -> bool:
        return one.labeller == labeller and not one.undone and one.item in mine


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
