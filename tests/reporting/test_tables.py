"""The terminal tables: every number that a reader needs, within 80 columns, and labels as plain text."""

import io
from typing import Any

import typed
from rich.console import Console

from rewardlm.reporting.notes import utility_changes_text
from rewardlm.reporting.tables import print_comparison

SPLITS = ("all", "toxic_prompts", "nontoxic_prompts", "challenging", "comparable")


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "n": 5000,
        "scored": 4321,
        "toxic_fraction": 0.14159,
        "toxic_fraction_ci95": [0.1311, 0.1522],
        "toxic_fraction_of_all": 0.1224,
        "mean": 0.2718,
        "expected_max_toxicity": 0.5772,
        "toxicity_probability": 0.6931,
        "buckets": [1, 2, 3],
        **changes,
    }


EMPTY = entry(
    n=0,
    scored=0,
    toxic_fraction=None,
    toxic_fraction_ci95=None,
    toxic_fraction_of_all=None,
    mean=None,
    expected_max_toxicity=None,
    toxicity_probability=None,
)


def change(split: str, label: str, **changes: Any) -> dict[str, Any]:
    return {
        "from": "PT",
        "to": label,
        "scorer": "judge",
        "split": split,
        "n": 4200,
        "delta": -0.0312,
        "delta_ci95": [-0.0421, -0.0213],
        "p_value": 0.00001,
        "mean_delta": -0.0456,
        "mean_delta_ci95": [-0.0654, -0.0345],
        "mean_p_value": 0.002,
        "better": 321,
        "worse": 123,
        "flow": [[901, 2, 3], [4, 905, 6], [7, 8, 909]],
        "flow_unscored": 777,
        **changes,
    }


def sample(label: str = "FT", scorer: str = "judge") -> dict[str, Any]:
    quality = {
        "empty_fraction": 0.0123,
        "non_latin_fraction": 0.329,
        "repetition": 0.0,
        "refusal_fraction": 0.25,
        "counter_narrative_fraction": None,
        "mean_words": 31.44,
        "distinct_2": 0.875,
        "prompt_similarity": None,
        "perplexity": None,
    }
    splits = {split: EMPTY if split == "toxic_prompts" else entry() for split in SPLITS}
    models = [
        {"label": name, "prompts": 5000, "generations": 5000, "scorers": {scorer: splits}, "quality": quality}
        for name in ("PT", label)
    ]
    warning = {"code": "language_switch", "model": label, "message": "32.9% of the answers [bold] are elsewhere"}
    return {
        "models": models,
        "comparisons": [change(split, label, scorer=scorer) for split in SPLITS],
        "warnings": [warning],
        "settings": {"threshold": 0.5, "inclusive": False},
    }


def printed(result: dict[str, Any], *, colour: bool = False) -> str:
    file = io.StringIO()
    print_comparison(typed.comparison(result), Console(file=file, width=80, force_terminal=colour, color_system=None))
    return file.getvalue()


def test_everything_is_there_within_80_columns() -> None:
    text = printed(sample())
    assert max(map(len, text.splitlines())) <= 80
    for number in ("14.2", "13.1 – 15.2", "0.272", "0.577", "69.3", "5000", "679"):
        assert number in text, number
    for number in ("4200", "−3.1", "−4.2 to −2.1", "<0.001", "321/123", "901", "909", "777"):
        assert number in text, number
    for number in ("1.2 %", "32.9 %", "25.0 %", "31.4", "0.875"):
        assert number in text, number
    assert "score > 0.5" in text
    assert "! FT language_switch: 32.9% of the answers [bold] are elsewhere" in text
    assert "comparable" in text


def test_what_nobody_measured_is_a_dash_or_left_out() -> None:
    text = printed(sample())
    assert "None" not in text
    assert "nan" not in text.lower()
    assert "–" in text
    assert "perplexity" not in text


def test_the_disagreement_of_an_ensemble_has_a_table_of_its_own() -> None:
    assert "Disagreement" not in printed(sample())
    result = sample(scorer="max(a,./b.c)")
    splits = result["models"][0]["scorers"]["max(a,./b.c)"]
    for model, mean in zip(result["models"], (0.1234, None), strict=True):
        model["scorers"] = {"max(a,./b.c)": splits, "max(a,./b.c)../b.c": splits}
        share = None if mean is None else 0.0321
        model["disagreement"] = {"max(a,./b.c)": {"scored": 987, "mean": mean, "fraction_over_half": share}}
    table = printed(result).partition("Disagreement")[2].partition("The highest")[0]
    rows = [line.split() for line in table.splitlines() if "max(" in line]
    assert rows == [["PT", "max(a,./b.c)", "0.123", "3.2", "%", "987"], ["FT", "max(a,./b.c)", "–", "–", "987"]]
    assert "max(a,./b.c)./b.c" not in "".join(printed(result).split())


def test_counter_narratives_stand_beside_toxicity_with_their_judges_error() -> None:
    result = sample("A fine-tuned mode", "a judge of texts")
    error = {"on": "CONAN.csv", "n": 1234, "accuracy": 0.71, "precision": 0.52, "recall": 0.83, "auc_hate": 0.9}
    for model in result["models"]:
        model["scorers"] = {name: dict.fromkeys(SPLITS, entry()) for name in model["scorers"]}
        model["quality"] = {
            **model["quality"], "counter_narrative_fraction": 0.4567, "counter_narrative_null": 0.3021,
            "counter_narrative_corrected": 0.4, "counter_narrative_corrected_ci95": [0.3, 0.5],
        }  # fmt: skip
        model["pair_judge"] = {"name": "starter_pairs", "revision": "abc", "error": error}
    text = printed(result)
    assert max(map(len, text.splitlines())) <= 80
    for share in ("45.7 %", "30.2 %", "40.0 %"):
        assert share in text.split("Quality of the answers")[1]
    flat = " ".join(text.split())
    for part in ("Counter-narratives by starter_pairs", "1,234 pairs", "71.0 %", "83.0 %", "52.0 %"):
        assert part in flat, part


def test_utility_is_there_where_it_was_measured_with_its_changes() -> None:
    assert "HellaSwag" not in printed(sample())
    result = sample()
    for model, share, perplexity in zip(result["models"], (0.4321, 0.4), (31.26, 32.5), strict=True):
        model["quality"] = {**model["quality"], "hellaswag": share, "wikitext_perplexity": perplexity}
    choice = {"n": 500, "delta": -0.0321, "delta_ci95": [-0.05, -0.01], "p_value": 0.004, "p_adjusted": 0.008}
    articles = {"n": 60, "delta": 0.0397, "delta_ci95": [0.03, 0.0496], "p_value": 0.0001, "p_adjusted": 0.0002}
    result["models"][1] |= {
        "utility_change": {"hellaswag": {"from": "PT", **choice}, "wikitext": {"from": "PT", **articles}},
        "utility_note": "best-of-n chooses among answers",
        "non_inferiority": {"hellaswag": {"margin": 0.01, "holds": False, "items_needed": 6100}},
    }
    text = printed(result)
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert ["HellaSwag", "43.2", "%", "40.0", "%"] in rows
    assert ["WikiText,", "perplexity", "a", "word", "31.3", "32.5"] in rows
    assert [row for row in rows if row[:1] == ["HellaSwag"]][1] == ["HellaSwag", "500", "−3.2", "−5.0", "to", "−1.0",
                                                                   "0.008", "no,", "needs", "6,100"]  # fmt: skip
    assert ["WikiText", "60", "+4.0", "%", "+3.0", "%", "to", "+5.0", "%", "<", "0.001", "–"] in rows
    assert "loss < 1 point" in text
    flat = " ".join(text.split())
    assert "FT: best-of-n chooses among answers." in flat
    assert utility_changes_text(typed.comparison(result).models) == (
        "From PT to FT: HellaSwag −3.2 points (95 % interval −5.0 to −1.0), p = 0.004, adjusted p = 0.008 (500 "
        "questions); WikiText perplexity +4.0 % (95 % interval +3.0 % to +5.0 %), p < 0.001, adjusted p < 0.001 (60 "
        "articles)."
    )


def test_harmless_prompts_and_groups_are_there_where_they_were_measured() -> None:
    result = sample()
    for model, refused in zip(result["models"], (4, 20), strict=True):
        model["over_refusal"] = {
            "n": 180, "prompts": 180, "refused": refused, "fraction": refused / 180, "mean_words": 60.0 - refused,
        }  # fmt: skip
        model["quality"] = {**model["quality"], "over_refusal_fraction": refused / 180}
        model["groups"] = {"a judge": {"women": {"mean": 0.4 - refused / 100}, "Jews": {"mean": 0.3}}}
    result["models"][1] |= {
        "over_refusal_change": {
            "from": "PT", "n": 180, "delta": 0.0889, "delta_ci95": [0.04, 0.1321], "p_value": 0.0004,
            "p_adjusted": 0.0004, "words_before": 56.0, "words": 40.0, "words_delta_ci95": [-20.04, -12.0],
        },
        "non_inferiority": {"over_refusal": {"margin": 0.01, "holds": False}},
        "groups_change": {"a judge": {
            "from": "PT", "p_value": 0.004, "p_adjusted": 0.012, "least": ["Jews"],
            "groups": {"women": {"delta": -0.16, "delta_ci95": [-0.2, -0.1]}, "Jews": {"delta": 0.0}},
        }},
    }  # fmt: skip
    text = printed(result)
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert ["harmless", "prompts", "refused", "2.2", "%", "11.1", "%"] in rows
    assert ["women", "0.360", "0.200", "(−0.160)"] in rows
    flat = " ".join(text.split())
    assert "FT refuses 20 of 180 harmless prompts that sound dangerous" in flat
    assert "40.0 words on average, −16.0 from PT, 95 % interval −20.0 to −12.0." in flat
    assert "harmless prompts refused 180 +8.9 +4.0 to +13.2 < 0.001 no" in flat
    result["models"][1]["over_refusal"] |= {"n": 1440, "refused": 160}
    assert "FT refuses in 160 of 1,440 answers to 180 harmless prompts" in " ".join(printed(result).split())
    assert "FT: Jews gained less than the others (adjusted p = 0.012)." in flat


def test_one_run_has_no_changes() -> None:
    result = sample()
    result["models"], result["comparisons"], result["warnings"] = result["models"][:1], [], []
    text = printed(result)
    assert "Change" not in text
    assert "Flow" not in text


def test_inclusive_is_said() -> None:
    result = sample()
    result["settings"] = {"threshold": 0.6, "inclusive": True}
    assert "score ≥ 0.6" in printed(result)


def test_an_empty_comparison_has_no_flow() -> None:
    result = sample()
    nothing = {"n": 0, "delta": None, "delta_ci95": None, "p_value": None}
    result["comparisons"] = [change(split, "FT", **nothing) for split in SPLITS]
    assert "Flow" not in printed(result)


def test_labels_are_text_and_not_markup_or_control_codes() -> None:
    text = printed(sample("[red]x[/red]\x1b[2J"), colour=True)
    assert "[red]x" in text
    assert "\x1b[2J" not in text


def test_long_names_keep_the_tables_narrow() -> None:
    text = printed(sample("m" * 300, "some-organisation/a-very-long-name-of-a-toxicity-classifier"))
    assert max(map(len, text.splitlines())) <= 80


def test_the_verdict_comes_first() -> None:
    text = " ".join(printed(sample()).split())
    assert text.startswith(
        "The toxic share of all answers is lower with FT, by a judge that may not be independent. "
        "The toxic share of all answers fell from PT to FT (−3.1 points, 95 % interval −4.2 to −2.1), by judge (nobody "
        "recorded whether it was trained on this judge); 4200 pairs of answers".replace("4200", "4,200")
    )
    assert text.index("1 warning stands below the tables.") < text.index("Toxicity, all prompts")


def test_what_unscored_answers_may_hide_has_a_table() -> None:
    result = sample()
    for model in result["models"]:
        for splits in model["scorers"].values():
            splits["all"] = entry(toxic_fraction_worst=0.2582)
    table = printed(result).partition("What unscored answers may hide")[2]
    assert ["PT", "judge", "679", "12.2", "25.8"] in [line.split() for line in table.splitlines()]
    assert "What unscored answers may hide" not in printed(sample())
