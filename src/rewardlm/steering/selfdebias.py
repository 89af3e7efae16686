"""Self-debiasing: what a description of bad text makes likelier becomes less likely (Schick, Udupa & Schütze 2021).

With p(w) the model's next-token distribution for the prompt, p_y(w) for the prompt with the description y in front,
λ the strength, and Δ(w) = min over y of p(w) − p_y(w) (eq. 2 and section 4.1; the smallest, for several descriptions):

    p̃(w) ∝ α(Δ(w))·p(w),   α(x) = 1 if x ≥ 0, else max(e^{λx}, ε)          (eq. 3 and 4)

The paper's λ are 10, 50 and 100. λ = 0 leaves p as it is. The prompts with descriptions are further rows of the batch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from rewardlm.data.chat import truncate_text
from rewardlm.models.generate import Guide, answering
from rewardlm.models.load import Policy
from rewardlm.steering.folder import SteerFolder
from rewardlm.steering.steered import Steered
from rewardlm.types import Message


class SelfDebiasing:
    """``selfdebias``."""

    method = "selfdebias"

    def __init__(self, folder: SteerFolder) -> None:
        self.strength = folder.record.strength
        self.descriptions = [str(text) for text in folder.record.settings["descriptions"]]
        self.epsilon = float(folder.record.settings["epsilon"])

    @contextlib.contextmanager
    def on(self, policy: Policy) -> Iterator[Steered]:
        with answering(policy):
            yield _WithDescriptions(policy, self.descriptions, self.epsilon)


class _WithDescriptions(Steered):
    def __init__(self, policy: Policy, descriptions: Sequence[str], epsilon: float) -> None:
        super().__init__(policy)
        self._descriptions = list(descriptions)
        self.openings = ("", *(f"{description}\n" for description in descriptions))
        self._guide = DescriptionsGuide(1 + len(descriptions), epsilon)

    def prompts(self, turns: Sequence[Message], strength: float, room: int) -> tuple[list[tuple[int, ...]], int]:
        """The conversation, and the same with each description in front of its last turn."""
        views, cut = super().prompts(turns, strength, room)
        last = turns[-1]
        for description in self._descriptions:
            opening = f"{description}\n"
            described = [*turns[:-1], Message(last.role, opening + last.text)]
            views.append(tuple(truncate_text(self.policy.chat, described, opening, room)[0]))
        return views, cut

    @contextlib.contextmanager
    def guided(self) -> Iterator[Guide | None]:
        yield self._guide


class DescriptionsGuide(Guide):
    """Draws from the first view's distribution, without what the other views make likelier."""

    by_rows = False

    def __init__(self, views: int, epsilon: float) -> None:
        self.views, self._epsilon = views, epsilon

    def logits(
        self,
        logits: Float[Tensor, "B views V"],
        strengths: Float[Tensor, "B"],
        barred: Bool[Tensor, "B V"] | None = None,
    ) -> Float[Tensor, "B V"]:
        return debiased(logits.float(), strengths, self._epsilon)


def debiased(logits: Float[Tensor, "B views V"], strengths: Float[Tensor, "B"], epsilon: float) -> Float[Tensor, "B V"]:
    """log p + log α(Δ), up to a constant: the first view's logits minus what the paper's α takes."""
    shares = logits.softmax(-1)
    rise = (shares[:, 0] - shares[:, 1:].amax(1)).clamp(max=0)
    return logits[:, 0] + (strengths[:, None] * rise).clamp(min=math.log(epsilon))
