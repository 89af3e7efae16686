"""A made-up interpretation of three models, the object of ``interpret --json``. All texts are ours."""


def interval(mean, low=None, high=None, n=30):
    return {"mean": mean, "ci95": None if low is None else [low, high], "n": n}


def band(label, transition, quantity, start):
    return {
        "label": label,
        "transition": transition,
        "quantity": quantity,
        "answers": 30 if transition == "all" else 8,
        **stretches(start),
    }


def stretches(start):
    return {
        "from": [0, 4, 8],
        "to": [3, 7, 11],
        "mean": [start, start - 0.05, start - 0.1],
        "low": [start - 0.04, start - 0.1, None],
        "high": [start + 0.04, start, None],
        "n": [30, 28, 2],
    }


def drift(to, difference, toxic=-0.8):
    reading = {
        "answers": 30,
        "tokens": 812,
        "logprob_change": interval(-0.41, -0.5, -0.32),
        "entropy_change": interval(0.2, -0.1, 0.5),
        "kl": interval(0.333, 0.301, 0.366),
        "rank": {"before": 0.0, "after": 2.0},
        "same_first_choice": interval(0.712, 0.65, 0.77),
    }
    return {
        "from": "PT",
        "to": to,
        "on_baseline": reading,
        "on_own": {**reading, "logprob_change": interval(0.21, 0.1, 0.32)},
        "toxic_check": {
            "threshold": 0.5,
            "toxic": interval(toxic, toxic - 0.1, toxic + 0.1, 11),
            "other": interval(-0.3, -0.4, -0.2, 19),
            "difference": difference,
        },
        "parting": {
            "threshold_kl": 0.5,
            "by_kl": {"quartiles": [0.0, 2.0, 5.0], "parted": 27, "of": 30},
            "by_first_choice": {"quartiles": None, "parted": 0, "of": 30},
        },
        "by_transition": [
            {
                "transition": "high → low",
                "pairs": 8,
                "logprob_change": interval(-0.9),
                "kl": interval(0.4),
                "beyond_redraw": None,
            }
        ],
        "kl_along": stretches(0.4),
        "promoted": [{"token": 5, "text": " respect", "logprob_change": 1.5, "before": 0.001, "after": 0.0123}],
        "demoted": [{"token": 6, "text": "</script>\n", "logprob_change": -2.0, "before": 0.05, "after": 0.004}],
    }


def reading(to, change):
    row = {"prompt_change": change, "entropy_change": interval(0.1, -0.1, 0.3), "kl_bits": interval(0.52, 0.4, 0.6)}
    return {
        "from": "PT",
        "to": to,
        "same_tokens": row,
        "own_answers": {"prompt_change": change, "entropy_change": interval(0.0, -0.2, 0.2)},
        "by_transition": [{"transition": "high → low", "pairs": 8, **row, "beyond_redraw": None}],
    }


def shown_answer(label, highest, tokens, kl):
    """An answer to "They <b>lie</b>" whose second and third token are explained."""
    words = [["<|im_start|>", "template"], ["user\n", "template"], ["They", "prompt"], [" <b>lie</b>", "prompt"]]
    shares = [[0.1, 0.05, 0.25, 0.15, 0.45], [0.004, 0.0, 0.3, 0.196, 0.25, 0.25]]
    readers = ("PT", "FT", "RL") if label == "PT" else (label,)
    return {
        "label": label,
        "highest": highest,
        "tokens": tokens,
        # ln 0.25, 0.5 and 0.00001.
        "logprobs": [[-1.386294] * len(tokens), [-0.693147] * len(tokens), [-11.512925] * len(tokens)],
        "first_choices": [[" base"] * len(tokens), [" tuned"] * len(tokens), [" fools"] * len(tokens)],
        "kl": kl,
        "words": [*words, *([token, "answer"] for token in tokens)],
        "positions": [1, 2],
        "at_words": [5, 6],
        "readings": [{"reader": reader, "shares": shares} for reader in readers],
    }


def shown_example(chosen, prompt, highest):
    nothing, far = [0.0] * 4, [0.05, 0.3, 2.5, 4.0]
    return {
        "chosen": chosen,
        "prompt": prompt,
        "prompt_toxicity": 0.1,
        "drift": 1.7125,
        "toxicity": [0.1, 0.2, 0.05],
        "answers": [
            shown_answer("PT", highest, ["All", " of", " us", "\n"], [nothing, [0.2] * 4, far]),
            shown_answer("FT", 0.2, ["No", " one", " does", "."], [[0.7] * 4, nothing, nothing]),
            shown_answer("RL", 0.05, ["I", " help", " you", "."], [[1.5] * 4, nothing, nothing]),
        ],
    }


def sample_interpretation():
    models = ("PT", "FT", "RL")
    words = [["<|im_start|>", "template"], ["user\n", "template"], ["They", "prompt"], [" <b>lie</b>", "prompt"]]
    return {
        "models": [
            {"label": label, "model": "tiny", "adapter": None, "rewards": [], "dtype": "float32"} for label in models
        ],
        "sample": {
            "scorer": "lexical",
            "reward_of": [],
            "from": "PT",
            "to": "RL",
            "pairs": 30,
            "of": 150,
            "unscored": 3,
            "strata": [
                {"from": "low", "to": "low", "of": 139, "taken": 19},
                {"from": "high", "to": "low", "of": 11, "taken": 11},
            ],
            "redraw": None,
            "tokens_an_answer": 8,
            "seed": 0,
        },
        "drift": {
            "comparisons": [
                drift("FT", interval(-0.5, -0.7, -0.3, 11)),
                drift("RL", interval(0.02, -0.2, 0.24, 11), toxic=-0.28),
            ]
        },
        "attribution": {
            "method": "input_x_gradient",
            "baseline": "end",
            "explained_tokens": 1200,
            "completeness": None,
            "faithfulness": {
                "tokens": 30,
                "method": "input_x_gradient",
                "comprehensiveness": {
                    "method": interval(3.5, 2.1, 5.0),
                    "random": interval(1.5, 0.9, 2.1),
                    "better": interval(2.0, 1.0, 3.1),
                },
                "sufficiency": {
                    "method": interval(2.06, 0.97, 3.2),
                    "random": interval(3.88, 2.9, 4.9),
                    "better": interval(1.82, 0.9, 2.8),
                },
                "passes": True,
            },
            "models": [
                {
                    "label": label,
                    "answers": 30,
                    "prompt": interval(share, share - 0.02, share + 0.02),
                    "template": interval(0.3, 0.28, 0.32),
                    "answer": interval(0.7 - share, 0.6 - share, 0.8 - share),
                    "entropy_bits": interval(4.2, 4.0, 4.4),
                }
                for label, share in zip(models, (0.31, 0.33, 0.25), strict=True)
            ],
            "comparisons": [
                reading("FT", interval(0.012, -0.01, 0.034)),
                reading("RL", interval(-0.061, -0.08, -0.042)),
            ],
            "bands": [
                band(label, transition, quantity, 0.3)
                for label in models
                for transition in ("all", *(("high → low", "low → low") if label != "PT" else ()))
                for quantity in ("prompt", "entropy_bits")
            ],
            "examples": [
                {
                    "toxicity": [0.9, 0.2, 0.1],
                    "token": " liars",
                    "position": 3,
                    "words": words,
                    "models": [{"label": label, "logprob": -2.5, "shares": [0.1, 0.0, 0.3, 0.6]} for label in models],
                }
            ],
        },
        "similarity": {
            "models": [
                {
                    "label": label,
                    "own": interval(own, own - 0.03, own + 0.03, 150),
                    "null": interval(0.06, 0.05, 0.07, 150),
                    "above_null": interval(own - 0.06, own - 0.09, own - 0.03, 150),
                }
                for label, own in zip(models, (0.26, 0.33, 0.08), strict=True)
            ],
            "comparisons": [
                {
                    "from": "PT",
                    "to": label,
                    "above_null_change": interval(change, change - 0.04, change + 0.04, 150),
                    "by_transition": [
                        {
                            "transition": "high → low",
                            "pairs": 11,
                            "above_null_change": interval(change, n=11),
                            "redraw": None,
                        }
                    ],
                }
                for label, change in (("FT", 0.07), ("RL", -0.18))
            ],
        },
        "notes": ["A note of the interpretation."],
        "inside": None,
        "inside_notes": [],
        "shown": [
            shown_example("usual", "They <b>lie</b>", 0.1),
            shown_example("fell", "You are all idiots", 0.9),
        ],
    }
