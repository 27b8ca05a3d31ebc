"""How values, edits and candidates are put into words: shared by tables, pictures and pages."""

import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from morphogen.against_root import AgainstRoot, Difference
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
    marks = {"whole": "", "fresh": "", "resized": " (resized)", "partly": " (with new parts)", "merged": " (merged)"}
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


def differs(one: Difference) -> str:
    """A difference from the root with its interval, and whether it is shown: `-0.0312 ± 0.0094 better`."""
    if one.low is None or one.high is None:
        return f"{one.difference:+.4g}, too few repeats"
    word = "not shown" if one.shown == "no" else one.shown
    return f"{one.difference:+.4f} ± {(one.high - one.low) / 2:.4f} {word}"


def verdict(
    against_root: AgainstRoot, reports: Mapping[str, Report], objectives: Mapping[str, Literal["min", "max"]]
) -> str:
    """In one line, what the best finalist is against the root that was trained the same way, by the first objective
    that was compared; empty where none was.

    Args:
        against_root: What was measured of the finalists.
        reports: What the search measured of them, by which the best is the best: repeats have no say in that.
        objectives: What the search is for, and which way.
    """
    known = {(one.figure, id): one for id, found in against_root.items() for one in found}
    first = next((name for name in objectives if any(figure == name for figure, _ in known)), None)
    if first is None:
        return ""
    sign = 1.0 if objectives[first] == "min" else -1.0
    ids = [id for figure, id in known if figure == first]
    best = min(ids, key=lambda id: (sign * (reports[id].value(first) or 0.0), id))
    one = known[first, best]
    told = f"best: {best}, {first} {one.value:.4f}, against the root's {one.root:.4f} after the same training: "
    if one.low is None or one.high is None:
        return f"{told}{one.difference:+.4f}, not shown ({one.pairs} pair of trainings gives no interval)"
    interval = f"{one.difference:+.4f} [{one.low:+.4f}, {one.high:+.4f}], {one.pairs} pairs, 95 %"
    shown = {"better": "shown to be better", "worse": "shown to be worse", "no": "not shown to differ"}
    return f"{told}{interval}: {shown[one.shown]}"


def story(candidate: Candidate, report: Report | None) -> str:
    """All about a candidate in a few lines, for a tooltip."""
    lines = [f"{candidate.id} · generation {candidate.generation}"]
    if candidate.parents:
        lines.append("from " + " and ".join(candidate.parents))
    if candidate.proposer:
        lines.append(f"proposed by {candidate.proposer}")
    for edit in candidate.edits:
        lines += edit_lines(edit)
    if report is not None:
        lines += origin_lines(report)
        lines.append(f"{report.status}: {report.reason}" if report.reason else str(report.status))
        lines += [f"{name} {number(value)}" for name, value in sorted({**report.costs, **report.metrics}.items())]
        if report.tokens.own:
            lines.append(f"tokens {number(report.tokens.own)} own, {number(report.tokens.lineage)} lineage")
    return "\n".join(lines)
