"""What a labeller sees next, and what they can take back."""

from __future__ import annotations

from dataclasses import dataclass

from rewardlm.errors import DataError
from rewardlm.labelling.folder import Label, LabelFolder, LabelItem, Said, now


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
        """The first item that this labeller should see now; None if there is none left. What another one holds, who
        may have left, comes last.
        """
        open_items = self._open(labeller)
        free = [one for one in open_items if one.shared or self._held.get(one.id, labeller) == labeller]
        item = next(iter(free or open_items), None)
        if item is not None and not item.shared:
            self._held[item.id] = labeller
        return item

    def _open(self, labeller: str) -> list[LabelItem]:
        """What this labeller hasn't labelled, and nobody else either, if it isn't shared. Who couldn't tell left no
        label, so another may try.
        """
        said = self.folder.said()
        mine = said.get(labeller, {})
        done = {
            item
            for other, of_one in said.items()
            for item, label in of_one.items()
            if other != labeller and label is not None
        }
        return [one for one in self.folder.items if one.id not in mine and (one.shared or one.id not in done)]

    def label(self, labeller: str, item: str, label: Label, seconds: float | None) -> None:
        """What they say of an item. Raises DataError for an item or a label that doesn't exist."""
        if item not in self.folder.by_id:
            raise DataError(f"there is no item {item!r}")
        if label not in (0, 1, None):
            raise DataError(f"label is {label!r}: expected 1, 0 or null")
        self.folder.add([Said(item, labeller, label, now(), seconds)])
        self._held.pop(item, None)

    def undo(self, labeller: str, done: int) -> LabelItem | None:
        """Take back the last label of someone who has given so many. Returns its item, which comes next again; None if
        there is nothing to undo, or another number is known here: then it was taken back already.
        """
        mine = self.folder.said().get(labeller, {})
        if len(mine) != done:
            return None
        last = next((one.item for one in reversed(self.folder.lines) if self._stands(one, labeller, mine)), None)
        if last is None:
            return None
        self.folder.add([Said(last, labeller, None, now(), undone=True)])
        self._held[last] = labeller
        return self.folder.by_id[last]

    def progress(self, labeller: str) -> LabelProgress:
        """How far they are."""
        return LabelProgress(len(self.folder.said().get(labeller, {})), len(self._open(labeller)))

    @staticmethod
    def _stands(one: Said, labeller: str, mine: dict[str, Label]) -> bool:
        return one.labeller == labeller and not one.undone and one.item in mine
