"""Who may read a text: the one place that splits texts for training, for measuring and for judges.

Everything follows from SHA-256 of the text itself, so two machines, two data sets and two commands agree without
asking each other. The parts are nested:

    train half of all texts     RL may train on them as prompts; judges may read them
    measure half                models are measured on them as prompts
      held out                  a tenth of all texts, inside the measure half: no judge trains on them
        calibration | evaluation  one half of them calibrates judges, the other half tests judges

No judge reads the prompts that a model is measured on: see ``judges.texts``. A text that judges may read belongs to the
``share`` of one of the two judges that the package ships, so that one of them can be a witness when the other is the
reward.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal, get_args

from rewardlm.data.dialogues import normalised

Part = Literal["all", "train", "measure"]
PARTS: tuple[str, ...] = get_args(Part)
# Whose texts a judge reads: those of one of the two judges that the package ships, or both.
Share = Literal["all", "starter", "witness"]

_STARTERS = 2 / 3  # of the texts that train judges
_HALF = 128
_HELD_OUT = 26  # of a byte's 256 values: a tenth
_ADDRESS = re.compile(r"https?://\S+|@\w+")


def part_of(text: str) -> Part:
    """The half to which a prompt with this text belongs, wherever it comes from: ``train`` or ``measure``."""
    return "train" if _digest(normalised(text))[0] < _HALF else "measure"


def is_held_out(text: str) -> bool:
    """Whether no judge may train on this text: a tenth of all texts, from the measure half; equal texts go together."""
    return _HALF <= _digest(normalised(text))[0] < _HALF + _HELD_OUT


def is_for_calibration(text: str) -> bool:
    """Whether a held-out text is in the half that calibrates, by another byte of the hash."""
    return _digest(normalised(text))[1] % 2 == 0


def share_of(text: str, *, calibrates: bool = False) -> Share:
    """Which of the two judges that the package ships may read this text: ``starter`` two thirds, ``witness`` one.

    Near duplicates go together (see ``wording``). Texts that calibrate are divided evenly: a judge needs a certain
    number of them, however few it trains on.
    """
    place = int.from_bytes(_digest(wording(text))[2:6], "big") / 2**32
    return "starter" if place < (1 / 2 if calibrates else _STARTERS) else "witness"


def wording(text: str) -> str:
    """What near duplicates have in common: the words, without addresses, @mentions and punctuation.

    A tweet and its quotation with other marks are one text for a judge. A text without words is returned normalised.
    """
    whole = normalised(text)
    return " ".join(re.findall(r"\w+", _ADDRESS.sub(" ", whole))) or whole


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()
