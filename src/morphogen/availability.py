"""Which figures the candidates of an experiment can have: asked before anything is trained."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from morphogen import plugins
from morphogen.blueprint.schema import Blueprint
from morphogen.data.probes import DEPTHS, kind_of
from morphogen.errors import InputError, unknown
from morphogen.experiment import Data, Evolution, Experiment
from morphogen.figures import NEEDS, Figure, direction, figure_called, find, known
from morphogen.parts.recurrence.recurrence import Recurrence
from morphogen.sections.built_in import PROBES

#: Figures by which nobody is selected -> why not.
LATER: Mapping[str, str] = {
    "bpb_annealed": "it is measured when all are selected, at the run's end",
    "lr": "it is what the root's search for a rate found, and no other candidate has it",
}
#: Known of a generation as a whole, after the gate.
NOVELTY = "novelty"


class Available:
    """The figures that a root has, and those that its descendants may come to have besides.

    root: names of the first. descendants: also those whose needs operators can bring into a model.
    """

    def __init__(self, experiment: Experiment, model: Blueprint) -> None:
        parts = [part for block in model.blocks for part in block.branches()]
        recorded = {figure.name for part in parts for figure in part.recorded()}
        has = frozenset[str]().union(*(part.counts_as() | {part.label} for part in parts))
        has |= {"recurrence"} if model.recurrences else set()
        probes = [shard.probe.kind for shard in experiment.data.probes if shard.probe]
        has |= {"probe", *probes} if probes else set()
        has |= {"weights"} if experiment.train.init_checkpoint is not None else set()
        grown = frozenset(NEEDS) - {"probe", *PROBES}
        steps = {str(n) for loop in model.recurrences for n in (1, *loop.test_recurrences)}
        usual = {str(n) for n in (1, *Recurrence.model_fields["test_recurrences"].default)}
        shards = [shard.name for shard in experiment.data.measured_shards]
        texts, asked = [{"<shard>": shard} for shard in shards], list(_probe_marks(experiment.data))
        self.root: set[str] = set(recorded)
        self.descendants: set[str] = set(recorded)
        for figure in known().values():
            if has.issuperset(figure.needs):
                self.root |= _members(figure, texts, asked, [{"<n>": n} for n in steps])
            if (has | grown).issuperset(figure.needs):
                self.descendants |= _members(figure, texts, asked, [{"<n>": n} for n in steps | usual])
        self.root -= LATER.keys()
        self.descendants -= LATER.keys()
        self._has = has
        self._made: dict[str, tuple[str, ...]] = {}
        _check_shards(shards)

    def add(self, name: str, made_of: tuple[str, ...]) -> None:
        """A figure made of others that somebody can have."""
        self._made[name] = made_of
        self.descendants.add(name)
        if self.root.issuperset(made_of):
            self.root.add(name)

    def check(self, place: str, name: str, *, root: bool) -> None:
        """InputError at `place`, with the nearest names, where the figure called `name` is not to be had.

        root: whether the root must have it, or only somebody.
        """
        allowed = self.root if root else self.descendants
        if name in allowed:
            return
        if name in LATER:
            raise InputError(f"{place}: got {name!r}, by which nobody is selected: {LATER[name]}")
        for part in self._made.get(name, ()):
            self.check(f"{place}, made of {part}", part, root=root)
        figure = find(name)
        lacking = [need for need in figure.needs if need not in self._has] if figure is not None else []
        if lacking:
            need = " and ".join(NEEDS.get(need, f"a part that records it, {need}") for need in lacking)
            raise InputError(f"{unknown(place, name, allowed)} (the root has no such figure: it needs {need})")
        raise InputError(plugins.missing(unknown(place, name, allowed), plugins.FIGURES))


#: What marks in a figure's name stand for together.
Marks = Mapping[str, str]


def _probe_marks(data: Data) -> Iterator[Marks]:
    """Every probe alone, at each of its lengths, and at each depth where it has any."""
    for shard in data.probes:
        assert shard.probe is not None
        yield {"<probe>": shard.label}
        for length in shard.lengths or (data.seq_len,):
            marks = {"<probe>": shard.label, "<length>": str(length)}
            yield marks
            yield from ({**marks, "<depth>": str(depth)} for depth in DEPTHS if kind_of(shard.probe.kind).deep)


def _members(figure: Figure, *several: Sequence[Marks]) -> set[str]:
    """The names that a figure stands for: of each sort of marks, by those that say all that it has of the sort."""
    names = {figure.name}
    for sort in several:
        mine = {mark for marks in sort for mark in marks if mark in figure.name}
        names = {_marked(name, marks) for name in names for marks in sort if marks.keys() == mine} if mine else names
    return {name for name in names if "<" not in name}


def _marked(name: str, marks: Marks) -> str:
    for mark, value in marks.items():
        name = name.replace(mark, value)
    return name


def _check_shards(shards: Collection[str]) -> None:
    """InputError for a shard whose figures would bear the names of others."""
    for shard in shards:
        for family in [figure for figure in known().values() if figure.name.endswith("_<shard>")]:
            name = family.name.replace("<shard>", shard)
            other = find(name)
            if other is not None and other != family:
                raise InputError(
                    f"data.shards: a shard called {shard!r} is measured as {name!r}, but that is the name of another "
                    f"figure ({other.summary}); expected another name for the shard"
                )


def check_figures(experiment: Experiment, model: Blueprint) -> None:
    """InputError for a figure that the experiment names and its candidates cannot have, and for one that is compared
    while nobody says which way it is better. model: the experiment's, its vocabulary filled in.

    What every candidate is judged by (objectives, constraints, gates) the root must have too; what only tells some from
    others (weights, lexicase cases, axes of MAP-Elites) a descendant may bring.
    """
    evolution, available = experiment.evolution, Available(experiment, model)
    _add_composites(evolution, available)
    for field in ("rung1_gates", "objectives", "constraints"):
        for name in dict(evolution)[field]:
            available.check(f"evolution.{field}.{name}", name, root=True)
    for name in evolution.rung1_gates:
        if NOVELTY in _made_of(evolution, name):
            raise InputError(
                f"evolution.rung1_gates.{name}: got {NOVELTY!r}, which is not known of a candidate at its gate, only "
                "when its whole generation is measured"
            )
    for name in evolution.map_elites:
        available.check(f"evolution.map_elites.{name}", name, root=False)
    compared = {f"evolution.lexicase_cases: {name}": name for name in evolution.lexicase_cases}
    compared |= {f"evolution.weights.{name} (--score-weight-*)": name for name in evolution.weights}
    for place, name in compared.items():
        figure = figure_called(name)
        available.check(place, figure, root=False)
        direction(figure, evolution.directions, place)


def _made_of(evolution: Evolution, name: str) -> set[str]:
    """A figure, and all that it is made of."""
    parts = evolution.composite_metrics[name].names if name in evolution.composite_metrics else ()
    return {name}.union(*(_made_of(evolution, part) for part in parts))


def _add_composites(evolution: Evolution, available: Available) -> None:
    """Makes the composites available that can be made."""
    for name, composite in evolution.composite_metrics.items():
        place = f"evolution.composite_metrics.{name}"
        if name in available.descendants:
            raise InputError(f"{place}: there is a figure of that name, expected a new one")
        for part in composite.names:
            available.check(f"{place}.of", part, root=False)
        available.add(name, composite.names)
