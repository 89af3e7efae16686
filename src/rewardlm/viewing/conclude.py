"""Compares runs and writes their page, in a process of its own, so that neither server nor training waits for it.

Reads ``{"runs": [folder, …], "page": file}`` from stdin. Writes one JSON object a line to stdout: first what the
comparison found, ``{"sentences", "primary", "warnings", "labels"}``, then ``{"page": true, "explorer": whether the page
has one}``; or ``{"error": text}``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rewardlm.errors import RewardLMError
from rewardlm.measuring.compare import compare
from rewardlm.measuring.comparison import Comparison
from rewardlm.runs import Run
from rewardlm.viewing.followed import MEASURED


def main() -> int:
    """Compare and write; the exit code."""
    os.nice(10)
    asked = json.load(sys.stdin)
    folders = [Path(folder) for folder in asked["runs"]]
    try:
        measured = [run for folder in folders if (run := Run.open(folder)).meta["kind"] in MEASURED]
        found = compare([run.path for run in measured])
        _say(_said(measured, found))
        from rewardlm.reporting.page import build_report

        page = build_report(folders, Path(asked["page"]), found=found).read_text(encoding="utf-8")
        _say({"page": True, "explorer": '<section id="explorer"' in page})
    except RewardLMError as error:
        _say({"error": str(error)})
        return 1
    return 0


def _said(measured: list[Run], found: Comparison) -> dict[str, Any]:
    """What the report's page says first: its sentences, the primary outcome, and the audit's warnings."""
    from rewardlm.reporting import headline
    from rewardlm.reporting.names import WARNINGS
    from rewardlm.reporting.subjects import subjects_of
    from rewardlm.reporting.verdict import verdicts

    labels = [model.label for model in found.models]
    return {
        "labels": labels,
        "sentences": [verdict.text for verdict in verdicts(found, subjects_of(measured, labels))],
        "primary": headline.primary_text(found),
        "warnings": [
            {"heading": WARNINGS.get(one.code, one.code), "model": one.model, "message": one.message}
            for one in found.warnings
        ],
    }


def _say(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    sys.exit(main())
