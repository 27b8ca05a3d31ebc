"""Reading and writing of the run's JSON documents: what frontier.json and lineage.json have in common."""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import ValidationError

from morphogen.candidate import Record
from morphogen.errors import InputError
from morphogen.store.files import canonical_json, parsed_json, write_atomic
from morphogen.store.ordinary import read_ordinary

SCHEMA_VERSION = 1


class Document(Record):
    """A versioned JSON file about one run."""

    title: ClassVar[str]
    schema_version: Literal[1] = 1
    run: str

    def to_json(self) -> str:
        """The file's text: sorted keys, two spaces, a newline at the end. The same data gives the same bytes."""
        return canonical_json(self.model_dump(mode="json"), indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Writes the file whole or not at all. Raises RunError, the old file being intact."""
        write_atomic(path, self.to_json().encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file. Raises InputError: missing, not JSON (line, column), another version, a wrong field."""
        try:
            data = parsed_json(read_ordinary(path))
        except OSError as error:
            raise InputError(f"{path}: cannot read the {cls.title}: {error.strerror or error}") from error
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{error.lineno}:{error.colno} not a whole JSON file: {error.msg}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not a JSON file: byte {error.start} is not UTF-8") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested too deep
            raise InputError(f"{path}: cannot be read as a {cls.title}: {error}") from error
        if not isinstance(data, dict) or "schema_version" not in data:
            raise InputError(f"{path}: not a {cls.title}: schema_version is missing")
        if data["schema_version"] != SCHEMA_VERSION:
            found = data["schema_version"]
            raise InputError(f"{path}: schema_version {found!r}, this morphogen reads version {SCHEMA_VERSION}")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(step) for step in first["loc"])
            raise InputError(f"{path}: {place or cls.title}: {first['msg']}") from error

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of the file."""
        return cls.model_json_schema()
