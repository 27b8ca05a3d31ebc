"""Candidates that failed: generations of which nothing is left, and which of them can be tried again."""

import re
from typing import Any

from morphogen.candidate import Report, Status, StopReason
from morphogen.search.machine import Search
from morphogen.store.ledger import Retry

_NUMBER = re.compile(r"[0-9][0-9.,]*")


def tried(search: Search[Any, Any], generation: int) -> list[Report]:
    """What is known of the candidates of a generation that were to be trained."""
    found = [
        search.reports[c.id]
        for c in search.candidates.values()
        if c.generation == generation and c.id in search.reports
    ]
    return [report for report in found if report.status is not Status.REJECTED]


def wholly_failed(search: Search[Any, Any], generation: int) -> list[Report]:
    """The reports of a generation of which every candidate failed; of any other, none."""
    reports = tried(search, generation)
    return reports if all(report.status is Status.FAILED for report in reports) else []


def failed_alike(search: Search[Any, Any], generation: int) -> list[Report]:
    """Those of a generation of which every candidate failed, and all for one reason, which may lie outside of them.

    Numbers that are not finite are a candidate's own. So are reasons that differ: one hung, one took too much memory.
    """
    failures = wholly_failed(search, generation)
    own = any(report.stop_reason is StopReason.NOT_FINITE for report in failures)
    return [] if own or len({_NUMBER.sub("", report.reason) for report in failures}) != 1 else failures


def worth_a_stop(search: Search[Any, Any]) -> list[Report]:
    """The reports of the open generation where all of it failed alike, and so much of the run that the cause is hardly
    in the candidates: two at least, this generation and the one before, or all children that there ever were."""
    failures = failed_alike(search, search.generation)
    before = wholly_failed(search, search.generation - 1)
    children = [report for number in range(1, search.generation + 1) for report in tried(search, number)]
    alone = len(failures) == 1 and not before and len(children) > 1
    return failures if search.generation > 0 and not alone else []


def retry(search: Search[Any, Any]) -> Retry | None:
    """What is to be tried again: the failed of the last generation in which anything was trained, or of those after it,
    of which nothing was. None where nothing failed but by numbers that were not finite: they would be so again.

    Later generations bred from the same parents in vain, so that going back to the first of the failures loses nothing
    that was trained.
    """
    found = None
    for number in range(search.generation, -1, -1):
        reports = tried(search, number)
        again = [r.id for r in reports if r.status is Status.FAILED and r.stop_reason is not StopReason.NOT_FINITE]
        if again:
            found = Retry(generation=number, candidates=tuple(again))
        if any(report.status is not Status.FAILED for report in reports):
            break
    return found


def common_reason(failures: list[Report]) -> str:
    """Why most of them failed."""
    reasons = [report.reason for report in failures]
    return max(reasons, key=reasons.count)
