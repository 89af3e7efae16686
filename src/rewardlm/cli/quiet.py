"""Switches off what other libraries say on stderr: progress bars, advice and deprecations, each at its source.

Errors stay, and so do our own warnings. ``REWARDLM_VERBOSE=1`` leaves everything on, for debugging.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

from rewardlm.progress import is_verbose

# Read by the libraries when they are imported, so this comes first. What the user has set stays.
_SETTINGS = {
    "TOKENIZERS_PARALLELISM": "false",  # else it warns after each fork
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # huggingface_hub, and transformers' "Loading weights"
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
# Loggers of libraries that have no setting for it. bitsandbytes lists the faster kernels that aren't installed.
_LOGGERS = ("bitsandbytes", "sentence_transformers", "absl", "kernels")


def quieten() -> None:
    """Switch libraries' messages off, unless the user wants them."""
    # Not only for quiet: parallel tokenizers deadlock after a fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if is_verbose():
        return
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        # Deprecations inside libraries are ours to follow, not the user's; our own warnings are one line.
        for kind in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", kind)
