"""What becomes of a run's files, and what of a run is done again."""

from dataclasses import dataclass
from pathlib import Path

from morphogen.arguments import whole
from morphogen.paths import user_path


@dataclass(frozen=True)
class Mend:
    """What to do again when a run is resumed.

    Attributes:
        failed: Train the failed candidates of its end again, and go on from them (see `search.failures.retry`).
        lost: Train checkpoints again that are needed, and missing or damaged.
    """

    failed: bool = False
    lost: bool = False


@dataclass(frozen=True)
class Keep:
    """What becomes of a run's files.

    Attributes:
        checkpoint_dir: Where checkpoints lie, instead of the run's folder.
        lineage_out: Where to put a copy of `lineage.json`.
        frontier_out: Where to put a copy of `frontier.json`.
        cleanup: Drop, after every generation, checkpoints that nobody needs any more.
        prune: Drop, at the end, all checkpoints but the frontier's.
        disk_budget: Bytes that checkpoints may take when a generation is closed; beyond it those go that nobody needs,
            the oldest first.
    """

    checkpoint_dir: Path | None = None
    lineage_out: Path | None = None
    frontier_out: Path | None = None
    cleanup: bool = False
    prune: bool = False
    disk_budget: int | None = None

    def __post_init__(self) -> None:
        for name in ("checkpoint_dir", "lineage_out", "frontier_out"):
            if (path := vars(self)[name]) is not None:
                object.__setattr__(self, name, user_path(path, name))  # also of text, with `~`
        if self.disk_budget is not None:
            whole("disk_budget", self.disk_budget)


#: Every file is kept; nothing is done again.
KEEP_ALL, MEND_NOTHING = Keep(), Mend()
