"""One edit of a lineage undone in the architecture that came of it, everything else left as it is.

Where a later edit has changed the same place, or has taken the gene away, there is nothing to undo alone: that is said.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from morphogen.blueprint.diff import ORDERED
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Candidate, Change, Edit
from morphogen.experiment import Train
from morphogen.search.space import Design

UNDO = "undo"


class Done(NamedTuple):
    """An edit of a lineage. name: what undoing it is called, `undo:OPERATOR@CANDIDATE`."""

    name: str
    edit: Edit


def lineage_edits(candidates: Mapping[str, Candidate], id: str) -> list[Done]:
    """Every edit that a candidate, or one of its ancestors, was made by; oldest first."""
    found, waiting = dict[str, Candidate](), [id]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found[one] = candidates[one]
            waiting += found[one].parents
    done: list[Done] = []
    for candidate in sorted(found.values(), key=lambda candidate: candidate.index):
        operators = [edit.operator for edit in candidate.edits]
        for i, edit in enumerate(candidate.edits):
            several = f"#{operators[: i + 1].count(edit.operator)}" if operators.count(edit.operator) > 1 else ""
            done.append(Done(f"{UNDO}:{edit.operator}@{candidate.id}{several}", edit))
    return done


def chosen(edits: Sequence[Done], asked: str) -> list[Done]:
    """Those that `undo`, `undo:OPERATOR` or `undo:OPERATOR@CANDIDATE` means."""
    if asked == UNDO:
        return list(edits)
    return [done for done in edits if asked in (done.name, done.name.partition("@")[0], done.name.partition("#")[0])]


def undone(design: Design, edit: Edit) -> Design:
    """The design as it would be without an edit. ValueError with the reason where nothing can be undone alone."""
    if not edit.changes:
        raise ValueError("it changed nothing")
    train = _train_without(design.train, [change for change in edit.changes if change.path.startswith("train.")])
    rest = [change for change in edit.changes if not change.path.startswith("train.")]
    return Design(_blueprint_without(design.blueprint, rest), train)


def _train_without(train: Train, changes: Sequence[Change]) -> Train:
    plain = train.model_dump(mode="json")
    for change in changes:
        name = change.path.removeprefix("train.")
        if plain.get(name) != change.after:
            raise ValueError(f"{change.path} was changed again later")
        plain[name] = change.before
    try:
        return Train.model_validate(plain)
    except ValidationError as error:
        raise ValueError(f"what would be left cannot be: {error.errors()[0]['msg']}") from None


def _blueprint_without(blueprint: Blueprint, changes: Sequence[Change]) -> Blueprint:
    data = blueprint.to_json()
    genes = {name: {gene["id"]: gene for gene in data[name]} for name in (*ORDERED, "recurrences")}
    for change in (change for change in changes if change.path not in ORDERED):
        section, _, rest = change.path.partition(".")
        if section in genes:
            _gene_back(genes[section], rest, change)
        else:
            _set_back(data, change.path, change)
    for section in ORDERED:
        moved = next((change for change in changes if change.path == section), None)
        order = list(_order_back([gene["id"] for gene in data[section]], moved, genes[section]))
        data[section] = [genes[section][gene] for gene in order]
    data["recurrences"] = sorted(genes["recurrences"].values(), key=lambda loop: int(loop["start"]))
    try:
        return Blueprint.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"the rest cannot be without it: {error.errors(include_url=False)[0]['msg']}") from None


def _gene_back(genes: dict[str, Any], rest: str, change: Change) -> None:
    """Undoes a change at `<gene id>` (a gene that came or went) or `<gene id>.<field>`; in place."""
    gene, _, field = rest.partition(".")
    if gene not in genes and (field or change.before is None):
        raise ValueError(f"{change.path} was taken away again later")
    if field:
        _set_back(genes[gene], field, change)
    elif change.before is None:
        del genes[gene]
    elif change.after is None and gene in genes:
        raise ValueError(f"{change.path} came back later")
    else:
        genes[gene] = change.before


def _set_back(holder: dict[str, Any], path: str, change: Change) -> None:
    *steps, last = path.split(".")
    for step in steps:
        inner = holder.get(step)
        if not isinstance(inner, dict):
            raise ValueError(f"{change.path} was taken away again later")
        holder = inner
    if holder.get(last) != change.after:
        raise ValueError(f"{change.path} was changed again later")
    holder[last] = change.before


def _order_back(now: Sequence[str], moved: Change | None, genes: Mapping[str, Any]) -> Iterator[str]:
    """The order of genes without an edit: those that are back stand behind what they stood behind before it, and those
    that it moved among each other stand as they did."""
    there = [gene for gene in now if gene in genes]
    if moved is None:
        return iter(there)
    before, after = list(moved.before), list(moved.after)
    both = {gene for gene in before if gene in after and gene in there}
    old, new = ([gene for gene in order if gene in both] for order in (before, after))
    if old != new:
        if [gene for gene in there if gene in both] != new:
            raise ValueError("the order was changed again later")
        queue = iter(old)
        there = [next(queue) if gene in both else gene for gene in there]
    for gene in (gene for gene in before if gene in genes and gene not in there):
        ahead = [other for other in before[: before.index(gene)] if other in there]
        there.insert(there.index(ahead[-1]) + 1 if ahead else 0, gene)
    return iter(there)
