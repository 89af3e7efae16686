"""Changes to the residual stream while a model runs: which, where, how strongly for each row.

A change holds for every pass through a model's own modules, because a hook makes it. Whoever runs a model without its
modules (``fastpath``) asks ``edits_of`` and makes the same changes at the same sites. Shapes: B rows, T positions, M
the stream's width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rewardlm.in_force import InForce

# What layer l reads ("in"; l = L is what the final norm reads), and what its attention and its MLP write.
Site = tuple[int, Literal["in", "attention", "mlp"]]
# (states Float[…, M], strengths Float[…, 1] that broadcast to them) → Float[…, M]
Change = Callable[[Tensor, Tensor], Tensor]


class Edits:
    """A change for each of some sites. ``strengths`` Float[B] are those of the rows that are being run, or Float[1]
    that of all of them; None changes nothing at all.

    With ``answers_only``, exactly the positions from which an answer's tokens are predicted are changed. In decoding
    that is a pass's last position. A prompt ends where the answer begins (padded on the left, if at all), so the first
    token is predicted from there, and then each token of the answer is a pass of its own.

    Where whole answers are read, or rows are run as one sequence (``fastpath.tree``), ``predicting`` Int[R] says which
    positions these are: places among all of the pass's tokens, row after row.
    """

    def __init__(self, changes: Mapping[Site, Change], *, answers_only: bool) -> None:
        self.changes = dict(changes)
        self.answers_only = answers_only
        self.strengths: Tensor | None = None
        self.predicting: Tensor | None = None

    @property
    def fits_a_sequence(self) -> bool:
        """Whether the rows can be run as one sequence. If all tokens are changed, a row that shares some with another
        one can't have a strength of its own."""
        return self.strengths is None or self.answers_only or bool((self.strengths == self.strengths[:1]).all())

    def at(self, site: Site, states: Float[Tensor, "N M"], predicting: Int[Tensor, "R"] | None = None) -> Tensor:
        """The changed states at ``site``: at positions that each predict a token of an answer (N is B), or at those of
        a whole pass, in which these are at the places ``predicting`` (then ``strengths`` are theirs: R is B)."""
        change = self.changes.get(site)
        if change is None or self.strengths is None:
            return states
        strengths = self.strengths.to(states)[:, None]
        if predicting is None:
            return change(states, strengths)
        if not self.answers_only:
            return change(states, strengths[:1])
        # A copy: these states are read elsewhere, too.
        return states.index_copy(0, predicting, change(states.index_select(0, predicting), strengths))

    def whole(self, site: Site, states: Tensor) -> Tensor:
        """The changed states Float[B, T, M] of a pass; rows that a family strings together, Float[B·T, M], too."""
        if self.strengths is None:
            return states
        if self.predicting is not None:
            return self.at(site, states.reshape(-1, states.shape[-1]), self.predicting).reshape(states.shape)
        change, strengths = self.changes[site], self.strengths.to(states)[:, None, None]
        rows = states if states.dim() == 3 else states.reshape(len(strengths), -1, states.shape[-1])
        if not self.answers_only:
            return change(rows, strengths).reshape(states.shape)
        # A copy: some families add to these states in place, and others read them too.
        changed = rows.clone()
        changed[:, -1:] = change(rows[:, -1:], strengths)
        return changed.reshape(states.shape)


class StreamHook:
    """The hook that makes one site's change. The fast path knows it by its type, and does without it."""

    def __init__(self, edits: Edits, site: Site) -> None:
        self._edits, self._site = edits, site

    def reads(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a module: what it reads is changed, however it is passed."""
        if args:
            return (self._edits.whole(self._site, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._edits.whole(self._site, kwargs["hidden_states"])}

    def writes(self, _module: Any, _args: Any, output: Tensor) -> Tensor:
        """After a module: what it wrote is changed."""
        return self._edits.whole(self._site, output)


_on: InForce[Edits] = InForce("this model's stream is being changed already: leave that block first")


def edits_of(body: nn.Module) -> Edits | None:
    """The changes that are on in the trunk ``body`` now."""
    return _on.of(body)


def changes_of(body: nn.Module) -> Callable[..., Tensor]:
    """``Edits.at`` of the changes that are on in ``body``, or what changes nothing."""
    edits = edits_of(body)
    return _unchanged if edits is None else edits.at


def _unchanged(_site: Site, states: Tensor, _predicting: Tensor | None = None) -> Tensor:
    return states


def is_stream_hook(hook: Any) -> bool:
    """Whether a module's hook only makes a change that ``edits_of`` knows."""
    return isinstance(getattr(hook, "__self__", None), StreamHook)


def edited(
    body: nn.Module, modules: Mapping[Site, nn.Module], edits: Edits
) -> contextlib.AbstractContextManager[Edits]:
    """Inside, ``edits`` are made in every pass through ``body``; ``modules`` has the module at each of their sites.

    Afterwards the model is what it was: the hooks are gone, whatever happened. Changes don't nest: raises RuntimeError
    inside of other ones, because their strengths would be those of other rows.
    """

    def hooks() -> Iterator[RemovableHandle]:
        for site in edits.changes:
            hook = StreamHook(edits, site)
            if site[1] == "in":
                yield modules[site].register_forward_pre_hook(hook.reads, with_kwargs=True)
            else:
                yield modules[site].register_forward_hook(hook.writes)

    return _on.holding(body, edits, hooks())


@contextlib.contextmanager
def reading_answers(body: nn.Module, predicting: Int[Tensor, "R"]) -> Iterator[None]:
    """Inside, a pass through ``body`` reads answers whose tokens are predicted from the places ``predicting`` among all
    of its tokens, row after row."""
    edits = edits_of(body)
    if edits is None:
        yield
        return
    edits.predicting = predicting
    try:
        yield
    finally:
        edits.predicting = None


@contextlib.contextmanager
def unedited(body: nn.Module) -> Iterator[None]:
    """Inside, the changes of ``body`` wait: passes are those of the model itself."""
    edits = edits_of(body)
    if edits is None:
        yield
        return
    before, edits.strengths = edits.strengths, None
    try:
        yield
    finally:
        edits.strengths = before
