"""A folder at a path or an fsspec URL, which other machines may see too: checkpoints travel through it.

`execution.ray` leaves those there that candidates inherit, `training.midway` those in the middle of candidates.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from morphogen.errors import InputError, RunError
from morphogen.plain import moments_path
from morphogen.store.ledger import FILE as LEDGER
from morphogen.store.outputs import OWNER


class Exchange:
    """Its files, by their names below it. RunError where it cannot be used."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._files, root = fsspec.core.url_to_fs(url) if "://" in url else (fsspec.filesystem("file"), url)
        except (ImportError, ValueError) as error:
            raise InputError(f"--shared: got {url!r}: {error}") from None
        local = isinstance(self._files, LocalFileSystem)
        self._root: str = os.path.expanduser(root) if local else root
        #: the folder, where this machine sees it as one
        self.folder = Path(self._root) if local else None

    # -- files

    def names(self) -> list[str]:
        """Of all files there."""
        with self._told("the folder"):
            self._files.invalidate_cache()  # others write there too
            try:
                found: list[str] = self._files.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
        return sorted(path.rpartition("/")[2] for path in found)

    def read(self, name: str) -> bytes:
        """What a file holds. FileNotFoundError where there is none."""
        with self._told(name, may_lack=True):
            found: bytes = self._files.cat_file(self._at(name))
        return found

    def fetch(self, name: str, path: Path) -> None:
        """Copies a file from there. FileNotFoundError where there is none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._told(name, may_lack=True):
            self._files.get_file(self._at(name), str(path))

    def send(self, path: Path, name: str) -> None:
        """Copies a file there."""
        with self._told(name):
            self._files.makedirs(os.path.dirname(self._at(name)), exist_ok=True)
            self._files.put_file(str(path), self._at(name))

    def remove(self, name: str) -> None:
        """Removes a file, unless another has by now."""
        with self._told(name), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._at(name))

    def remove_all(self) -> None:
        """Removes the folder with all that is in it. Call only when no candidate is in training."""
        with self._told("the folder"), contextlib.suppress(FileNotFoundError):
            self._files.invalidate_cache()
            self._files.rm(self._root, recursive=True)

    # -- checkpoints of one run, named as below its folder

    def claim(self, run_dir: str) -> None:
        """Leaves a note that the place is for this run. RunError where it is another's, or a run's own folder: what
        its next generation does not need is removed there."""
        mine, note = str(Path(run_dir).resolve()), self._at(OWNER)
        with self._told(OWNER):
            found = self._files.cat_file(note).decode(errors="replace") if self._files.exists(note) else None
            foreign = self._files.exists(self._at(LEDGER)) or self._files.glob(self._at("checkpoints/*.safetensors"))
            if found is None and not foreign:
                self._files.makedirs(self._root, exist_ok=True)
                self._files.pipe_file(note, mine.encode())
            elif found != mine:
                held = f"the checkpoints of {found}" if found else "something else"
                raise RunError(f"{self.url}: holds {held}; give each run a --shared of its own")

    def leave(self, checkpoint: str, folder: Path) -> None:
        """Puts a checkpoint of `folder` there, unless it is there whole; and the moments beside it, where there are."""
        moments = str(moments_path(Path(checkpoint)))
        for name in (moments, checkpoint) if (folder / moments).is_file() else (checkpoint,):
            there, here = self._at(name), folder / name
            with self._told(name):
                whole = self._files.exists(there) and self._files.size(there) == here.stat().st_size
            if not whole:
                self.send(here, name)

    def collect(self, checkpoint: str, folder: Path) -> None:
        """Puts a checkpoint from there into `folder`, whole or not at all; what is missing there stays missing."""
        for name in (str(moments_path(Path(checkpoint))), checkpoint):
            target = folder / name
            temporary = target.with_name(f".{target.name}.fetched")
            with self._told(name):
                if self._files.exists(self._at(name)):
                    self.fetch(name, temporary)
                    os.replace(temporary, target)

    def keep_only(self, checkpoints: set[str]) -> None:
        """Removes the checkpoints that nobody will collect any more."""
        kept = {name for one in checkpoints for name in (one, str(moments_path(Path(one))))}
        with self._told("checkpoints"):
            found: list[str] = self._files.glob(self._at("checkpoints/*.safetensors"))
        for path in found:
            if (name := f"checkpoints/{os.path.basename(path)}") not in kept:
                self.remove(name)

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def _told(self, name: str, *, may_lack: bool = False) -> Iterator[None]:
        """may_lack: whether that there is no such file is left to the caller."""
        try:
            yield
        except OSError as error:
            if may_lack and isinstance(error, FileNotFoundError):
                raise
            raise RunError(f"{self.url}: {name} cannot be exchanged: {error.strerror or error}") from None
