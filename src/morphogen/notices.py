"""What a run tells those who watch it (`cli.console` shows it), and how each of it reads in `run.log`."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from morphogen.against_root import AgainstRoot
from morphogen.candidate import Candidate, Report, Status
from morphogen.escape import visible
from morphogen.store.ledger import Generation

if TYPE_CHECKING:
    from morphogen.experiment import Experiment
    from morphogen.training.trace import StepInfo


@dataclass(frozen=True)
class Began:
    """The run starts, or goes on after `done` candidates, those turned away untrained left out.

    begun_on: the device that it was started on.
    """

    run: str
    folder: Path
    experiment: "Experiment"
    done: int
    device: str
    begun_on: str


@dataclass(frozen=True)
class Warned:
    """Something that the user should know before it costs them a night."""

    text: str


@dataclass(frozen=True)
class Training:
    """One training step of one candidate; `position` of `total` in its generation, from 1."""

    candidate: Candidate
    position: int
    total: int
    step: "StepInfo"


@dataclass(frozen=True)
class Measured:
    """One candidate is finished with a round of training. again: it was with an earlier one, and has been told of."""

    candidate: Candidate
    position: int
    total: int
    report: Report
    again: bool


@dataclass(frozen=True)
class Again:
    """A finalist was trained once more on another seed, or the root that it is compared with; `position` of `total`."""

    candidate: Candidate
    position: int
    total: int
    report: Report


@dataclass(frozen=True)
class Closed:
    """A generation is closed. All candidates and reports so far are given, to be read only."""

    generation: Generation
    candidates: dict[str, Candidate]
    reports: dict[str, Report]


@dataclass(frozen=True)
class Ended:
    """The run is over: all its generations are closed. against_root: what finalists differ in from the root that was
    trained as long, where that was measured, by id."""

    folder: Path
    closed: tuple[Generation, ...]
    candidates: dict[str, Candidate]
    reports: dict[str, Report]
    against_root: AgainstRoot


Notice = Began | Warned | Training | Measured | Again | Closed | Ended
Observer = Callable[[Notice], None]


def nobody(notice: Notice) -> None:
    """The observer that looks away."""


def switched_off(closed: Sequence[Generation]) -> str:
    """That the last closed generation switched screening off, and why; empty where it did not."""
    states = [generation.screening for generation in closed[-2:]]
    now, before = states[-1], states[0] if len(states) > 1 else None
    if now is None or now.on or (before is not None and not before.on):
        return ""
    return (
        f"screening is switched off: Kendall's rank correlation of predictions with what was measured is "
        f"{now.together:+.2f} over the {now.pairs} pairs of the last generations; children are trained as they are "
        "drawn until it holds again"
    )


def log_line(notice: Notice) -> str:
    """What run.log says of a notice, in one line; empty for a single training step."""
    return visible(_told(notice))


def _told(notice: Notice) -> str:
    match notice:
        case Began():
            after = f", after {notice.done} candidates" if notice.done else ""
            moved = f", on {notice.device}, but it was begun on {notice.begun_on}: numbers may differ"
            return f"run {notice.run} begins{after}{moved if notice.device != notice.begun_on else ''}"
        case Warned(text):
            return f"warning: {text}"
        case Measured(candidate, position, total, report):
            place = f"generation {candidate.generation} [{position}/{total}]"
            return f"{place} {candidate.id} {report.status}: {_found(report)}"
        case Again(candidate, position, total, report):
            return f"again [{position}/{total}] {candidate.id} {report.status}: {_found(report)}"
        case Closed(generation):
            volume = f"hypervolume {generation.hypervolume:.6g}"
            left = f"{len(generation.frontier)} on the frontier, {volume}"
            judged = f"; {generation.screening.in_words}" if generation.screening else ""
            return f"generation {generation.generation} closed: {_nothing_trained(notice)}{left}{judged}"
        case Ended():
            return f"finished with {len(notice.reports)} candidates"
        case Training():
            return ""


def _found(report: Report) -> str:
    """Why a candidate was not measured, or the figures most looked for."""
    names = (name for name in ("bpb", "ppl") if name in report.metrics)
    return report.reason or ", ".join(f"{name} {report.metrics[name]:.4g}" for name in names)


def _nothing_trained(closed: Closed) -> str:
    """What became of a generation of which no candidate was trained; empty for any other."""
    born = [id for id, candidate in closed.candidates.items() if candidate.generation == closed.generation.generation]
    ends = Counter(str(closed.reports[id].status) for id in born)
    if ends[Status.TRAINED] or ends[Status.GATED]:
        return ""
    counts = ", ".join(f"{count} {end}" for end, count in ends.items())
    return f"NONE of its candidates was trained ({counts or 'there was none'}), "
