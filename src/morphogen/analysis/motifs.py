"""Motifs: which parts, pairs of parts and places are commoner on frontiers than among all that was trained?

Of every run the architectures that stand on its frontier are compared with all others that were trained there: an
exact test for each motif (Fisher's; over several runs the sum of their hypergeometric distributions, so that a run with
more of a motif on both sides shows nothing), one-sided, corrected for all motifs after Holm and after Benjamini and
Hochberg.

An architecture counts once, however long it was trained on. Relatives are no independent draws: a motif that a
successful ancestor happened to have goes on to all its descendants, so that p-values are too small where lineages are
few.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from morphogen.analysis.recorded import run_of
from morphogen.analysis.statistics import Table, benjamini_hochberg, exact_excess, holm
from morphogen.candidate import Candidate, Record, Report, Status, origin
from morphogen.errors import InputError, RunError
from morphogen.store.documents import Document
from morphogen.store.frontier import Frontier
from morphogen.store.ledger import Asked, Generation, Ledger, Reported

#: Fields of a part, beside its kind, whose values are motifs of their own, where they say something.
TOLD: Mapping[str, tuple[Any, ...]] = {
    "sparsity": ("none",),
    "selector": ("none",),
    "qk_norm": ("none",),
    "rope": (),
    "alibi": (False,),
    "gating_pos": ("none",),
    "decay": ("none",),
    "activation": (),
    "router_type": (),
    "shared": (0,),
}
EVALUATED = (Status.TRAINED, Status.GATED)
Sort = Literal["part", "pair", "position"]


class Motif(Record):
    """One of them. sort: a part; a pair of parts in one block (`a + b`) or in neighbours (`a > b`); a part in the first
    block, the last, or a third of the depth (`a @ first`). alike: others that the very same architectures have, which
    no test could tell from it. frontier, others: architectures that have it, of how many.
    ratio: of the two shares. p: of as many on frontiers by chance; p_holm, p_bh: corrected for all motifs."""

    motif: str
    sort: Sort
    alike: tuple[str, ...] = ()
    frontier: int
    of_frontier: int
    others: int
    of_others: int
    ratio: float | None
    p: float
    p_holm: float
    p_bh: float


class Motifs(Document):
    """The file. runs: names of all whose frontiers were read. tested: motifs that some but not all have."""

    title: ClassVar[str] = "motif report"
    runs: tuple[str, ...]
    tested: int
    motifs: tuple[Motif, ...]

    def rows(self, most: int | None = None) -> list[dict[str, Any]]:
        """The table: the likeliest first."""
        return [
            {
                "motif": one.motif + (f" (and {len(one.alike)} alike)" if one.alike else ""),
                "sort": one.sort,
                "frontier": f"{one.frontier}/{one.of_frontier}",
                "others": f"{one.others}/{one.of_others}",
                "ratio": one.ratio,
                "p": one.p,
                "p_holm": one.p_holm,
                "p_bh": one.p_bh,
            }
            for one in self.motifs[:most]
        ]


class Population(NamedTuple):
    """One run: its name, and the motifs of every architecture, those of its frontier apart."""

    name: str
    frontier: tuple[frozenset[str], ...]
    others: tuple[frozenset[str], ...]


def motifs(paths: Sequence[Path], *, least: int = 2) -> Motifs:
    """The motifs of several frontiers, each a run's folder or its frontier.json.

    least: motifs that fewer architectures have are left out, as they could show nothing. InputError where there is no
    run, RunError where nothing of it was trained.
    """
    folders = [_run_of(path)[0].resolve() for path in paths]
    if again := [path for i, path in enumerate(paths) if folders[i] in folders[:i]]:
        raise InputError(f"{again[0]}: names a run once more, expected every run once")
    populations = [_population(path) for path in paths]
    found = compared(populations, least)
    names = tuple(population.name for population in populations)
    return Motifs(run=names[0], runs=names, tested=len(found), motifs=tuple(found))


def compared(populations: Sequence[Population], least: int = 2) -> list[Motif]:
    """Every motif that some architectures have and others have not, the most surprising first."""
    everything = [each for one in populations for each in (*one.frontier, *one.others)]
    held: dict[tuple[bool, ...], list[str]] = defaultdict(list)
    for name in sorted(set().union(*everything), key=lambda name: (len(name), name)):
        held[tuple(name in each for each in everything)].append(name)
    alike = {name: tuple(others) for name, *others in held.values()}
    tables: dict[str, list[Table]] = {}
    for name in alike:
        each = [
            Table(
                sum(name in it for it in one.frontier),
                len(one.frontier),
                sum(name in it for it in one.others),
                len(one.others),
            )
            for one in populations
        ]
        having = sum(table.chosen_with + table.others_with for table in each)
        if least <= having < sum(table.chosen + table.others for table in each):
            tables[name] = each
    p_values = {name: exact_excess(each) for name, each in tables.items()}
    corrected = zip(holm(list(p_values.values())), benjamini_hochberg(list(p_values.values())), strict=True)
    found = []
    for (name, each), (by_holm, by_bh) in zip(tables.items(), corrected, strict=True):
        with_it, chosen = (sum(table[i] for table in each) for i in (0, 1))
        others_with, others = (sum(table[i] for table in each) for i in (2, 3))
        share = others_with / others if others else 0.0
        assert by_holm is not None
        found.append(
            Motif(
                motif=name,
                sort=_sort(name),
                alike=alike[name],
                frontier=with_it,
                of_frontier=chosen,
                others=others_with,
                of_others=others,
                ratio=with_it / chosen / share if share and chosen else None,
                p=p_values[name],
                p_holm=by_holm,
                p_bh=by_bh,
            )
        )
    return sorted(found, key=lambda one: (one.p, -(one.ratio or float("inf")), one.motif))


def _sort(name: str) -> Sort:
    return "pair" if " + " in name or " > " in name else "position" if " @ " in name else "part"


def _population(path: Path) -> Population:
    folder, named = _run_of(path)
    with Ledger.open(folder, readonly=True) as ledger:
        events = list(ledger.events())
    last = max((i for i, event in enumerate(events) if isinstance(event, Generation)), default=-1)
    events = events[: last + 1]  # who is in a generation that is still open had no chance yet
    candidates = {it.id: it for event in events if isinstance(event, Asked) for it in event.candidates}
    # whoever was measured once counts, also where a later round of training failed
    known = [event.report for event in events if isinstance(event, Reported)]
    reports = {report.id: report for report in known if report.status in EVALUATED}
    closed = [event.frontier for event in events if isinstance(event, Generation)]
    ids = named if named is not None else closed[-1] if closed else ()
    if strangers := [id for id in ids if id not in candidates]:
        raise InputError(f"{path}: {strangers[0]} is no candidate of the run in {folder}")
    if not ids:
        raise RunError(f"{folder}: no generation of this run is closed yet, so that it has no frontier")
    there = {origin(candidates, candidates[id]).id for id in ids}
    evaluated = [it for it in candidates.values() if not it.continues and it.id in reports]
    chosen = [frozenset(motifs_of(_blueprint(candidates[id], reports))) for id in sorted(there)]
    others = [frozenset(motifs_of(_blueprint(it, reports))) for it in evaluated if it.id not in there]
    return Population(folder.resolve().name, tuple(chosen), tuple(others))


def _run_of(path: Path) -> tuple[Path, tuple[str, ...] | None]:
    """The folder of a run, and the ids of a frontier file, where one is named."""
    folder = run_of(path)
    return folder, None if path.is_dir() else tuple(entry.id for entry in Frontier.read(path).candidates)


def _blueprint(candidate: Candidate, reports: Mapping[str, Report]) -> dict[str, Any]:
    return candidate.as_trained(reports.get(candidate.id)).blueprint


# ----------------------------------------------------------------------------------------------- of one architecture


def motifs_of(blueprint: Mapping[str, Any]) -> set[str]:
    """Every motif of an architecture, from its plain data."""
    blocks = [sorted(_of_block(block)) for block in blueprint["blocks"]]
    found = {part for block in blocks for part in block}
    for block in blocks:
        kinds = [name for name in block if "=" not in name]
        found |= {f"{a} + {b}" for i, a in enumerate(kinds) for b in kinds[i + 1 :]}
    for above, below in pairwise(blocks):
        found |= {f"{a} > {b}" for a in above for b in below if "=" not in a and "=" not in b}
    for place, indices in _places(len(blocks)).items():
        found |= {f"{part} @ {place}" for i in indices for part in blocks[i]}
    found |= {"recurrence"} if blueprint.get("recurrences") else set()
    found |= {"growth rule"} if blueprint.get("growth") else set()
    return found | {f"norm={blueprint.get('norm', 'rmsnorm')}"}


def _places(count: int) -> dict[str, list[int]]:
    """Where blocks stand: the first, the last, and thirds of the depth where there are three blocks or more."""
    places: dict[str, list[int]] = defaultdict(list)
    if count > 1:
        places["first"], places["last"] = [0], [count - 1]
    if count > 2:
        for i in range(count):
            places[("early", "middle", "late")[3 * i // count]].append(i)
    return places


def _of_block(block: Mapping[str, Any]) -> Iterator[str]:
    """The parts of a block, and what their fields say."""
    parts = [(slot, block.get(slot)) for slot in ("attn", "ssm", "ffn")]
    parts += [("extra", extra) for extra in block.get("extras") or ()]
    found: set[str] = {"parallel"} if block.get("parallel") else set()
    for slot, part in parts:
        if part is not None:
            found |= set(_of_part(slot, part))
    yield from found


def _of_part(slot: str, part: Mapping[str, Any]) -> Iterable[str]:
    kind = part.get("kind", part.get("type"))
    yield f"{slot}:{kind}"
    for name, silent in TOLD.items():
        if name in part and part[name] is not None and part[name] not in silent:
            yield f"{slot}.{name}={part[name]}"
    if part.get("experts"):
        yield f"{slot}.experts={'+'.join(sorted({str(each.get('kind')) for each in part['experts']}))}"
