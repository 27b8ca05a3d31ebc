"""Files that users name for what is written: only a new file, or one that morphogen wrote as the same kind, is written.

A name may be mistyped, or stand for an input; what it held would be gone.
"""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from morphogen.errors import InputError
from morphogen.store.files import parsed_json, write_atomic
from morphogen.store.ledger import FILE as LEDGER
from morphogen.store.ledger import FILES as LEDGER_FILES
from morphogen.store.ledger import Ledger, Start
from morphogen.store.ordinary import KINDS, read_ordinary

Kind = Literal[
    "lineage.json",
    "frontier.json",
    "lineage.svg",
    "lineage.dot",
    "lineage.mmd",
    "lineage.png",
    "report.html",
    "ablation.json",
    "ablation.png",
    "motifs.json",
    "scaling.json",
    "scaling.png",
]

#: How a PNG begins, and what says within its first bytes that it is one of ours.
PNG, SIGNATURE = b"\x89PNG\r\n\x1a\n", b"morphogen"
#: In a folder for checkpoints that is not the run's own: whose it is.
OWNER: Final = ".run"
#: A folder in a run's own, or in one that machines share: checkpoints in the middle of candidates.
PARTIAL: Final = "partial"
#: All files that are written in a run's folder.
RUN_FILES: Final = (
    *LEDGER_FILES,
    *("experiment.yaml", "environment.json", "run.log", "events.csv", "report.html"),
    *("frontier.json", "lineage.json", "lineage.svg", "verify.json", "fidelity.json"),
    *("ablation.json", "ablation.png"),
)


def check_output(path: Path, kind: Kind, folder: Path, flag: str) -> None:
    """InputError, named by `flag`, unless a file of this kind may be put at `path`.

    Args:
        path: Where it is to go; in the run's `folder`, which may have to be made yet, only under a name of its own.
        kind: What it is, by its name in a run's folder.
        folder: The run that it tells of.
        flag: What messages call it by.
    """
    if not path.name or path.is_dir():
        raise InputError(f"{flag}: {path}: is a folder, expected a file to write to")
    place, own = path.parent.resolve(), folder.resolve()
    if not path.parent.is_dir() and not own.is_relative_to(place):
        raise InputError(f"{flag}: {path}: there is no folder {path.parent} to write to")
    in_run = place == own or (place / LEDGER).exists()
    below = place.is_relative_to(own) and place != own
    if below or (path.parent / OWNER).exists() or (path.parent.absolute().parent / LEDGER).exists():
        raise InputError(f"{flag}: {path}: lies among a run's own files; choose another place")
    if in_run and path.name in RUN_FILES and not (place == own and path.name == kind):
        raise InputError(f"{flag}: {path}: is a file of the run in {place}; choose another name")
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    if (form := stat.S_IFMT(found.st_mode)) != stat.S_IFREG:
        raise InputError(f"{flag}: {path}: is {KINDS.get(form, 'no file')}, expected a file to write to")
    if not _SIGNS[kind](read_ordinary(path)):
        raise InputError(f"{flag}: {path}: there is a file that is no {kind} of morphogen's; choose another name")


def check_own_report(report: Path, folder: Path) -> None:
    """InputError where ablations of another run than that in `folder` lie at `report`, or a picture that nothing tells
    of: who has not named the place means to overwrite none."""
    ways = "name another file with --out, or this one to overwrite it"
    if not report.exists():
        if (picture := report.with_suffix(".png")).exists():
            raise InputError(f"{picture}: is there without the report that would say of which run it is; {ways}")
        return
    told = parsed_json(read_ordinary(report))
    with Ledger.open(folder, readonly=True) as ledger:
        start = next(ledger.written(), None)
    own, whose = folder.resolve().name, told.get("folder") or told["run"]
    if not isinstance(start, Start) or (told["run"], told.get("folder") or own) != (start.run, own):
        raise InputError(f"{report}: is the report of another run, {whose}; {ways}")


def write_new(path: Path, data: bytes, *, force: bool = False) -> None:
    """Writes a file where there is none; with `force` over an ordinary one. InputError where it may not lie there."""
    if not path.name or path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file to write to")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent} to write to")
    if path.is_symlink() or path.exists():
        if not force:
            raise InputError(f"{path}: is there already; --force overwrites it")
        form = stat.S_IFMT(path.lstat().st_mode)
        if form != stat.S_IFREG:
            raise InputError(f"{path}: is {KINDS.get(form, 'no file')}, expected a file to write to")
    write_atomic(path, data)


def _document(*names: str) -> Callable[[bytes], bool]:
    def is_one(raw: bytes) -> bool:
        try:
            found = parsed_json(raw)
        except (ValueError, RecursionError):
            return False
        return isinstance(found, dict) and {"schema_version", "run", *names} <= found.keys()

    return is_one


#: Kind -> whether a file's bytes are of it.
_SIGNS: dict[Kind, Callable[[bytes], bool]] = {
    "lineage.json": _document("nodes"),
    "frontier.json": _document("candidates", "objectives"),
    "ablation.json": _document("ablations"),
    "ablation.png": lambda raw: raw.startswith(PNG) and SIGNATURE in raw[:400],
    "motifs.json": _document("motifs"),
    "scaling.json": _document("fits"),
    "scaling.png": lambda raw: raw.startswith(PNG) and SIGNATURE in raw[:400],
    "lineage.svg": lambda raw: b'class="subway"' in raw[:400],
    "lineage.dot": lambda raw: raw.startswith(b"digraph lineage {"),
    "lineage.mmd": lambda raw: raw.startswith(b"%% a morphogen lineage\n"),
    "lineage.png": lambda raw: raw.startswith(b"\x89PNG") and b"a morphogen lineage" in raw[:200],
    "report.html": lambda raw: raw.startswith(b"<!DOCTYPE html>") and b"morphogen</title>" in raw[:4000],
}
