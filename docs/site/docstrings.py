"""Examples in docstrings as code: what stands behind ``>>>`` becomes a section that mkdocstrings knows."""

from __future__ import annotations

import re
from textwrap import indent
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Marks the lines from the first ``>>>`` to the docstring's end as examples."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^>>> .*\Z",
                lambda code: f"Examples:\n{indent(code[0], '    ')}",
                obj.docstring.value,
                flags=re.MULTILINE | re.DOTALL,
            )
