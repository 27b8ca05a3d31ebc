"""Longer training of some of a frontier's candidates, from the weights that they have: each a training of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from morphogen.analysis.recorded import Recorded
from morphogen.analysis.trials import MOST_DESIGNS, check_range
from morphogen.blueprint.diff import distance
from morphogen.candidate import Record
from morphogen.errors import RunError
from morphogen.inherit.checkpoint import load_checkpoint
from morphogen.inherit.provenance import Provenance
from morphogen.report.growth import table
from morphogen.resuming import file_checksum
from morphogen.search.space import Design
from morphogen.seeds import check_free, checkpoint_of, design_of, seed_text, weights_of, write_seed
from morphogen.store.documents import Document
from morphogen.store.ordinary import check_own, read_ordinary
from morphogen.training.journal import EVALS
from morphogen.training.long_run import MODEL
from morphogen.training.news import Observer
from morphogen.trainingfolder import read_record
from morphogen.trainings import train

FILE = "finetune.json"
FOLDER = "finetuned"


class Finetuned(Record):
    """One candidate trained on. before: its held-out bits per byte as the run measured them; after: those of the
    training's end. lineage_tokens: behind the weights now. folder: of the training."""

    id: str
    steps: int
    tokens: int
    lineage_tokens: int
    before: float | None
    after: float | None
    folder: str


class Finetunes(Document):
    """The file. metric: what `before` and `after` are."""

    title: ClassVar[str] = "finetune report"
    metric: str = "bpb"
    candidates: tuple[Finetuned, ...]

    def rows(self) -> list[dict[str, Any]]:
        """The table: one row per candidate."""
        return [one.model_dump(mode="json") for one in self.candidates]


class Wanted(NamedTuple):
    """How candidates are trained on. out: where the trainings go; None: `finetuned` in the run's folder."""

    steps: int
    device: str = "cpu"
    out: Path | None = None


def finetune(
    path: Path,
    wanted: Wanted,
    *,
    ids: Sequence[str] = (),
    top_n: int = 3,
    metric: str = "bpb",
    said: Callable[[str], None],
    observer: Observer,
) -> Finetunes:
    """Trains candidates of a frontier on, as `morphogen train` does: what is interrupted goes on when it is called
    again, and what is done is not repeated.

    ids: candidates of the run; none: the best of the frontier by `metric`, and then `top_n` in all that are as unlike
    one another as can be. InputError for what there is not, and for weights that are gone.
    """
    check_range({"top-n": (top_n, 1, MOST_DESIGNS), "steps": (wanted.steps, 1, 10**9)})
    run = Recorded.read(path)
    chosen = list(dict.fromkeys(ids)) or diverse(run, top_n, metric)
    designs = {id: design_of(run, id) for id in chosen}
    out = run.folder / FOLDER if wanted.out is None else wanted.out
    if wanted.out is None:
        check_own(run.folder, [FILE], [FOLDER])
    done = {id for id, design in designs.items() if _done(run, id, design, out, wanted.steps)}
    sources = {id: checkpoint_of(run, id) for id in chosen if id not in done}
    found = []
    for place, (id, design) in enumerate(designs.items(), start=1):
        folder, seed = out / id, out / f"{id}.yaml"
        said(f"[{place}/{len(designs)}] {id}: {wanted.steps:,} steps in {folder}")
        if id in done:
            said(f"{id}: done before")
        else:
            check_free(seed, "--output-dir", force=False)
            write_seed(run, id, design, seed, sources[id])
            outcome = train(seed, folder, steps=wanted.steps, resume=True, device=wanted.device, observer=observer)
            if outcome.interrupted:
                raise KeyboardInterrupt
        found.append(_told(run, id, folder))
    made = Finetunes(run=run.name, candidates=tuple(found))
    made.write((run.folder if wanted.out is None else out) / FILE)
    return made


def diverse(run: Recorded, count: int, metric: str) -> list[str]:
    """The best of the frontier, then again and again the one whose nearest among the chosen is farthest from it."""
    run.check_metric(metric, run.frontier)
    best = run.best(metric)
    blueprints = {id: run.design(id).blueprint for id in best}
    chosen = best[:1]
    apart = {id: distance(blueprints[id], blueprints[best[0]]) for id in best[1:]}
    while apart and len(chosen) < count:
        farthest = max(apart, key=lambda id: apart[id])
        if apart.pop(farthest) == 0.0:
            break  # the same architectures over again
        chosen.append(farthest)
        apart = {id: min(far, distance(blueprints[id], blueprints[farthest])) for id, far in apart.items()}
    return chosen


def _done(run: Recorded, id: str, design: Design, out: Path, steps: int) -> bool:
    """Whether a candidate's training has come to its end. RunError where there is that of other weights; of weights
    that are gone the seed beside it tells."""
    folder, seed, weights = out / id, out / f"{id}.yaml", weights_of(run, id)
    path = folder / MODEL
    if not path.is_file():
        return False
    if weights.is_file():
        same = read_record(folder).init_checkpoint == file_checksum(weights)
    else:
        same = seed.is_file() and read_ordinary(seed).decode() == seed_text(run, id, design, seed, weights)
    if not same:
        raise RunError(f"{folder}: holds the training of other weights; choose another --output-dir")
    return int(load_checkpoint(path)[2].get("steps", "0")) >= steps


def _told(run: Recorded, id: str, folder: Path) -> Finetuned:
    """What came of a training that is done."""
    metadata = load_checkpoint(folder / MODEL)[2]
    tokens = Provenance.from_metadata(metadata, folder / MODEL).tokens
    found = table(folder / EVALS, lambda row: float(row["bpb"]))
    return Finetuned(
        id=id,
        steps=int(metadata["steps"]),
        tokens=tokens.own,
        lineage_tokens=tokens.lineage,
        before=run.reports[id].metrics.get("bpb"),
        after=found[-1] if found else None,
        folder=str(folder),
    )
