"""A run's folder: who may use it, and the files that follow from its ledger. Called by `session` and `doctor`.

Every file is written whole or not at all. All but the ledger and the checkpoints can be made again from the ledger.
"""

import csv
import functools
import importlib.metadata
import io
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from morphogen import __version__
from morphogen.against_root import NOT_MEASURED, AgainstRoot
from morphogen.blueprint.yaml import written
from morphogen.candidate import MOMENTS_SUFFIX, Candidate, Report, moments_path
from morphogen.continued import Continued
from morphogen.errors import RunError
from morphogen.escape import csv_cell
from morphogen.figures import Direction
from morphogen.report.html import report_html
from morphogen.report.shown import RunShown
from morphogen.report.subway import lineage_svg
from morphogen.store.files import TEMPORARY, canonical_json, write_atomic
from morphogen.store.frontier import build_frontier
from morphogen.store.ledger import FILE as LEDGER
from morphogen.store.ledger import LOCK, Generation
from morphogen.store.lineage import build_lineage
from morphogen.store.ordinary import check_own, read_ordinary
from morphogen.store.outputs import OWNER, PARTIAL, RUN_FILES
from morphogen.store.places import ENVIRONMENT

CHECKPOINTS = "checkpoints"
#: Where trainings that verification and fidelity finished lie.
TRIALS = "trials"
#: Folders of a run with more files that it writes.
FOLDERS = (TRIALS, PARTIAL)
LIBRARIES = ("torch", "numpy", "pydantic", "pymoo", "moocore", "scikit-learn", "safetensors", "tokenizers", "datasets")


def check_usable(folder: Path, resume: bool, checkpoint_dir: Path | None = None) -> None:
    """RunError unless a run may be started in `folder`, or, with `resume`, gone on with there.

    checkpoint_dir: where its checkpoints are said to lie.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file, expected a folder for the run")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    check_files(folder, checkpoint_dir)
    if resume and LEDGER in names:
        return
    if LEDGER in names:
        raise RunError(f"{folder}: holds a run already; add --resume to go on with it, or choose another --out")
    if strangers := sorted(name for name in names if name != LOCK):
        raise RunError(f"{folder}: not empty ({strangers[0]}, ...) and not a run; choose another --out")


def check_files(folder: Path, checkpoint_dir: Path | None = None) -> None:
    """RunError unless all that a run writes or deletes in `folder` is its own: one from elsewhere may hold links to
    other files, and pipes; a copied one has links to the original's. Checkpoints may lie in another folder, where that
    says that it is for this run, or for one that is gone (this one, before it was moved) and the user names it."""
    check_own(folder, RUN_FILES, FOLDERS)
    place = folder / CHECKPOINTS
    if not place.is_symlink():
        return
    owner = None
    with suppress(OSError):
        owner = read_ordinary(place / OWNER).decode(errors="replace")
    named = checkpoint_dir is not None and checkpoint_dir.resolve() == place.resolve()
    if not owner or (owner != str(folder.resolve()) and (os.path.lexists(owner) or not named)):
        raise RunError(
            f"{place}: is a link to {os.readlink(place)}, where {OWNER} says that it is for {owner or 'nobody'}. For a "
            "copy of a run, put a copy of that folder in the link's place; for a run that was moved, name the folder "
            "with --checkpoint-dir"
        )


def leftovers(folder: Path) -> list[Path]:
    """Temporary files: of whoever writes now, or of a process that was killed while it wrote."""
    places = (folder, folder / CHECKPOINTS, *(folder / name for name in FOLDERS))
    found = {path for place in places for path in place.glob(f".*{TEMPORARY}")}
    return sorted(found | set((folder / CHECKPOINTS).glob(".*.safetensors.*")))


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files. Call only while holding the ledger, with no candidate in training."""
    for path in leftovers(folder):
        path.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Removes checkpoints in the middle of candidates. Call only while holding the ledger, when all that were begun are
    done."""
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)


def link_checkpoints(folder: Path, elsewhere: Path | None) -> None:
    """The folder for checkpoints: a real one, or a link to `elsewhere`. RunError where it is another one already, or
    holds another run's: two runs give their candidates the same names."""
    place = folder / CHECKPOINTS
    try:
        if elsewhere is None:
            place.mkdir(exist_ok=True)
            return
        elsewhere.mkdir(parents=True, exist_ok=True)
        if place.is_symlink() and place.resolve() == elsewhere.resolve():
            write_atomic(elsewhere / OWNER, str(folder.resolve()).encode())  # as `check_files` allowed
        elif not place.exists():
            _claim(elsewhere, folder)
            place.symlink_to(elsewhere.resolve(), target_is_directory=True)
    except OSError as error:
        raise RunError(f"{place}: cannot be made: {error.strerror}") from None
    if place.resolve() != elsewhere.resolve():
        raise RunError(f"{place}: this run keeps its checkpoints in {place.resolve()}, not in {elsewhere}")


def link_log(folder: Path, copy: Path | None) -> None:
    """Beside a copy of the frontier, NAME.json, the run's log can be followed as NAME.log. What is there stays."""
    if copy is None:
        return
    with suppress(OSError):  # it is another way to the log, not the log
        copy.with_suffix(".log").symlink_to(os.path.relpath(folder / "run.log", copy.parent))


def _claim(elsewhere: Path, folder: Path) -> None:
    """Leaves a note in `elsewhere` that it is for the run in `folder`. RunError where it is another's."""
    note, mine = elsewhere / OWNER, str(folder.resolve())
    if (elsewhere / LEDGER).exists() or (elsewhere.resolve().parent / LEDGER).exists():
        raise RunError(f"{elsewhere}: is a run's own folder; choose another --checkpoint-dir")
    if not note.exists() and any(elsewhere.glob("*.safetensors")):
        raise RunError(f"{elsewhere}: holds checkpoints of something else; choose another --checkpoint-dir")
    with suppress(FileExistsError), note.open("x", encoding="utf-8") as file:
        file.write(mine)
    if (owner := note.read_text(encoding="utf-8")) != mine:
        raise RunError(
            f"{elsewhere}: holds the checkpoints of {owner or 'another run'}; choose another --checkpoint-dir"
        )


def remove_checkpoints(folder: Path, keep: Iterable[str | None]) -> int:
    """Deletes every checkpoint that is not among `keep` (paths below the folder), and the moments beside it; how many
    checkpoints they were."""
    kept = {folder / name for name in keep if name is not None}
    kept |= {moments_path(path) for path in kept}
    gone = [path for path in (folder / CHECKPOINTS).glob("*.safetensors") if path not in kept]
    for path in gone:
        path.unlink()
    return sum(not path.name.endswith(MOMENTS_SUFFIX) for path in gone)


def keep_to_budget(folder: Path, spare: Iterable[str | None], needed: Iterable[str | None], budget_bytes: int) -> int:
    """Deletes checkpoints until all together take at most `budget_bytes`; how many. Those that neither list names go
    first (of a round that another followed, or of a worker that died), then those among `spare`, the first first.

    RunError when those `needed` to go on take more than that by themselves; nothing is deleted then.
    """
    sizes = {path: path.stat().st_size for path in (folder / CHECKPOINTS).glob("*.safetensors")}

    def parts(name: str) -> list[Path]:
        return [path for path in (folder / name, moments_path(folder / name)) if path in sizes]

    spared, kept = ([name for name in names if name is not None] for names in (spare, needed))
    kept_bytes = sum(sizes[path] for name in kept for path in parts(name))
    if kept_bytes > budget_bytes:
        raise RunError(
            f"{folder / CHECKPOINTS}: the checkpoints of survivors and frontier take {kept_bytes:,} bytes, and the "
            f"disk budget is {budget_bytes:,}; --resume goes on with a larger --disk-budget"
        )
    weights = (path for path in sorted(sizes) if not path.name.endswith(MOMENTS_SUFFIX))
    stray = [name for path in weights if (name := f"{CHECKPOINTS}/{path.name}") not in {*spared, *kept}]
    total_bytes, gone = sum(sizes.values()), 0
    for found in (parts(name) for name in (*stray, *spared)):
        if found and total_bytes > budget_bytes:
            for path in found:
                path.unlink()
                total_bytes -= sizes[path]
            gone += 1
    return gone


def environment(seed: int, device: str, threads: int, data: Mapping[str, Any]) -> dict[str, Any]:
    """What `environment.json` holds: what else a run's numbers depend on."""
    return {
        "schema_version": 1,
        "seed": seed,
        "device": device,
        "threads": threads,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": library_versions(),
        "data": dict(data),
    }


@functools.cache
def library_versions() -> Mapping[str, str]:
    """The versions of morphogen and of the libraries that decide its numbers."""
    versions = {"morphogen": __version__}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def write_environment(folder: Path, told: Mapping[str, Any]) -> None:
    """Writes `environment.json`."""
    write_atomic(folder / ENVIRONMENT, (canonical_json(told, indent=2) + "\n").encode())


def resolved_yaml(experiment: Mapping[str, Any]) -> str:
    """The experiment as YAML with every default written out."""
    return written(dict(experiment))


@functools.cache  # what this process runs, however its files change
def commit() -> str | None:
    """The commit of morphogen's own sources, `+` when they were changed since; None outside a checkout."""
    here = Path(__file__).parent
    try:
        head, changed = (
            subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, timeout=10, check=True)
            for args in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", str(here)])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def records(
    run: str,
    candidates: Mapping[str, Candidate],
    reports: Mapping[str, Report],
    closed: Sequence[Generation],
    objectives: Mapping[str, Direction],
    against_root: AgainstRoot = NOT_MEASURED,
    continues: Continued | None = None,
) -> dict[str, str]:
    """File name -> text of what follows from the ledger alone, as of the last closed generation."""
    frontier: Sequence[str] = closed[-1].frontier if closed else ()
    files = {
        "lineage.json": build_lineage(run, candidates, reports, frontier, continues).to_json(),
        "events.csv": events_csv(candidates, reports),
        "lineage.svg": lineage_svg(run, candidates, reports, frontier, objectives),
    }
    if closed:
        volume = closed[-1].hypervolume
        made = build_frontier(run, objectives, volume, candidates, reports, frontier, against_root)
        files["frontier.json"] = made.to_json()
    return files


def export(
    folder: Path,
    told: RunShown,
    closed: Sequence[Generation],
    copies: Mapping[str, Path | None],
    continues: Continued | None = None,
) -> None:
    """Writes frontier.json, lineage.json, lineage.svg, report.html and events.csv as of the last closed generation.

    copies: file name -> where else to put it.
    """
    files = records(told.run, told.candidates, told.reports, closed, told.objectives, told.against_root, continues)
    if closed:
        files["report.html"] = report_html([told])
    for name, text in files.items():
        write_atomic(folder / name, text.encode())
        if (copy := copies.get(name)) is not None:
            write_atomic(copy, text.encode())


def events_csv(candidates: Mapping[str, Candidate], reports: Mapping[str, Report]) -> str:
    """One line per finished candidate in order of its index: what it is, what became of it, every number known."""
    done = [(c, reports[c.id]) for c in sorted(candidates.values(), key=lambda c: c.index) if c.id in reports]
    rows = []
    for candidate, report in done:
        row: dict[str, Any] = {
            "index": candidate.index,
            "generation": candidate.generation,
            "id": candidate.id,
            "parents": "+".join(candidate.parents),
            "operators": "+".join(edit.operator for edit in candidate.edits),
            "status": str(report.status),
            "reason": report.reason,
            "rung": report.rung,
            "steps": report.steps,
            "stop_reason": report.stop_reason.name.lower(),
            "nan_seen": report.nan_seen,
            "loss_spike": report.loss_spike,
            "tokens_own": report.tokens.own,
            "tokens_lineage": report.tokens.lineage,
            "tokens_unique": report.tokens.unique,
            "tokens_beside": report.tokens_beside,
            "training_flops": report.flops,
        }
        if candidate.proposer:
            row["proposer"] = candidate.proposer
        if report.inheritance is not None:
            parameters = report.inheritance.model_dump(exclude={"notes", "genes"})
            row |= {f"params_{name}" if name != "exact" else name: value for name, value in parameters.items()}
        for table in (report.metrics, report.costs, report.timed):
            row |= dict(sorted(table.items()))  # as the ledger gives them back
        if (twin := report.twin) is not None:
            its = {"tokens": twin.tokens, "steps": twin.steps, "flops": twin.flops, **twin.metrics}
            row |= {f"twin_{name}": its[name] for name in sorted(its)}
        rows.append({csv_cell(name): csv_cell(v) if isinstance(v, str) else v for name, v in row.items()})
    fixed = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, fixed, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
