"""A store of objects in memory that behaves as S3 does through fsspec: keys without folders, listings that are kept
until they are asked for anew, objects that appear whole."""

from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractFileSystem


class Bucket(AbstractFileSystem):  # type: ignore[misc]  # fsspec tells no types
    """What `s3://` leads to in tests."""

    protocol = "s3"
    objects: ClassVar[dict[str, bytes]] = {}
    listings: ClassVar[dict[str, list[str]]] = {}

    @classmethod
    def put_up(cls) -> None:
        """Empty, in the place of whatever `s3://` leads to."""
        cls.objects.clear()
        cls.listings.clear()
        fsspec.register_implementation("s3", cls, clobber=True)

    def invalidate_cache(self, path: str | None = None) -> None:
        self.listings.clear()

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """There are none."""

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        root = self._strip_protocol(path)
        if root not in self.listings:
            self.listings[root] = [key for key in sorted(self.objects) if key.startswith(f"{root}/")]
        if not self.listings[root]:
            raise FileNotFoundError(path)
        assert not detail
        return list(self.listings[root])

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self.objects[self._strip_protocol(rpath)] = Path(lpath).read_bytes()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        if self._strip_protocol(path) not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[self._strip_protocol(path)]

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        Path(lpath).write_bytes(self.cat_file(rpath))

    def rm_file(self, path: str) -> None:
        self.cat_file(path)
        del self.objects[self._strip_protocol(path)]

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        for key in self.ls(path, detail=False) if recursive else [path]:
            self.rm_file(key)
