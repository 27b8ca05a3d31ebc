"""Comparing blueprints: digest for identity, changes for explaining and replaying, distance for novelty."""

import copy
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from morphogen.blueprint.growth import GrowthRule
from morphogen.blueprint.schema import Block, Blueprint
from morphogen.candidate import Change
from morphogen.parts.contract.frozen import remembered
from morphogen.parts.contract.part import Part

#: Genes whose order counts -> their fields, which a change names one by one; `id` never changes.
ORDERED: Mapping[str, tuple[str, ...]] = {
    section: tuple(name for name in gene.model_fields if name != "id")
    for section, gene in (("growth", GrowthRule), ("blocks", Block))
}


def canonical(blueprint: Blueprint) -> dict[str, Any]:
    """What the blueprint computes, as plain data: without names, gene ids, or fields that have no effect. Growth is
    there only where there is a rule. The caller's own."""
    return copy.deepcopy(_canonical(blueprint))


def _canonical(blueprint: Blueprint) -> dict[str, Any]:
    """`canonical`, of which parts are shared with others that were asked for."""
    places = {block.id: i for i, block in enumerate(blueprint.blocks)}
    rules = [_canonical_rule(rule, places) for rule in blueprint.growth]
    return {
        "emb": blueprint.emb.model_dump(mode="json", exclude=blueprint.emb.unsaid()),
        "norm": blueprint.norm,
        "head": blueprint.head.model_dump(mode="json", exclude=blueprint.head.unsaid()),
        "blocks": [_canonical_block(block) for block in blueprint.blocks],
        "recurrences": [loop.model_dump(mode="json", exclude=set(loop.inert())) for loop in blueprint.recurrences],
        **({"growth": rules} if rules else {}),
    }


def _canonical_rule(rule: GrowthRule, places: Mapping[str, int]) -> dict[str, Any]:
    """A rule without its id, blocks by their places; what nothing reads is as it is by default."""
    plain = rule.model_dump(mode="json", exclude={"id": True})
    if named := rule.blocks():
        plain["do"]["blocks"] = sorted(places[block] for block in named if block in places)
    for *steps, name in rule.unread():
        holder: Any = plain
        model: Any = rule
        for step in steps:
            holder, model = holder[step], model[step] if isinstance(step, int) else dict(model)[step]
        usual = type(model).model_fields[name].default
        holder[name] = list(usual) if isinstance(usual, tuple) else usual
    return plain


def _canonical_block(block: Block) -> dict[str, Any]:
    return {
        "parallel": block.parallel,
        "parts": [(path, _canonical_part(part)) for _, path, part in block.parts()],
    }


@remembered  # of most parts a search asks again and again
def _canonical_part(part: Part) -> dict[str, Any]:
    return part.model_dump(mode="json", exclude=part.unsaid() | dict.fromkeys(part.inert(), True))


@remembered
def digest(blueprint: Blueprint) -> str:
    """SHA-256 of the canonical form, in hexadecimal: equal digests mean the same architecture."""
    text = json.dumps(_canonical(blueprint), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def changes(before: Blueprint, after: Blueprint) -> tuple[Change, ...]:
    """All that differs, by gene id. `apply(before, changes(before, after)) == after`."""
    old, new = before.to_json(), after.to_json()
    found = [Change(path=key, before=old[key], after=new[key]) for key in ("name", "norm") if old[key] != new[key]]
    for section in ("emb", "head"):
        found += _dict_changes(section, old[section], new[section])
    loops = [{loop["id"]: loop for loop in side["recurrences"]} for side in (old, new)]
    for gene in dict.fromkeys([*loops[0], *loops[1]]):
        found += _part_changes(f"recurrences.{gene}", loops[0].get(gene), loops[1].get(gene))
    for section, fields in ORDERED.items():
        found += _gene_changes(section, fields, old[section], new[section])
    return tuple(found)


def _gene_changes(section: str, fields: Iterable[str], old: list[Any], new: list[Any]) -> list[Change]:
    """What differs in genes whose order counts."""
    found = list[Change]()
    theirs, mine = {gene["id"]: gene for gene in old}, {gene["id"]: gene for gene in new}
    for gene in [*theirs, *(g for g in mine if g not in theirs)]:
        if gene not in mine or gene not in theirs:
            found.append(Change(path=f"{section}.{gene}", before=theirs.get(gene), after=mine.get(gene)))
            continue
        for field in fields:
            found += _part_changes(f"{section}.{gene}.{field}", theirs[gene][field], mine[gene][field])
    if list(theirs) != list(mine):
        found.append(Change(path=section, before=list(theirs), after=list(mine)))
    return found


def apply(blueprint: Blueprint, edits: Iterable[Change]) -> Blueprint:
    """The blueprint with recorded changes made again; those of training are passed over.

    Raises ValueError where a change does not fit.
    """
    data = blueprint.to_json()
    genes: dict[str, dict[str, Any]] = {
        section: {gene["id"]: gene for gene in data[section]} for section in (*ORDERED, "recurrences")
    }
    order = {section: list(genes[section]) for section in ORDERED}
    for change in edits:
        section, _, rest = change.path.partition(".")
        if section == "train":
            continue
        if change.path in ORDERED:
            order[section] = list(change.after)
        elif section in genes:
            _change(genes[section], rest, change)
        else:
            _set(data, change.path, change)
    for section, ids in order.items():
        data[section] = [genes[section][gene] for gene in ids if gene in genes[section]]
    data["recurrences"] = sorted(genes["recurrences"].values(), key=lambda loop: loop["start"])
    return Blueprint.model_validate(data)


def _change(genes: dict[str, Any], rest: str, change: Change) -> None:
    """Make a change at `<gene id>` (a gene that comes or goes) or `<gene id>.<field>`; in place."""
    gene, _, field = rest.partition(".")
    if field:
        _set(genes[gene], field, change)
    elif change.after is None:
        del genes[gene]
    else:
        genes[gene] = change.after


def _set(holder: dict[str, Any], path: str, change: Change) -> None:
    *steps, last = path.split(".")
    for step in steps:
        holder = holder[step]
    if holder.get(last) != change.before:
        raise ValueError(f"{change.path}: found {holder.get(last)!r}, the edit expects {change.before!r}")
    holder[last] = change.after


def _dict_changes(path: str, old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    return [Change(path=f"{path}.{key}", before=old[key], after=new[key]) for key in new if old[key] != new[key]]


def _part_changes(path: str, old: Any, new: Any) -> list[Change]:
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        return _dict_changes(path, old, new)
    return [Change(path=path, before=old, after=new)]


#: Leaves of nested data as (path, value) pairs.
Leaves = frozenset[tuple[str, str]]


class Traits(NamedTuple):
    """What distances are computed from: the leaves of every block in order, and of all that is not in blocks."""

    blocks: tuple[Leaves, ...]
    rest: Leaves


def traits(blueprint: Blueprint) -> Traits:
    """The blueprint taken apart once, for many distances."""
    plain = _canonical(blueprint)
    rest = [plain[name] for name in ("emb", "norm", "head", "recurrences", "growth") if name in plain]
    return Traits(tuple(_fields(block) for block in plain["blocks"]), _fields(rest))


def distance(a: Blueprint, b: Blueprint) -> float:
    """Structural distance: edit distance over blocks, plus the share of the model's fields, recurrences and
    growth rules that differ.

    Putting in or taking out a block costs 1; turning one into another costs the share of their fields that differ.
    Symmetric, 0 only for blueprints of equal digest, and within the triangle inequality.
    """
    return trait_distance(traits(a), traits(b))


def trait_distance(a: Traits, b: Traits) -> float:
    """`distance` of the blueprints that these are the traits of."""
    row = [float(j) for j in range(len(b.blocks) + 1)]
    for i, x in enumerate(a.blocks, start=1):
        diagonal, row[0] = row[0], float(i)
        for j, y in enumerate(b.blocks, start=1):
            best = min(row[j] + 1.0, row[j - 1] + 1.0, diagonal + _unlike(x, y))
            diagonal, row[j] = row[j], best
    return row[-1] + _unlike(a.rest, b.rest)


def entropy(blueprint: Blueprint) -> float:
    """Shannon entropy, in bits, of the blueprint's branches: 0 where all are alike, log2(n) where n are all different.

    H = −Σ p log2 p over distinct branches, each with all its settings; p is the share of branches that are so.
    """
    blocks = [_canonical_block(block) for block in blueprint.blocks]
    branches = [json.dumps(part, sort_keys=True) for block in blocks for part in block["parts"]]
    return sum(n / len(branches) * math.log2(len(branches) / n) for n in Counter(branches).values())


def _fields(value: Any, path: str = "") -> Leaves:
    if isinstance(value, dict):
        return frozenset().union(*(_fields(v, f"{path}.{k}") for k, v in value.items()))
    if isinstance(value, list | tuple):
        return frozenset().union(*(_fields(v, f"{path}.{i}") for i, v in enumerate(value)))
    return frozenset({(path, repr(value))})


def _unlike(x: Leaves, y: Leaves) -> float:
    """Jaccard distance, a metric on sets."""
    if x == y:
        return 0.0
    both = len(x & y)
    return 1.0 - both / (len(x) + len(y) - both)
