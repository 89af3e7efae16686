"""Small models are quickest on one thread, and then sums don't depend on how busy the machine is."""

from __future__ import annotations

from one_thread import _one_thread as _one_thread
