"""The small models of tests/models, and the ways to steer them of tests/steering."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("models", "steering")]
