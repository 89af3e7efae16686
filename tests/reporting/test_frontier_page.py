"""How the frontier's page calls what it shows."""

from __future__ import annotations

import pytest

from rewardlm.reporting.frontier_page import method_name


@pytest.mark.parametrize(
    ("curve", "wanted"),
    [
        ("none", "the model as it is"),
        ("activation, ablate", "activation steering, ablate"),
        ("finetune + activation", "fine-tuning and activation steering"),
        # Two adapters, or two folders of one method, are told apart by a number.
        ("finetune (2)", "fine-tuning (2)"),
        ("finetune + activation, gated (3)", "fine-tuning and activation steering, gated (3)"),
    ],
)
def test_curves_have_names_that_a_reader_knows(curve: str, wanted: str) -> None:
    assert method_name(curve) == wanted
