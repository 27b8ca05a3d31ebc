"""How values, edits and candidates are put into words: shared by tables, pictures and pages."""

import json
import math
from typing import Any

from morphogen.candidate import Candidate, Edit, Report


def number(value: float | None) -> str:
    """Four significant digits with k, M, G, T, P above 10,000; a dash for nothing."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    for unit, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= max(unit, 1e4):
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for limit, unit, size in ((90.0, "s", 1.0), (5400.0, "min", 60.0), (172800.0, "h", 3600.0)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}" if unit != "h" else f"{seconds / size:.1f} h"
    return f"{seconds / 86400:.1f} days"


def finite(value: Any) -> Any:
    """`value`, or None for a float that JSON and pictures cannot show."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shorten(text: str, limit: int) -> str:
    """`text`, or its beginning with an ellipsis, at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plain(value: Any, limit: int = 60) -> str:
    """A value of a blueprint as short JSON; nothing stands as ∅."""
    return "∅" if value is None else shorten(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str), limit)


def edit_lines(edit: Edit) -> list[str]:
    """`operator target (function kept)`, the steps of a compound edit, then `path: before → after` for each change."""
    kept = "keeps the function" if edit.preserves else "lossy"
    what = f" {edit.template['name']}" if edit.template else ""
    why = " to satisfy a gate" if edit.repair else ""
    steps = [f"  {step.operator} {step.target}" for step in edit.steps]
    return [f"{edit.operator}{what} {edit.target} ({kept}){why}", *steps] + [
        f"  {change.path}: {plain(change.before)} → {plain(change.after)}" for change in edit.changes
    ]


def origin_lines(report: Report) -> list[str]:
    """What came from whom: a line per parent with its blocks, those resized or with new parts marked; one for new ones.

    Empty where nothing was inherited.
    """
    origins = report.inheritance.genes if report.inheritance is not None else ()
    marks = {"whole": "", "fresh": "", "resized": " (resized)", "partly": " (with new parts)"}
    lines = []
    for parent in dict.fromkeys(origin.parent for origin in sorted(origins, key=lambda origin: origin.parent is None)):
        blocks = ", ".join(origin.gene + marks[origin.how] for origin in origins if origin.parent == parent)
        lines.append(f"new: {blocks}" if parent is None else f"weights of {parent}: {blocks}")
    return lines


def edits_short(candidate: Candidate) -> str:
    """The operators in order, `widen_ffn + swap`; `seed` or `copy` where there are none."""
    if candidate.edits:
        return " + ".join(edit.operator for edit in candidate.edits)
    return "copy" if candidate.parents else "seed"


def story(candidate: Candidate, report: Report | None) -> str:
    """All about a candidate in a few lines, for a tooltip."""
    lines = [f"{candidate.id} · generation {candidate.generation}"]
    if candidate.parents:
        lines.append("from " + " and ".join(candidate.parents))
    for edit in candidate.edits:
        lines += edit_lines(edit)
    if report is not None:
        lines += origin_lines(report)
        lines.append(f"{report.status}: {report.reason}" if report.reason else str(report.status))
        lines += [f"{name} {number(value)}" for name, value in sorted({**report.costs, **report.metrics}.items())]
        if report.tokens.own:
            lines.append(f"tokens {number(report.tokens.own)} own, {number(report.tokens.lineage)} lineage")
    return "\n".join(lines)
