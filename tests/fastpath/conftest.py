"""Small models are quickest on one thread; they are those of tests/models."""

from __future__ import annotations

import sys
from pathlib import Path

from one_thread import _one_thread as _one_thread

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
