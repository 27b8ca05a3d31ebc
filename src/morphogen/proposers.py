"""Programs outside that propose candidates: what they are told of a run, and how what they answer is taken.

Called by `session` for `evolution.proposer`, by `morphogen ask` and `tell`. `search.outside` makes candidates of it.
"""

import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from morphogen.blueprint.record import recorded
from morphogen.errors import InputError, RunError
from morphogen.experiment import Proposer
from morphogen.parts.contract.operator import find_operator
from morphogen.search.engine import Engine
from morphogen.store.files import parsed_json
from morphogen.store.ledger import Asked, Event, Ledger, Start, Told
from morphogen.store.proposals import Answer, KnownOperator, Parent, Past, Proposal, Proposed, Refused, State, too_deep

#: The most that an answer may be, in bytes.
MOST_BYTES = 2**24
#: Of what a program said on its standard error, a reason shows so many characters, the last.
SHOWN = 300
#: How often it is looked whether it is through, while it says nothing.
LOOK_SECONDS = 0.05
_CHUNK = 2**16


# --------------------------------------------------------------------------------------------------------- asking


def state(run: str, engine: Engine, refused: Sequence[Refused], generations: int, seats: int) -> State:
    """What a program is told: the whole run as the search has it, and how many places it may fill."""
    outside, evolution = engine.outside, engine.evolution
    policy = outside.space.policy
    operators = ((find_operator(name), weight) for name, weight in sorted(policy.weights.items()))
    return State(
        run=run,
        generation=engine.generation + 1,
        generations=generations,
        seats=seats,
        objectives=dict(evolution.objectives),
        constraints=dict(evolution.constraints),
        operators=tuple(
            KnownOperator(name=op.name, summary=op.summary, level=op.level, preserves=op.declared, weight=weight)
            for op, weight in operators
        ),
        parents=tuple(
            Parent(
                id=id,
                survivor=id in engine.survivors,
                frontier=id in engine.frontier_ids,
                blueprint=design.blueprint.to_json(),
                operators=outside.applicable(id),
            )
            for id, design in outside.parents.items()
        ),
        frontier=engine.frontier_ids,
        history=tuple(Past.of(candidate, engine.reports.get(candidate.id)) for candidate in engine.candidates.values()),
        refused=tuple(refused),
        waiting=engine.told,
    )


def open_seats(engine: Engine) -> int:
    """Places that may be told of: those of the next generation that are not taken; none while one is open."""
    return 0 if engine.open or not engine.generations else max(0, engine.evolution.population - len(engine.told))


def refusals(events: Sequence[Event]) -> list[Refused]:
    """The answers of a run so far that made no candidate."""
    return [refused for event in events if isinstance(event, Asked) for refused in event.refused]


def replayed(ledger: Ledger, folder: Path) -> tuple[Start, list[Event], Engine]:
    """How a run began, all its events, and its search. RunError where nothing was begun."""
    events = list(ledger.events())
    if not events or not isinstance(events[0], Start):
        raise RunError(f"{folder}: the run had only just begun, there is nothing to ask for yet")
    return events[0], events, Engine.replay(events, run_dir=str(folder), device="cpu")


# -------------------------------------------------------------------------------------------------------- telling


def tell(folder: Path, raw: bytes, place: str, name: str) -> tuple[Proposed, ...]:
    """Puts proposals into a run's ledger, for the next generation: all of them, or none.

    Args:
        folder: The run's, which nobody else may be writing to.
        raw: The answer, as JSON.
        place: Where that was read, for messages.
        name: What the proposer is called unless the answer says it.

    Raises:
        InputError: It is no answer, has more proposals than there are seats, or one that makes no candidate: a line
            each.
        RunError: The folder has no run, another process writes to it, or a generation is open.
    """
    recorded(Answer, {"proposals": (), "proposer": name}, "--proposer")
    with Ledger.open(folder) as ledger:
        _, _, engine = replayed(ledger, folder)
        if engine.open or not engine.generations:
            raise RunError(
                f"{folder}: generation {engine.generation} is open, {len(engine.pending())} of its candidates are not "
                "trained; the run's command with --resume closes it"
            )
        parsed = _parsed(raw, place)
        taken = _all_checked(parsed.items, place)
        proposed = tuple(Proposed(proposer=parsed.name or name, proposal=proposal) for proposal in taken)
        if (seats := open_seats(engine)) < len(proposed):
            raise InputError(f"{place}: got {len(proposed)} proposals, expected at most {seats}, one for an open seat")
        if wrong := _misplaced(proposed, engine.placed(proposed)[1]):
            raise InputError("\n".join(f"{place}: proposals[{i}]: {reason}" for i, reason in wrong))
        if proposed:
            ledger.append(Told(proposed=proposed))
    return proposed


def _all_checked(items: Sequence[object], place: str) -> list[Proposal]:
    """InputError with a line for each that is no proposal."""
    taken, wrong = [], []
    for i, item in enumerate(items):
        try:
            taken.append(_checked(item, f"{place}: proposals[{i}]"))
        except InputError as error:
            wrong.append(str(error))
    if wrong:
        raise InputError("\n".join(wrong))
    return taken


def _misplaced(proposed: Sequence[Proposed], refused: Sequence[Refused]) -> list[tuple[int, str]]:
    """Which of the proposals were refused, and why. Of equal ones the first is taken."""
    left = {i: one.proposal.model_dump(mode="json") for i, one in enumerate(proposed)}
    found = []
    for one in reversed(refused):
        i = next((i for i in reversed(left) if left[i] == one.proposal), None)
        if i is not None:
            del left[i]
            found.append((i, one.reason))
    return found[::-1]


class _Parsed(NamedTuple):
    """An answer taken apart as far as it is well formed."""

    items: list[object]
    name: str | None


def _parsed(raw: bytes, place: str) -> _Parsed:
    """InputError for what is no answer; its proposals may still be anything."""
    try:
        data = parsed_json(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON: {error}") from None
    items = data.get("proposals") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(items, list):
        raise InputError(f"{place}: expected an object with a list of 'proposals', see morphogen schema answer")
    head = recorded(Answer, {**data, "proposals": ()}, place)
    return _Parsed(items, head.proposer)


def _checked(item: object, place: str) -> Proposal:
    """InputError for what is no proposal."""
    if too_deep(item):
        raise InputError(f"{place}: nested too deep")
    if not isinstance(item, dict):
        raise InputError(f"{place}: got {item!r:.80}, expected an object")
    return recorded(Proposal, item, place)


# ------------------------------------------------------------------------------------------------- asking a command


def consult(run: str, engine: Engine, refused: Sequence[Refused]) -> list[Proposed | Refused]:
    """What the proposer of the experiment answers for its share of the next generation, where it has one."""
    evolution = engine.evolution
    if evolution.proposer is None:
        return []
    seats = min(evolution.proposer.places(evolution.population), open_seats(engine))
    return hear(evolution.proposer, state(run, engine, refused, evolution.generations, seats)) if seats else []


def hear(proposer: Proposer, told: State) -> list[Proposed | Refused]:
    """Asks the command of `evolution.proposer`, and takes as many proposals as there are seats.

    Whatever it does costs places and nothing else: one for an answer that is none, one for each proposal that is none.
    """
    try:
        parsed = _parsed(_output(proposer, told.to_json().encode()), "the answer")
    except InputError as error:
        return [Refused.of(proposer.name, error)]
    name = parsed.name or proposer.name
    answers: list[Proposed | Refused] = []
    for i, item in enumerate(parsed.items[: told.seats]):
        try:
            answers.append(Proposed(proposer=name, proposal=_checked(item, f"proposals[{i}]")))
        except InputError as error:
            answers.append(Refused.of(name, error, item if isinstance(item, dict) else None))
    return answers


def _output(proposer: Proposer, question: bytes) -> bytes:
    """What the command says on its standard output when it reads the question on its standard input. InputError where
    it does not end well in time, or says too much."""
    with tempfile.TemporaryFile() as asked:
        asked.write(question)
        asked.seek(0)
        try:
            with _process(proposer, asked) as process:
                ends = time.monotonic() + proposer.timeout_seconds
                said, complaint = _listen(process, ends)
                code = process.wait(max(0.0, ends - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            raise InputError(f"no answer within {proposer.timeout_seconds:g} seconds") from None
    if code:
        last = " ".join(complaint.decode(errors="replace").split())[-SHOWN:]
        raise InputError(f"exit code {code}{f': {last}' if last else ''}")
    return said


@contextmanager
def _process(proposer: Proposer, asked: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The command at work; at the end it is ended, with all that it started, if it is not through."""
    try:
        process = subprocess.Popen(
            proposer.command, stdin=asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise InputError(f"{proposer.command[0]}: cannot be run: {error.strerror or error}") from None
    try:
        yield process
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _listen(process: subprocess.Popen[bytes], ends: float) -> tuple[bytes, bytes]:
    """Its standard output, and the last of its standard error, until they close or it is through. TimeoutError where
    that is not by `ends`, InputError where it is too much."""
    assert process.stdout is not None
    assert process.stderr is not None
    said, complaint = bytearray(), b""
    with selectors.DefaultSelector() as selector:
        for pipe in (process.stdout, process.stderr):
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            through, left = process.poll() is not None, ends - time.monotonic()
            ready = selector.select(0.0 if through else min(left, LOOK_SECONDS)) if left > 0.0 else []
            if not ready and through:
                break  # all is read; what it has left running may hold its output open
            if not ready and time.monotonic() >= ends:
                raise TimeoutError
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stderr:
                    complaint = (complaint + chunk)[-4 * SHOWN :]
                else:
                    said += chunk
                    if len(said) > MOST_BYTES:
                        raise InputError(f"the answer is longer than {MOST_BYTES:,} bytes")
    return bytes(said), complaint
