"""Operations on PyTorch's meta device, whose tensors have shapes and no contents: each is worked out once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

META = torch.device("meta")


class Shapes:
    """Runs operations on the meta device, and remembers what shapes they give.

    PyTorch works out an operation's result in Python, slowly, and a model asks the same of each of its layers. Only
    what makes new tensors and nothing else is remembered: no view, nothing in place.
    """

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}
        self._makes_new: dict[Any, bool] = {}
        self._in_place: dict[Any, bool] = {}

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What ``func`` gives."""
        if not self._may(func):
            return args[0] if self._changes_first(func) and args[0].is_meta else func(*args, **kwargs)
        key = (func, _frozen(args), _frozen(kwargs))
        try:
            known = self._known.get(key)
        except TypeError:  # a tensor with contents, or something else that can't be compared
            return func(*args, **kwargs)
        if known is not None:
            return known[0](_empty(shape) for shape in known[1:]) if known[0] else _empty(known[1])
        found = func(*args, **kwargs)
        made = [found] if isinstance(found, Tensor) else found
        if not isinstance(made, list | tuple) or not all(isinstance(one, Tensor) and one.is_meta for one in made):
            return found
        given = {one.untyped_storage()._cdata for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)}
        storages = [one.untyped_storage()._cdata for one in made]
        if given.intersection(storages) or len({*storages}) < len(storages):
            self._makes_new[func] = False  # a view that doesn't say so
            return found
        shapes = [(one.shape, one.stride(), one.dtype) for one in made]
        if all(
            one.untyped_storage().nbytes() == _empty(shape).untyped_storage().nbytes()
            for one, shape in zip(made, shapes, strict=True)
        ):
            self._known[key] = (None if made is not found else type(found), *shapes)
        return found

    def _may(self, func: Any) -> bool:
        known = self._makes_new.get(func)
        if known is None:
            schema = func._schema
            known = not any(part.alias_info is not None for part in (*schema.arguments, *schema.returns))
            self._makes_new[func] = known
        return known

    def _changes_first(self, func: Any) -> bool:
        """Whether ``func`` writes into its first argument, which it returns as it is: a no-op on the meta device."""
        known = self._in_place.get(func)
        if known is None:
            schema = func._schema
            written = [part.alias_info is not None and part.alias_info.is_write for part in schema.arguments]
            known = (
                written[:1] == [True]
                and sum(written) == 1
                and len(schema.returns) == 1
                and schema.returns[0].alias_info is not None
                and torch.Tag.inplace_view not in func.tags
                and not schema.name.startswith(("aten::resize", "aten::set_"))
            )
            self._in_place[func] = known
        return known


def _empty(shape: Any) -> Tensor:
    return torch.ops.aten.empty_strided.default(shape[0], shape[1], dtype=shape[2], device=META)  # type: ignore[no-any-return]


def _frozen(value: Any) -> Any:
    """``value`` as something that can be compared: a tensor without contents by its shape, strides and type."""
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype) if value.is_meta else _CONTENTS
    if isinstance(value, list | tuple):
        return tuple(_frozen(one) for one in value)
    if isinstance(value, dict):
        return tuple((name, _frozen(one)) for name, one in value.items())
    return type(value), value  # 1, 1.0 and True are equal, but not the same


# It can't be hashed, so nothing that holds it is looked up.
_CONTENTS: list[Any] = []
SHAPES = Shapes()
