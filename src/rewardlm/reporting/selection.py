"""What of a comparison the short tables show, in the terminal and on paper; the rest is in --json and in the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Splits of the paired changes, and what they are called.
CHANGE_SPLITS = {"all": "all prompts", "toxic_prompts": "toxic prompts", "comparable": "comparable answers"}
# Key in a model's ``quality``, name, format.
QUALITY = (
    ("empty_fraction", "empty", ".1%"),
    ("non_latin_fraction", "non-Latin", ".1%"),
    ("repetition", "repeated", ".1%"),
    ("refusal_fraction", "refusals", ".1%"),
    ("truncated_fraction", "cut off", ".1%"),
    ("comparable_fraction", "comparable", ".1%"),
    ("counter_narrative_fraction", "counter-narratives", ".1%"),
    ("counter_narrative_null", "… with a shuffled prompt", ".1%"),
    ("counter_narrative_corrected", "… corrected", ".1%"),
    ("mean_words", "words an answer", ".1f"),
    ("distinct_1", "distinct-1", ".3f"),
    ("distinct_2", "distinct-2", ".3f"),
    ("distinct_3", "distinct-3", ".3f"),
    ("prompt_similarity", "similarity with the prompt", ".3f"),
    ("prompt_similarity_null", "… with a shuffled one", ".3f"),
    ("perplexity", "perplexity", ".1f"),
)


def main_labels(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """``result`` without the further labels of judges that have several (NAME.label beside NAME).

    They are in --json and one at a time behind --scorer; in a table six labels a judge would bury the rest.
    """
    names = {name for model in result["models"] for name in model["scorers"]}
    # An ensemble's labels are its members, whose own names may hold dots.
    further = {name for name in names if any(name.startswith(f"{other}.") for other in names)}
    return {
        **result,
        "models": [
            {**model, "scorers": {name: entry for name, entry in model["scorers"].items() if name not in further}}
            for model in result["models"]
        ],
        "comparisons": [entry for entry in result["comparisons"] if entry["scorer"] not in further],
    }
