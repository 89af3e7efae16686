"""Where this machine keeps what is converted or fetched, and the user's data sets."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where converted weights and fetched data sets are kept: $REWARDLM_CACHE, else the user's cache folder."""
    set_by_user = os.environ.get("REWARDLM_CACHE")
    if set_by_user:
        return Path(set_by_user).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rewardlm"


def data_folder() -> Path | None:
    """Where the user keeps published data sets: $REWARDLM_DATA; None where it isn't set."""
    set_by_user = os.environ.get("REWARDLM_DATA")
    return Path(set_by_user).expanduser() if set_by_user else None
