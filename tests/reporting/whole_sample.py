"""Made-up results in which nothing is left out: every part that a page can show is there. All texts are ours."""

from __future__ import annotations

from typing import Any

import typed
from interpretation_sample import interval, sample_interpretation
from report_sample import sample_about, sample_result, sample_training

from rewardlm.interpreting.findings import Interpretation
from rewardlm.measuring.comparison import Comparison
from rewardlm.measuring.frontier import Frontier
from rewardlm.measuring.power import Plan

ENDS = [0.1, 0.2]
LEVELS = (("negligible", 0.0), ("low", 0.2), ("severe", 0.9))


def whole_comparison() -> Comparison:
    """Three models, two judges; utility, groups, counter-narratives, corrected shares, curves of severity."""
    result = sample_result()
    for number, model in enumerate(result["models"]):
        model |= {
            "pair_judge": {
                "name": "pairs", "revision": f"r{number}",
                "error": {"on": "the pairs of a test", "n": 400, "accuracy": 0.9, "recall": 0.8, "precision": 0.7},
            },
            "quality_sample": {"similarity": {"answers": 50, "of": 700}},
            "max_new_tokens": 20,
            "disagreement": {"lexical": {"scored": 700, "mean": 0.2, "fraction_over_half": 0.1}},
            "utility": {"hellaswag": {"n": 100, "value": 0.4, "ci95": ENDS}},
            "over_refusal": {
                "n": 180, "prompts": 180, "refused": 4, "fraction": 0.02, "fraction_ci95": [0.01, 0.04],
                "mean_words": 50.0,
                "sets": {"own prompts": {"n": 180, "refused": 4}}, "kinds": {"homonym": {"n": 9, "refused": 1}},
            },
            "groups": {
                "lexical2": {
                    group: {"n": 20, "scored": 20, "mean": 0.1, "toxic_fraction": 0.0}
                    for group in ("nurses", "dancers")
                }
            },
            "utility_note": "was taken without the steering",
        }  # fmt: skip
        model["quality"] |= {
            "truncated_fraction": 0.4, "counter_narrative_fraction": 0.3, "counter_narrative_null": 0.1,
            "counter_narrative_corrected": 0.25, "counter_narrative_corrected_ci95": ENDS,
            "counter_narrative_errors_fit": False,
        }  # fmt: skip
        if number:
            change = {"from": "PT", "n": 90, "delta": 0.01, "delta_ci95": [-0.1, 0.1], "p_value": 0.8}
            model |= {
                "counter_narrative_change": {**change, "rose": 9, "fell": 8, "delta_over_null": 0.1},
                "truncated_change": change,
                "quality_change": {"refusal_fraction": {**change, "prompts": 90}},
                "utility_change": {"hellaswag": {**change, "p_adjusted": 1.0}},
                "accuracy_change": change,
                "over_refusal_change": {
                    **change, "words_before": 60.0, "words": 20.0, "words_delta_ci95": [-50.0, -30.0],
                },
                "non_inferiority": {"hellaswag": {"margin": 0.01, "holds": False, "items_needed": 6100}},
                "groups_change": {
                    "lexical2": {
                        "from": "PT", "n": 20, "p_value": 0.01, "p_adjusted": 0.02, "least": ["nurses", "dancers"],
                        "groups": {"nurses": {"n": 20, "delta": -0.1, "delta_ci95": [-0.2, -0.05]}},
                    }
                },
            }  # fmt: skip
        for splits in model["scorers"].values():
            splits["all"] |= {
                "correction": "ppi", "corrected_fraction": 0.2, "corrected_fraction_ci95": ENDS, "labels": 200,
                "equal_samples": {
                    "samples": 1, "prompts": 690, "left_out": 10, "expected_max_toxicity": 0.3,
                    "toxicity_probability": 0.2,
                },
            }  # fmt: skip
    for change in result["comparisons"]:
        change |= {
            "before": 0.3, "after": 0.2, "p_adjusted": 0.01, "expected_max_toxicity_delta": -0.1,
            "expected_max_toxicity_delta_ci95": [-0.2, -0.05], "expected_max_toxicity_p_value": 0.01,
            "corrected_delta": -0.1, "labels": 200,
            "flow_redraw": [[300.0, 20.5, 10.0], None, [40.0, 10.0, 30.5]],
            "flow_excess": [
                [{"delta": 0.1, "ci95": ENDS, "p_value": 0.01, "prompts": 9}, None, None], [None] * 3, [None] * 3,
            ],
            "equal_samples": {"samples": 1, "prompts": 690, "left_out": 10},
        }  # fmt: skip
    grid = [0.25, 0.5, 0.75]
    result["severity"] = [
        {
            "label": label, "scorer": judge, "split": "all", "n": 700, "thresholds": grid, "shares": [0.4, 0.2, 0.1],
            "band95": [ENDS] * 3,
            "levels": [{"name": name, "above": above, "share": 0.3, "share_ci95": ENDS} for name, above in LEVELS],
        }
        for judge in ("lexical", "lexical2") for label in ("PT", "FT", "RL")
    ]  # fmt: skip
    result["severity_change"] = [
        {
            "from": "PT", "to": label, "scorer": judge, "split": "all", "n": 700, "thresholds": grid,
            "deltas": [-0.2, -0.1, -0.1], "band95": [[-0.3, -0.1]] * 3, "fell": [[0.25, 0.75]], "rose": [[0.8, 0.8]],
            "levels": [
                {"name": name, "above": above, "delta": -0.1, "delta_ci95": [-0.2, -0.05], "p_adjusted": 0.01}
                for name, above in LEVELS
            ],
        }
        for judge in ("lexical", "lexical2") for label in ("FT", "RL")
    ]  # fmt: skip
    result |= {
        "primary": {"scorer": "lexical2", "split": "toxic_prompts", "metric": "expected_max_toxicity"},
        "primary_fixed": {"when": "afterwards", "sentence": "It was fixed afterwards."},
        "correction_notes": ["A note on what was corrected."],
        "settings": {
            "threshold": 0.5, "redraw": "PT again",
            "thresholds": {
                "lexical": {"value": 0.061, "matching": "share", "old": 0.5, "n": 900, "source": "scored texts.csv"}
            },
        },
    }  # fmt: skip
    result["warnings"].append({"code": "a code that nobody knows", "model": "FT", "message": "Something is odd."})
    result["warnings"].append(
        {"code": "judge_taught_reward", "model": "RL", "message": "They are related.", "scorer": "lexical2"}
    )
    return typed.comparison(result)


def whole_training() -> dict[str, list[dict[str, Any]]]:
    """Metrics of two trainings, with witnesses, terms of the reward, and warnings."""
    training: dict[str, list[dict[str, Any]]] = {label: records[::20] for label, records in sample_training().items()}
    for record in training["RL, PPO"]:
        record |= {
            "toxicity_mean": 0.2, "toxicity_by_witness": {"a witness": 0.3}, "terms": {"a term of the reward": 0.4},
            "warnings": ["hacked: the witness does not see it", "a warning without a kind"],
        }  # fmt: skip
    return training


def whole_about() -> dict[str, Any]:
    """How it was measured, with a sentence for every note."""
    return {**sample_about(), "notes": ["other is a run of kind odd, which this page doesn’t show."]}


def whole_interpretation() -> Interpretation:
    """Drift, attribution, similarity, and the residual stream of three models, one of which can't be read."""
    result = sample_interpretation()
    result["models"].append(
        {
            "label": "steered", "model": "tiny", "adapter": "an/adapter", "rewards": ["lexical"], "dtype": "float32",
            "method": "best-of-n", "strength": 2.0,
            "left_out": {part: f"{part} can’t be read: it draws" for part in ("drift", "attribution", "inside")},
        }
    )  # fmt: skip
    result["models"][1] |= _causes()
    result["causes"] = {"pairs": 24, "generation": {"top_p": 0.9}}
    result["sample"] |= {"reward_of": ["RL"], "redraw": [[100.0, 20.5, 3.0], None, [4.0, 5.0, 6.5]]}
    result["attribution"] |= {
        "method": "a method of ours",
        "completeness": {
            "tolerance": 0.05, "tokens": 90, "refused": 2, "reasons": ["its scores don’t add up"], "largest_gap": 0.1,
            "largest_share": 0.02, "steps": 32.0, "most_steps": 64,
        },
    }  # fmt: skip
    for example in result["shown"]:
        example["toxicity"].append(0.3)
    result["inside"] = _inside()
    result["inside_notes"] = ["A note on what could not be examined."]
    return Interpretation.model_validate(result)


def _causes() -> dict[str, Any]:
    """Which parts of an adapter do it: two heads and an MLP in each of two layers, a part of it that is enough."""
    share = {"mean": 0.6, "ci95": [0.4, 0.8], "n": 24}
    change = {**interval(0.3, 0.2, 0.4, 24), "p_value": 0.001, "p_adjusted": 0.01}

    def site(kind: str, layer: int, head: int | None, claimed: bool) -> dict[str, Any]:
        name = f"{kind} {layer}" + ("" if head is None else f".{head}")
        stream = kind == "stream"
        return {
            "site": name, "kind": kind, "layer": layer, "head": head, "effect": 0.1 + layer / 10, "ci95": [0.05, 0.3],
            "p_value": 0.001, "p_adjusted": 0.02, "p_random": 0.047, "claimed": claimed,
            "own": None if stream else 0.05, "own_ci95": None if stream else [0.01, 0.09],
            "own_p_adjusted": None if stream else 0.03, "own_p_random": None if stream else 0.047,
            "origin": claimed and not stream,
            "exact": True, "estimate": 0.11, "out_of": 0.08, "placebo": 0.001,
            "by_position": {"template": 0.01, "hostile": 0.05, "prompt": -0.01, "start": 0.003, "answer": 0.02},
            "exact_by_position": {"template": 0.012, "hostile": 0.051, "prompt": -0.013, "start": 0.0, "answer": 0.02},
        }  # fmt: skip

    def head(layer: int, number: int) -> dict[str, Any]:
        look = {"template": 0.5, "hostile": 0.1, "prompt": 0.2, "answer": 0.2}
        return {
            "layer": layer, "head": number, "base": look, "tuned": look, "qk_change": 0.02, "ov_change": 0.05,
            "qk_spectrum": [0.9, 0.1], "ov_spectrum": [0.8, 0.2], "wrote": [f"written {layer}.{number}"],
            "promotes": [f"promoted {layer}.{number}"], "demotes": [f"demoted {layer}.{number}"],
        }  # fmt: skip

    measured = {
        "toxicity": 0.3, "toxic_fraction": 0.25, "perplexity": 12.0, "prompt_similarity": 0.3, "words": 14.0,
        "drift": 0.1,
    }  # fmt: skip
    words = {"tokens": ["a prompt by part", " an answer by part"], "values": [[0.0, 0.02], [-0.01, 0.0]]}
    names = ("named", "toxic_down", "toxic_up", "against_up", "against_down", "all", "attention", "vectors")
    sites = [
        site(kind, layer, number, claimed=layer == 1)
        for layer in range(2)
        for kind, number in (("head", 0), ("head", 1), ("mlp", None))
    ]
    return {
        "towards": "harmless", "harmless_change": {**interval(0.02, -0.1, 0.14, 24), "p_value": 0.6},
        "heads": [head(layer, number) for layer in range(2) for number in range(2)],
        "patching": [*sites, site("stream", 1, None, False), site("stream", 2, None, True)],
        "patched": {
            "pairs": 24, "before": 0.1, "after": 0.4, "change": change, "sites": 8, "exact_sites": 8,
            "rank_correlation": 0.9, "random_adapters": 20, "largest_random": 0.02,
            "own_largest_random": 0.01, "origins": ["head 1.0"],
            "own_rank_correlation": 0.8, "claimed": ["head 1.0", "mlp 1"], "placebo_pairs": 24, "placebo_claimed": 3,
            "estimated_claimed": 4,
            "placebo_change": {**interval(0.25, 0.1, 0.4, 24), "p_value": 0.001},
            "answers": [
                {"into": into, "sites": some, "random": random, "toxicity": 0.4, "toxic_fraction": 0.4,
                 "change": {**interval(-0.1, -0.3, 0.1), "p_value": 0.2, "p_adjusted": 0.6} if some else None}
                for into, some, random in (
                    ("base", [], False), ("base", ["head 1.0"], False), ("base", ["head 1.0"], True),
                    ("tuned", [], False), ("tuned", ["head 1.0"], False),
                )
            ],
            "words": [{"sites": ["head 1.0", "mlp 1"], "prompt": 1, "toxic": words, "harmless": words}],
        },
        "neuron_groups": [
            {"name": name, "neurons": 16, "into": share, "out_of": share, "effect": 0.1, "lost": 0.1} for name in names
        ],
        "neurons": [{"layer": 1, "neuron": 3, "estimate": 0.002, "tokens": ["a neuron’s token"]}],
        "verdict": {
            "kind": "bypassed", "reason": "why it was bypassed", "change": change,
            "vectors": {"mean": 0.1, "ci95": [0.0, 0.18], "n": 24}, "carries": 0.5, "carries_little": 0.2,
        },
        "minimal_adapter": {
            "reason": None, "keep": 0.9, "chosen_on": 60, "measured_on": 60, "of_parameters": 5000, "unit": "rank",
            "units": 3, "of_units": 40, "kept": 0.07, "parameters": 350, "adapter": "minimal/FT/adapter",
            "parts": ["a part by name"], **measured, "fall_kept": share,
            "change_from_whole": {**interval(0.01, -0.05, 0.07, 24), "p_value": 0.7},
            "similarity_from_whole": {**interval(0.02, 0.01, 0.03, 24), "p_value": 0.001},
            "drift_from_whole": {**interval(-0.05, -0.07, -0.03, 24), "p_value": 0.001},
            "fluency_from_whole": {**interval(0.04, -0.01, 0.09, 24), "p_value": 0.1},
            "whole": measured, "base": {**measured, "toxicity": 0.7},
            "tried": [
                {"unit": "rank", "units": 3, "of": 40, "parameters": 350, "preference_kept": 0.91, "fall_kept": 0.95,
                 "fall_kept_again": 0.93, "passed": True},
                {"unit": "layer", "units": 1, "of": 2, "parameters": 900, "preference_kept": 0.97, "fall_kept": None,
                 "fall_kept_again": None, "passed": False},
            ],
        },
    }  # fmt: skip


def _inside() -> dict[str, Any]:
    """Two layers of two heads, one value vector."""
    models, tuned = ["PT", "FT", "RL"], ["FT", "RL"]
    by_head = [[0.25, 0.5], [0.5, 0.25]]
    ratio = {"mean": 0.5, "ci95": [0.4, 0.6], "as_before": False, "n": 24}
    effect = {
        "plain": 0.7, "named": 0.2, "random": 0.6, "change": interval(-0.5, -0.6, -0.4),
        "random_change": interval(-0.1, -0.2, 0.0), "random_changes": [-0.1, 0.0],
        "beyond_random": interval(-0.4, -0.5, -0.3), "p_value_random": 0.04,
    }  # fmt: skip
    modules = {"mlp.up_proj": [0.5, 0.25], "self_attn.o_proj": [0.25, 0.5], "mlp": [0.5, 0.25]}
    rows = [("plain", 1.0, []), ("scale", 0.5, []), ("layers_off", 1.0, [0, 1]), ("add", 1.0, [1]),
            ("ablate", 1.0, [1]), ("add_random", 1.0, [1])]  # fmt: skip
    return {
        "models": models, "family": "llama", "n_layers": 2, "n_heads": 2, "answers": 24,
        "focus": {"answers": 12, "toxic": True}, "words": {"toxic": ["fools"], "neutral": ["tables"]},
        "stream": {
            label: {
                "positions": 144,
                "attention": dict.fromkeys(("first", "prompt", "response", "entropy"), by_head),
                "shares": {
                    "embedding": 0.5, "heads": by_head, "attention_bias": [0.0, 0.0], "adapter_heads": by_head,
                    "mlp": [1.0, 0.5], "mlp_bias": [0.0, 0.0], "adapter_mlp": [0.5, 0.0], "constant": 0.0, "total": 4.0,
                },
                "largest_error": 1e-6,
                "lens": {
                    "score": [0.0, 0.5, 1.0], "target_logprob": [-6.0, -4.0, -2.0], "entropy": [3.0, 2.0, 1.0],
                    "kl": [3.0, 1.0, 0.0], "score_ci95": {"low": [-0.1, 0.4, None], "high": [0.1, 0.6, None]},
                },
                "lens_positions": 96,
            }
            for label in models
        },
        "directions": {
            "n": 24, "n_toxic": 12, "reason": None, "layer": 1, "folds": 5, "probe_accuracy": [0.5, 0.9, 0.8],
            "probe_auc": [0.5, 0.9, 0.8], "mean_accuracy": [0.5, 0.9, 0.8], "mean_auc": [0.5, 0.9, 0.8],
            "majority": 0.5, "shuffled_accuracy": 0.6, "length": 7.0, "stream_length": 4.0,
            "shuffled": {
                "number": 2, "probe": {"auc": [0.6, 0.5], "p_value": 0.04},
                "mean": {"auc": [0.6, 0.5], "p_value": 0.04},
            },
        },
        "vectors": {
            "rows": [{"layer": 0, "neuron": 5, "sign": -1, "score": 2.5, "tokens": [" fools", " idiots"]}],
            "margin": 0.2, "by": "direction",
            "by_model": {
                label: {
                    "cosine": [0.9], "change": [0.1], "activation": [1.5], "push": 2.0, "push_ratio": ratio,
                    "read_ratio": ratio, "write_ratio": ratio,
                    "null": [{"cosine": 1.0, "push_ratio": 0.95, "read_ratio": 0.9, "write_ratio": 1.0}],
                }
                for label in models
            },
        },
        "ablation": {
            "vectors": 1, "random_sets": 20, "answering_sets": 2, "prompts": 10, "answers": 12,
            "prompts_of_answers": 12,
            "by_model": {label: {"toxicity": effect, "logits": effect} for label in models},
        },
        "adapters": {
            label: {
                "answers": 6, "positions": 36, "moved": [0.0, 0.5, 0.9], "length": modules, "share": modules,
                "score": {"change": -2.0, "own": -3.0, "rest": 1.0},
                "share_ci95": {name: {"low": [-0.1, 0.2], "high": [0.6, None]} for name in modules},
            }
            for label in tuned
        },
        "paths": {
            label: {
                "pairs": 4, "mean_fall": 0.9, "before": -1.0, "after": 2.0, "of": "redraw", "followed": 4, "whole": 3.0,
                "by_layer": [2.0, 1.0], "by_module": {"mlp.up_proj": 2.0, "self_attn.o_proj": 1.0}, "missing": 0.01,
                "steps": 4, "adds_up": True, "fewest": 1,
                "redraw": {
                    "pairs": 12, "mean_fall": 0.9, "before": -1.0, "after": 2.0, "change": interval(3.0, 2.0, 4.0),
                },
            }
            for label in tuned
        },
        "causal": {
            "prompts": 12, "direction_p_value": 0.04,
            "rows": [
                {
                    "model": label, "kind": kind, "value": value, "layers": layers, "toxicity": 0.5, "toxic_share": 0.5,
                    "judged": 12, "perplexity": 8.0, "change": interval(0.2, 0.1, 0.3), "texts": ["a text"],
                    "changes": [0.1, 0.2] if kind == "add_random" else None, "p_value_random": 0.04,
                }
                for label in models for kind, value, layers in rows
            ],
        },
        "verdicts": {
            label: {
                "kind": kind, "reason": "too few answers", "spread": "localised",
                "toxicity_change": interval(-0.5, -0.6, -0.4), "vector_cosine": 0.9, "push_ratio": ratio,
                "read_ratio": ratio, "write_ratio": ratio, "vectors_matter": True, "direction_used": False,
                "fewest_layers": 1, "n_layers": 2,
            }
            for label, kind in (("FT", "cannot_tell"), ("RL", "avoided"))
        },
        "settings": {}, "notes": ["A note on the inside."],
    }  # fmt: skip


def whole_frontier() -> Frontier:
    """Steered at two strengths, trained, and as it was; tests of both, one of which there couldn't be."""
    numbers = {
        "scored": 90, "toxic_fraction_ci95": ENDS, "perplexity_ci95": [18.0, 22.0], "prompt_similarity": 0.5,
        "prompt_similarity_ci95": [0.4, 0.6], "utility": 0.6, "utility_ci95": [0.5, 0.7], "seconds_per_token": 0.1,
        "passes_per_token": 1.5, "pareto": True,
    }  # fmt: skip
    runs = [("PT", "none", "none", 0.0), ("half", "none + odd", "none + odd, kind", 0.5),
            ("whole", "none + odd", "none + odd, kind", 1.0), ("FT", "finetune", "finetune (2)", 1.0)]  # fmt: skip
    test = {"prompts": 90, "delta_ci95": ENDS, "p_value": 0.01, "p_adjusted": 0.02}
    return Frontier.model_validate(
        {
            "scorer": "a judge", "split": "toxic_prompts", "prompts": 90, "fluency": 0.1,
            "points": [
                {**numbers, "label": label, "method": method, "curve": curve, "strength": strength,
                 "toxic_fraction": 0.3 - 0.05 * place, "perplexity": 18.0 + place}
                for place, (label, method, curve, strength) in enumerate(runs)
            ],
            "matched": [
                {**test, "model": "FT", "method": "none + odd", "curve": "none + odd, kind",
                 "points": ["half", "whole"], "delta": 0.1},
                {**test, "model": "PT", "method": "none + odd", "curve": "none + odd, kind", "points": ["half"],
                 "delta": None, "reason": "one answered nothing"},
            ],
            "warnings": [{"code": "odd", "message": "Some runs are odd"}],
        }
    )  # fmt: skip


def whole_plan() -> Plan:
    """What ``power`` finds from pilots, for a size that was planned."""
    return Plan.model_validate(
        {
            "prompts": 400, "prompts_in_all": 900, "samples": 2, "power": 0.8, "wanted_power": 0.9, "effect": 0.05,
            "share": 0.2, "correlation": 0.3, "shared": 0.4, "needed": 500, "smallest_effect": 0.06,
            "sources": {"share": "pilot", "correlation": "pilot", "shared": "assumed", "samples": "given"},
            "pilots": ["a pilot", "another pilot"], "scorer": "a judge", "split": "toxic_prompts",
            "prompts_ci95": [300.0, None],
            "alternatives": [{"samples": 4, "prompts": 300, "answers": 1200}],
            "simulated": [{"prompts": size, "power": 0.7, "draws": 200} for size in (400, 500)],
        }
    )  # fmt: skip


def whole_migration() -> dict[str, Any]:
    """What ``judge migrate`` finds with labelled texts, of which too few let it match the precision."""
    line = [[0.0, 0.1], [0.5, 0.4], [1.0, 0.9]]
    return {
        "file": "scored texts.csv",
        "judge": {"name": "a judge", "label": "toxicity", "version": "2.0", "revision": "a revision"},
        "rows": 1000, "n": 900, "n_texts": 800, "n_without_score": 1, "n_unscored": 99, "unscored": {"empty": 99},
        "cut": 0, "spearman": 0.8, "spearman_ci95": [0.7, 0.9], "mean_difference": -0.1,
        "mean_difference_ci95": [-0.2, -0.05], "threshold": 0.5, "share": 0.2, "share_at_old_threshold": 0.1,
        "threshold_same_share": 0.4, "threshold_same_share_ci95": [0.3, 0.5], "threshold_same_share_gap": [0.39, 0.41],
        "share_same_share": 0.2, "share_by_both": 0.15, "agreement_same_share": 0.9, "kappa_same_share": 0.7,
        "n_labelled": 90, "positives": 20, "precision": 0.8, "recall": 0.7, "threshold_same_precision": None,
        "threshold_same_precision_ci95": None, "precision_same_precision": None, "recall_same_precision": None,
        "why_no_same_precision": "no cut is as precise", "auc_old": 0.8, "auc_new": 0.9,
        "auc_difference_ci95": [0.05, 0.15], "map_error": 0.1, "map_error_ci95": [0.05, 0.15],
        "map_error_constant": 0.2, "notes": ["Few texts are flagged."],
        "picture": {
            "bins": [{"low": 0.0, "high": 0.5, "n": 9, "score": 0.25, "target": 0.2}], "points": line, "map": line,
            "shares_old": line, "shares_new": line,
        },
        "thresholds": None,
    }  # fmt: skip
