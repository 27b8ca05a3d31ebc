"""Who has a folder open for writing: a lock that the system frees when its process ends, however it ends."""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO, NamedTuple, Self

from morphogen.errors import RunError
from morphogen.store.files import canonical_json
from morphogen.store.ordinary import check_own, open_own


class Holder(NamedTuple):
    """A process, and the machine that it runs on; neither is known where the lock does not say."""

    pid: int | None = None
    host: str | None = None

    def __str__(self) -> str:
        """As messages have it."""
        return "unknown process" if self.pid is None else f"process {self.pid} on {self.host}"

    @classmethod
    def read(cls, text: str) -> Self:
        """What a lock holds."""
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            return cls()
        if not (isinstance(told, dict) and type(told.get("pid")) is int and isinstance(told.get("host"), str)):
            return cls()
        return cls(told["pid"], told["host"])

    def text(self) -> str:
        """What its lock holds."""
        return canonical_json(self._asdict())


def holder_of(folder: Path, name: str) -> Holder | None:
    """Who has the lock of that name in `folder`; None when nobody has."""
    try:
        check_own(folder, [name])
        with (folder / name).open(encoding="utf-8", errors="replace") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return Holder.read(lock.read())
    except OSError:
        pass  # no lock was ever taken there
    return None


def hold(folder: Path, name: str, what: str) -> IO[str]:
    """The writer's lock. RunError where another has it."""
    path = folder / name
    try:
        lock = open_own(path, "a+")
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(Holder(os.getpid(), socket.gethostname()).text())
        lock.flush()
    except OSError as error:
        lock.seek(0)
        holder = Holder.read(lock.read())
        lock.close()
        if isinstance(error, BlockingIOError):
            raise RunError(f"{folder}: another writer has this {what} open ({holder})") from error
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
    return lock
