"""The commands, one file a family; `--help` has them in the order of these imports. Loaded by `morphogen.cli.main`."""

from morphogen.cli.app import app

# isort: off
from morphogen.cli.commands import (  # noqa: F401
    run,
    train,
    generate,
    experiments,
    models,
    known,
    arriving,
    runs,
    outside,
    evidence,
    after,
)
# isort: on

__all__ = ["app"]
