"""The run's one truth: an append-only list of events in SQLite. Resuming is replaying them.

An event is on disk before `append` returns (WAL, synchronous FULL), whole or not at all. Each row carries a SHA-256
over its own text and the row before, so that a damaged, edited or missing row is noticed. One process writes; any
number may read meanwhile.
"""

import contextlib
import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from morphogen.candidate import Candidate, CandidateId, Record, Report, Whole
from morphogen.continued import Continues
from morphogen.errors import RunError
from morphogen.store.files import canonical_json, sync_folder
from morphogen.store.holding import hold
from morphogen.store.ordinary import check_own
from morphogen.store.places import TRAINING, moved_paths, with_donors
from morphogen.store.proposals import Proposed, Refused

FILE = "ledger.sqlite"
LOCK = "ledger.lock"
#: Beside it: the experiment as resolved.
RESOLVED = "experiment.yaml"
#: Reasons in stop events.
FINISHED, INTERRUPTED = "finished", "interrupted"
#: All that a ledger keeps in its folder.
FILES = (FILE, f"{FILE}-wal", f"{FILE}-shm", f"{FILE}-journal", LOCK)
#: The only thing in its database, as SQLite writes it down.
TABLE = (
    "CREATE TABLE events (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, payload TEXT NOT NULL, sha TEXT NOT NULL) STRICT"
)
SCHEMA_VERSION = 1
#: How long a writer waits for another program that holds the database.
BUSY_SECONDS = 30.0
APPLICATION_ID = 0x6D6F7270  # "morp", tells our files from other SQLite databases


class Start(Record):
    """The run begins: its name, seed and experiment as resolved, and the candidate that its weights come from."""

    kind: Literal["start"] = "start"
    run: str
    seed: int
    experiment: dict[str, Any]
    continues: Continues = None


class Told(Record):
    """Proposals from outside, for the places of the next generation; they wait until it is asked for."""

    kind: Literal["told"] = "told"
    proposed: tuple[Proposed, ...]


class Asked(Record):
    """Candidates the engine proposed for one generation. rejected: ids of those that rung 0 turned away.

    predicted: what a model predicted of each, by id, where there was one; screened: ids of those chosen by it.
    refused: answers from outside that made no candidate, each in the place of one."""

    kind: Literal["asked"] = "asked"
    generation: Whole
    candidates: tuple[Candidate, ...]
    rejected: tuple[str, ...] = ()
    predicted: dict[str, dict[str, float]] = {}
    screened: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()


class Reported(Record):
    """One candidate's measurement."""

    kind: Literal["report"] = "report"
    report: Report


class Screened(Record):
    """How well the predictions of a generation's candidates ranked what was then measured of them.

    correlation: Kendall's τ of the generation, by figure. together: the mean of the figures' τ over the pairs of the
    last generations; 0 without any. pairs: how many those are. on: whether the next generation is screened.
    """

    correlation: dict[str, float]
    together: float
    pairs: Whole
    on: bool

    @property
    def in_words(self) -> str:
        """How well predictions hold, and what follows."""
        if not self.pairs:
            return "nothing was predicted yet"
        each = "".join(f"{name} {tau:+.2f}, " for name, tau in self.correlation.items())
        held = f"{self.together:+.2f} over the {self.pairs} pairs of the last generations"
        return f"predictions rank with tau {each}{held}, screening is {'on' if self.on else 'OFF'}"


class Repeated(Record):
    """One measurement beside the search: a finalist's on another seed, or one of the root without edits that finalists
    are compared with."""

    kind: Literal["repeat"] = "repeat"
    candidate: Candidate
    report: Report


class Generation(Record):
    """A generation is closed. `reference` is the run's fixed reference point, per objective in its own units.
    screening: None without it."""

    kind: Literal["generation"] = "generation"
    generation: Whole
    survivors: tuple[CandidateId, ...]
    frontier: tuple[CandidateId, ...]
    hypervolume: float
    reference: dict[str, float]
    screening: Screened | None = None


class Retry(Record):
    """The run went back to this generation, to train these of its candidates again. What was recorded after the
    generation was asked for counts no more, but for what the others of it were told as first."""

    kind: Literal["retry"] = "retry"
    generation: int
    candidates: tuple[str, ...]


class Stop(Record):
    """The run ended, or was interrupted and can be resumed."""

    kind: Literal["stop"] = "stop"
    reason: str


Event = Annotated[Start | Told | Asked | Reported | Repeated | Generation | Retry | Stop, Field(discriminator="kind")]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


class Ledger:
    """The events of one run folder. Made by `Ledger.open`; a context manager."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: IO[str] | None) -> None:
        self.path = path
        self._connection = connection
        self._lock = lock
        self._seq = 0
        self._sha = ""

    @classmethod
    def open(cls, folder: Path, *, create: bool = False, go_on: bool = False, readonly: bool = False) -> Self:
        """Opens the ledger in `folder`.

        create: start a new one (the folder is made too); an existing one with events in it is refused, not touched,
        unless `go_on` says that it may be gone on with.
        readonly: may be open beside a writer. Raises RunError: missing, foreign, damaged, of another schema version,
        in use by another writer (names its process and host), not writable, or a link out of the folder.
        """
        path = folder / FILE
        if create:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RunError(f"{folder}: cannot make the run folder: {error.strerror or error}") from error
        elif not path.is_file():
            other = (
                f", but a training ({TRAINING}), which `morphogen status` shows"
                if (folder / TRAINING).is_file()
                else ""
            )
            raise RunError(f"{folder}: no run here ({FILE} is missing){other}")
        check_own(folder, FILES)
        with contextlib.ExitStack() as undo:
            lock = None if readonly else undo.enter_context(hold(folder, LOCK, "run"))
            with _reading(path):
                connection = undo.enter_context(contextlib.closing(_connect(path, readonly)))
                _prepare(path, connection, create)
                ledger = cls(path, connection, lock)
                if not readonly:
                    for seq, _, _, sha in ledger._rows():
                        ledger._seq, ledger._sha = seq, sha
            if create and ledger._seq and not go_on:
                raise RunError(f"{folder}: holds a run of {ledger._seq} events; resume it or choose another folder")
            undo.pop_all()
            return ledger

    def append(self, event: Event) -> int:
        """Puts `event` on disk, then returns its number (from 1). Raises RunError when it could not be written."""
        if self._lock is None:
            raise RunError(f"{self.path}: opened for reading only")
        seq = self._seq + 1
        # objectives and composite figures stand in the user's order, which tables show and the search sees
        ordered = isinstance(event, Start)
        payload = canonical_json(event.model_dump(mode="json", exclude={"kind"}), sort_keys=not ordered)
        sha = _digest(self._sha, event.kind, payload)
        try:
            self._connection.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (seq, event.kind, payload, sha))
        except sqlite3.Error as error:
            raise RunError(f"{self.path}: event {seq} ({event.kind}) could not be written: {error}") from error
        self._seq, self._sha = seq, sha
        return seq

    def events(self) -> Iterator[Event]:
        """Every event that counts, in order of writing: those that a retry took back are left out, and so is the retry.
        Raises RunError where the ledger is damaged."""
        counted: list[Event] = []
        for event in self.written():
            if isinstance(event, Retry):
                counted = _before_retry(counted, event)
            else:
                counted.append(event)
        yield from counted

    def written(self) -> Iterator[Event]:
        """Every event ever written, each checked; with models of others where they are now, in a run that was moved
        with them. Raises RunError where the ledger is damaged."""
        now = moved_paths(self.path.parent)
        for seq, kind, payload, _ in self._rows():
            try:
                told = from_json(payload)
                yield _EVENT.validate_python({"kind": kind, **(with_donors(told, now) if now else told)})
            except ValidationError as error:
                what = error.errors(include_url=False)[0]
                place = ".".join(str(step) for step in what["loc"])
                raise RunError(f"{self.path}: event {seq} ({kind}): {place}: {what['msg']}") from error
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise RunError(f"{self.path}: event {seq} ({kind}): cannot be read: {error}") from None

    def _rows(self) -> Iterator[tuple[int, str, str, str]]:
        """(seq, kind, payload as JSON text, sha) of every event, checked against the chain of hashes."""
        sha = ""
        with _reading(self.path):
            for count, (seq, kind, payload, found) in enumerate(
                self._connection.execute("SELECT seq, kind, payload, sha FROM events ORDER BY seq"), start=1
            ):
                sha = _digest(sha, kind, payload)
                if seq != count or sha != found:
                    raise RunError(f"{self.path}: damaged at event {count}: its text does not match its hash")
                yield seq, kind, payload, sha

    def check(self) -> None:
        """RunError unless the database file is sound as a whole; `events` checks what is in it."""
        with _reading(self.path):
            said = [row[0] for row in self._connection.execute("PRAGMA integrity_check")]
        if said != ["ok"]:
            raise RunError(f"{self.path}: damaged: {said[0]}")

    def close(self) -> None:
        """Closes the file and lets another writer in."""
        self._connection.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _before_retry(events: list[Event], retry: Retry) -> list[Event]:
    """The events that still count after a retry. Of rounds of training the first alone is kept: who went on to the next
    depended on all. What was told from outside waits again."""
    places = [k for k, event in enumerate(events) if isinstance(event, Asked) and event.generation == retry.generation]
    if not places:
        raise RunError(f"a retry of generation {retry.generation}, which was never asked for")
    (place,) = places
    asked = events[place]
    assert isinstance(asked, Asked)
    kept = {candidate.id for candidate in asked.candidates} - set(retry.candidates)
    first: dict[str, Event] = {}
    for event in events[place + 1 :]:
        if isinstance(event, Reported) and event.report.id in kept:
            first.setdefault(event.report.id, event)
    told = [event for event in events[place + 1 :] if isinstance(event, Told)]
    return [*events[: place + 1], *told, *first.values()]


def last_stop(events: Sequence[Event]) -> str | None:
    """Why the last process that ran the run ended, where it could say so; what was told since says nothing of it."""
    last = next((event for event in reversed(events) if not isinstance(event, Told)), None)
    return last.reason if isinstance(last, Stop) else None


def _digest(before: str, kind: str, payload: str) -> str:
    return hashlib.sha256(f"{before}\n{kind}\n{payload}".encode()).hexdigest()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise RunError(f"{path}: cannot be used as a run's ledger: {error}") from error


def _connect(path: Path, readonly: bool) -> sqlite3.Connection:
    if not readonly:
        return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    # A finished run in a folder that cannot be written has no room for WAL's side files, and needs none.
    locked, wal = not os.access(path.parent, os.W_OK), path.with_name(f"{FILE}-wal")
    address = f"file:{quote(str(path.resolve()))}?mode=ro{'&immutable=1' if locked and not wal.exists() else ''}"
    connection = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    if locked and wal.exists():
        try:
            connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.OperationalError:  # of a run that was killed, and nobody is at it
            connection.close()
            return _copied(path, wal)
    return connection


def _copied(path: Path, wal: Path) -> sqlite3.Connection:
    """The database in memory, with what only its WAL holds, which cannot be read where it lies."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    with tempfile.TemporaryDirectory(prefix="morphogen-ledger-") as folder:
        for file in (path, wal):
            shutil.copyfile(file, Path(folder) / file.name)
        with contextlib.closing(sqlite3.connect(Path(folder) / path.name)) as copy:
            copy.backup(connection)
    return connection


def _prepare(path: Path, connection: sqlite3.Connection, create: bool) -> None:
    """Checks that the database is ours and of our version; with `create`, makes it so where it is empty."""
    if create and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(
            "BEGIN IMMEDIATE;"
            f"{TABLE};"
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )
        sync_folder(path.parent)
    connection.execute("PRAGMA synchronous = FULL")
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise RunError(f"{path}: is a database, but not a morphogen ledger")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise RunError(f"{path}: ledger schema version {version}, this morphogen reads version {SCHEMA_VERSION}")
    # a view in the place of the table could compute forever, a trigger could change what is written
    if [row[0] for row in connection.execute("SELECT sql FROM sqlite_master")] != [TABLE]:
        raise RunError(f"{path}: holds something else than a ledger's events; it was not written by morphogen")
