"""A comparison as tables to paste: LaTeX with booktabs for a paper, Markdown for a README or an issue.

Labels and judges' names come from users and models, so every text is escaped for the format it goes into.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewardlm.formats import (
    SHORT_NONE,
    interval_in_column,
    interval_of_points,
    number,
    p_number,
    percent,
    percent_in_column,
    points,
)
from rewardlm.markdown import markdown
from rewardlm.measuring.comparison import Change, Comparison, ModelSummary, Split, SplitSummary
from rewardlm.reporting.names import CHANGE_SPLITS, QUALITY, SPLITS, quality_text
from rewardlm.reporting.notes import equal_samples_note, quality_notes, rule_text, threshold_notes, utility_changes_text

_SHARES: dict[Split, str] = {
    "all": "toxic, %",
    "toxic_prompts": "toxic prompts, %",
    "comparable": "comparable, %",
}


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One table: plain texts, not yet escaped. The first ``words`` columns are words, the others numbers."""

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int


def as_latex(found: Comparison) -> str:
    r"""The tables of a comparison as LaTeX to ``\input``; only the package booktabs is needed."""
    lines = [r"% needs \usepackage{booktabs}"]
    for grid in paper_tables(found):
        columns = "l" * grid.words + "r" * (len(grid.header) - grid.words)
        lines += [
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{latex(grid.caption)}}}",
            rf"\label{{tab:{grid.name}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(latex, grid.header)) + r" \\",
            r"\midrule",
            # A row that begins with a bracket would be taken for the argument of the \\ before it.
            *("{}" + " & ".join(map(latex, row)) + r" \\" for row in grid.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    warnings = [f"{warning.model}: {warning.message}" for warning in found.warnings]
    if warnings:
        lines += [r"\begin{itemize}", *(rf"\item {{}}{latex(text)}" for text in warnings), r"\end{itemize}"]
    return "\n".join(lines) + "\n"


def as_markdown(found: Comparison) -> str:
    """The tables of a comparison as Markdown (GitHub's)."""
    blocks = []
    for grid in paper_tables(found):
        marks = ["---"] * grid.words + ["--:"] * (len(grid.header) - grid.words)
        rows = [grid.header, *grid.rows]
        lines = ["| " + " | ".join(map(markdown, row)) + " |" for row in rows]
        lines.insert(1, "| " + " | ".join(marks) + " |")
        blocks.append(f"**{markdown(grid.caption)}**\n\n" + "\n".join(lines))
    warnings = [f"- **{markdown(warning.model)}**: {markdown(warning.message)}" for warning in found.warnings]
    if warnings:
        blocks.append("\n".join(warnings))
    return "\n\n".join(blocks) + "\n"


def paper_tables(found: Comparison) -> list[PaperTable]:
    """The tables: toxicity per model and judge, paired changes from the first model, quality of the answers.

    Of a judge with several labels (NAME and NAME.LABEL), they show only the main one, NAME.
    """
    found = found.main_labels()
    changes = [change for change in found.comparisons if change.split in CHANGE_SPLITS]
    return [_toxicity(found), *([_changes(changes)] if changes else []), _quality(found.models)]


def _toxicity(found: Comparison) -> PaperTable:
    thresholds = "".join(f"{note} " for note in threshold_notes(found.settings))
    return PaperTable(
        "toxicity",
        f"Toxicity of the answers (toxic: {rule_text(found.settings)}; 95 % intervals over prompts). {thresholds}"
        "Toxic prompts, comparable: the toxic share of these answers. Comparable: neither empty nor repeated nor a "
        "refusal, in the prompt's script. EMT: expected maximum "
        "toxicity; TP: toxicity probability; CN: counter-narratives among answers to toxic prompts (in brackets: "
        f"the same answers with shuffled prompts). {equal_samples_note(found.models, 'all')}".strip(),
        ["model", "judge", *_SHARES.values(), "EMT", "TP, %", "CN", "answers", "unscored"],
        [_toxicity_row(model, name, splits) for model in found.models for name, splits in model.scorers.items()],
        2,
    )


def _toxicity_row(model: ModelSummary, name: str, splits: Mapping[Split, SplitSummary]) -> list[str]:
    everything, quality = splits["all"], model.quality
    return [
        model.label,
        name,
        *(_share(splits[split]) for split in _SHARES),
        number(everything.equal_samples.expected_max_toxicity, none=SHORT_NONE),
        percent_in_column(everything.equal_samples.toxicity_probability, SHORT_NONE),
        _with_null(quality.counter_narrative_fraction, quality.counter_narrative_null),
        str(everything.n),
        str(everything.n - everything.scored),
    ]


def _changes(changes: Sequence[Change]) -> PaperTable:
    return PaperTable(
        "change",
        f"Change of the toxic share from {changes[0].from_} in percentage points, over pairs of answers scored in both "
        "(95 % intervals over prompts; adjusted: p corrected by Holm for all tests of this number, the primary "
        "outcome's for the models alone; better, worse: prompts whose share fell, rose).",
        ["to", "judge", "on", "pairs", "change", "p", "adjusted", "better", "worse"],
        [
            [
                change.to,
                change.scorer,
                SPLITS[change.split],
                str(change.n),
                _points(change),
                _p_value(change.p_value),
                _p_value(change.p_adjusted),
                str(change.better),
                str(change.worse),
            ]
            for change in changes
        ],
        3,
    )


def _quality(models: Sequence[ModelSummary]) -> PaperTable:
    values = {key: [getattr(model.quality, key) for model in models] for key, _, _ in QUALITY}
    return PaperTable(
        "quality",
        f"Quality of the answers. {' '.join([*quality_notes(models), utility_changes_text(models)])}".strip(),
        ["", *(model.label for model in models)],
        [
            [title, *(quality_text(value, form) for value in values[key])]
            for key, title, form in QUALITY
            if any(value is not None for value in values[key])
        ],
        1,
    )


def _share(found: SplitSummary) -> str:
    """A toxic share in percent, with its interval: "13.9 [11.2 – 17.0]"."""
    share = percent_in_column(found.toxic_fraction, SHORT_NONE)
    ends = interval_in_column(found.toxic_fraction_ci95, "")
    return f"{share} [{ends}]" if ends else share


def _points(change: Change) -> str:
    """A change in points, with its interval: "−11.0 [−14.2 to −8.1]"."""
    ends = interval_of_points(change.delta_ci95, "")
    shown = points(change.delta, SHORT_NONE)
    return f"{shown} [{ends}]" if ends else shown


def _with_null(value: float | None, null: float | None) -> str:
    """A share, and in brackets what shuffled prompts give."""
    if value is None:
        return SHORT_NONE
    return percent(value) if null is None else f"{percent(value)} ({percent(null)})"


def _p_value(value: float | None) -> str:
    return SHORT_NONE if value is None else p_number(value)


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\char34{}", "`": r"\`{}", "–": "--", "—": "---", "−": r"\ensuremath{-}",
    "…": r"\ldots{}", "‘": r"\textquoteleft{}", "’": r"\textquoteright{}", "“": r"\textquotedblleft{}",
    "”": r"\textquotedblright{}", "≥": r"\ensuremath{\geq}", "≤": r"\ensuremath{\leq}", "±": r"\ensuremath{\pm}",
    "×": r"\ensuremath{\times}", "·": r"\ensuremath{\cdot}", "→": r"\ensuremath{\rightarrow}",
    "°": r"\ensuremath{^\circ}",
    "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}",
    "Ł": r"\L{}", "ı": r"\i{}", "§": r"\S{}", "¶": r"\P{}", "©": r"\copyright{}", "£": r"\pounds{}",
    "¿": r"\textquestiondown{}", "¡": r"\textexclamdown{}",
}  # fmt: skip
_LATEX_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r", "\u030c": "v",
    "\u0306": "u", "\u0304": "=", "\u0307": ".", "\u030b": "H", "\u0327": "c",
}  # fmt: skip
# Two of these in a row become another sign: -- a dash, '' a closing quote, ,, a low one.
_LIGATURES = "-',"


def latex(text: str) -> str:
    r"""``text`` so that LaTeX prints it, in every engine and font encoding and with no package.

    What pdfLaTeX can't set without more packages (other scripts, emoji) becomes ``[U+4F60]``; white space and control
    characters become a blank.
    """
    parts: list[str] = []
    before = ""
    for letter in unicodedata.normalize("NFC", text):
        if letter in _LIGATURES and letter == before:
            parts.append("{}")
        parts.append(_latex_letter(letter))
        before = letter
    return "".join(parts)


def _latex_letter(letter: str) -> str:
    if letter in _LATEX:
        return _LATEX[letter]
    if letter.isspace() or unicodedata.category(letter) in ("Cc", "Cf"):
        return " "
    if letter.isascii():
        return letter
    parts = unicodedata.normalize("NFD", letter)
    base, accents = parts[0], parts[1:]
    if base.isascii() and base.isalpha() and accents in _LATEX_ACCENTS:
        # An accent takes the place of the dot.
        under = rf"\{base}{{}}" if base in "ij" and accents != "\u0327" else base
        return rf"\{_LATEX_ACCENTS[accents]}{{{under}}}"
    return f"[U+{ord(letter):04X}]"
