"""What became of each operator's children, with intervals: how often they went on, and how much better they were."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from morphogen.candidate import Candidate, Report, Status
from morphogen.report.shown import RunShown
from morphogen.report.tables import Row
from morphogen.report.wording import finite

#: Of Student's distribution with 1, 2, … degrees of freedom, for 95 %.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_Z = 1.96


def operator_rows(run: RunShown) -> list[Row]:
    """One row per operator that was used.

    children: made with it, alone or among others, and what became of them. survived: how many were among the parents
    that selection chose when their generation was closed, as a share of the trained, with its 95 % interval (Wilson).
    in_lineages: how many stand on a lineage of the frontier, themselves, trained on, or as an ancestor. The last
    column: how a child differs by the first objective from its first parent, after the same training where that trained
    on beside it, with the 95 % interval of the mean.
    """
    rows: dict[str, Row] = {}
    gains: dict[str, list[float]] = {}
    survivors = {id for closed in run.survivors for id in closed}
    lineages = _lineages(run)
    first = next(iter(run.objectives), None)
    beside = _trained_on(run)
    for candidate in run.in_order:
        report = run.reports.get(candidate.id)
        status = report.status if report is not None else Status.PROPOSED
        for edit in {edit.operator: edit for edit in candidate.edits}.values():
            row = rows.setdefault(edit.operator, _fresh(edit.operator, edit.preserves))
            row["children"] += 1
            row["survived"] += candidate.id in survivors
            row["in_lineages"] += candidate.id in lineages
            if status in row:
                row[str(status)] += 1
            if report is not None and first and (gain := _gain(run, candidate, report, first, beside)) is not None:
                gains.setdefault(edit.operator, []).append(gain)
    for name, row in rows.items():
        row["share"] = share(row["survived"], row[str(Status.TRAINED)])
        row["lineage_share"] = share(row["in_lineages"], row["children"])
        if first is not None:
            row[f"{first} - parent's"] = mean(gains.get(name, ()))
    return [rows[name] for name in sorted(rows)]


def _fresh(name: str, preserves: bool) -> Row:
    counted = {str(kind): 0 for kind in (Status.TRAINED, Status.GATED, Status.FAILED, Status.REJECTED)}
    return {"operator": name, "exact": preserves, "children": 0, **counted, "survived": 0, "share": ""} | {
        "in_lineages": 0,
        "lineage_share": "",
    }


def _lineages(run: RunShown) -> set[str]:
    """The frontier with all its ancestors."""
    found: set[str] = set()
    left = [id for id in run.frontier if id in run.candidates]
    while left:
        id = left.pop()
        if id not in found:
            found.add(id)
            left += [parent for parent in run.candidates[id].parents if parent in run.candidates]
    return found


def _trained_on(run: RunShown) -> dict[tuple[str, int], str]:
    """(a candidate, a generation) -> who trained it on, unedited, in that generation."""
    found: dict[tuple[str, int], str] = {}
    for one in run.in_order:
        if one.continues:
            found.setdefault((one.parents[0], one.generation), one.id)
    return found


def _gain(
    run: RunShown, candidate: Candidate, report: Report, name: str, beside: dict[tuple[str, int], str]
) -> float | None:
    """How much more of a figure a trained child has than its first parent."""
    if report.status is not Status.TRAINED or not candidate.parents:
        return None
    parent = beside.get((candidate.parents[0], candidate.generation), candidate.parents[0])
    if parent not in run.reports:
        return None
    own, other = finite(report.value(name)), finite(run.reports[parent].value(name))
    return None if own is None or other is None else own - other


def share(count: int, of: int) -> str:
    """`25 % [9, 53]`: a share in per cent with its 95 % interval (Wilson); a dash where there is nothing to count."""
    if not of:
        return "-"
    low, high = wilson(count, of)
    return f"{100 * count / of:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def wilson(count: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson's score (1927): inside [0, 1], and sound for small counts."""
    part, width = count / of, _Z * _Z / of
    middle = (part + width / 2) / (1 + width)
    half = _Z / (1 + width) * math.sqrt(part * (1 - part) / of + width / (4 * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean(values: Sequence[float]) -> str:
    """`-0.0123 ± 0.0040`: the mean with half its 95 % interval, which one value alone does not have."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:+.4g} (once)"
    free = len(values) - 1
    t = _T[free - 1] if free <= len(_T) else _Z + 2.5 / free
    return f"{fmean(values):+.4g} ± {t * stdev(values) / math.sqrt(len(values)):.4g}"
