"""Small models are quickest on one thread; they are those of tests/models, steered as in tests/steering."""

from __future__ import annotations

import sys
from pathlib import Path

from one_thread import _one_thread as _one_thread

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("models", "steering", "../benchmarks")]
