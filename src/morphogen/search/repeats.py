"""Finalists measured again on other seeds, each beside the root trained as long: the jobs for it, which `session`
carries out once a run's generations are closed.

A *repeat* trains a finalist once more from where its training began, on other batches and with other dropout. Its
*control* is the root without edits, trained on as many tokens in as many parts as the finalist's weights have behind
them (the longer way, where parents were crossed), the last part on the batches of that repeat. What is left between the
two is what the edits did. Where selection reads twins, both have one, from the same fresh weights on those batches.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator

from morphogen.candidate import Candidate, Job, Stage, Status
from morphogen.search.engine import Engine
from morphogen.search.rungs import rounds

#: Controls are numbered from here on, far above all candidates: from the number follow their seeds.
FIRST_CONTROL = 1_000_000_000
#: Between the id of a finalist, or of its control, and the number of the repeat.
MARK = "~"
#: Rung 1 has gates behind it, which have had their say.
AFTER_GATES = 2


def due(engine: Engine) -> list[Job]:
    """The jobs to carry out now; empty before the run's end, and when all is measured. Ask again when they are done:
    controls are trained part after part. What has failed is not tried again."""
    if not engine.done or not engine.evolution.repeat:
        return []
    jobs = (job for id in finalists(engine) for job in _due_for(engine, id))
    return list({job.candidate.id: job for job in jobs if job.candidate.id not in engine.again}.values())


def finalists(engine: Engine) -> list[str]:
    """Those on the frontier that an edit tells from the root; of the others the root is its own control."""
    return [id for id in engine.frontier_ids if any(engine.candidates[one].edits for one in (id, *_line(engine, id)))]


def bases(engine: Engine) -> set[str]:
    """Whose checkpoints repeats begin with: what finalists inherited from, the root, what goes on from it without
    edits, and controls."""
    if not engine.evolution.repeat:
        return set()
    parents = {parent for id in finalists(engine) for parent in engine.candidates[id].parents}
    return parents | set(_unedited(engine).values()) | set(engine.again)


def pairs(engine: Engine, id: str, count: int) -> list[tuple[str, str]]:
    """Of the first `count` repeats of a finalist its own id and its control's."""
    control = _control_name((*_parts(engine, _line(engine, id)), _whole(engine, id, of_root=True).budget_tokens))
    return [(f"{id}{MARK}{n}", f"{control}{MARK}{n}") for n in range(1, count + 1)]


def again(engine: Engine, id: str) -> Job:
    """The job that gave a control its checkpoint."""
    control, report = engine.known(id)
    return engine.job_of(control, (Stage(rung=AFTER_GATES, budget_tokens=report.tokens.own),))


def _due_for(engine: Engine, id: str) -> Iterator[Job]:
    """The next part of a finalist's control where one is missing, else all repeats of both."""
    line = _line(engine, id)
    unedited = _unedited(engine)
    parent = tuple(line[:1])
    for end in range(2, len(line) + 1):
        parts = _parts(engine, line[:end])
        known = unedited.get(parts)
        name = known or _control_name(parts)
        if known is None and name not in engine.again:
            yield _control(engine, name, len(parts) - 1, parent, Stage(rung=AFTER_GATES, budget_tokens=parts[-1]))
            return
        if known is None and engine.again[name].report.status is not Status.TRAINED:
            return  # as much as could be done
        parent = (name,)
    own, of_root = _whole(engine, id), _whole(engine, id, of_root=True)
    for number, (one, other) in enumerate(pairs(engine, id, engine.evolution.repeat), start=1):
        twins = engine.evolution.twin_share > 0.0
        yield engine.job_of(engine.candidates[id].replace(id=one), (own,), repeat=number).replace(with_twin=twins)
        yield _control(engine, other, len(line), parent, of_root, number).replace(with_twin=twins)


def _control(engine: Engine, name: str, number: int, parents: Iterable[str], stage: Stage, repeat: int = 0) -> Job:
    root = next(candidate for candidate in engine.candidates.values() if not candidate.parents)
    candidate = Candidate(
        id=name,
        index=FIRST_CONTROL + number,
        generation=max(1, number),  # it trains as descendants of the root do
        blueprint=root.blueprint,
        parents=tuple(parents),
    )
    return engine.job_of(candidate, (stage,), repeat=repeat)


def _whole(engine: Engine, id: str, of_root: bool = False) -> Stage:
    """All that a candidate may train on, at one go. of_root: what the root may in its place, which is something else
    under `budget: flops`."""
    last = engine.reports[id].rung
    stages = [stage for planned in rounds(engine.evolution) for stage in planned if stage.rung <= last]
    scaled = stages if of_root else engine.scaled(engine.candidates[id], tuple(stages))
    return Stage(rung=max(AFTER_GATES, last), budget_tokens=sum(stage.budget_tokens for stage in scaled))


def _line(engine: Engine, id: str) -> list[str]:
    """The ancestors whose trainings the candidate's weights have behind them one after the other, oldest first: of two
    parents the one that was trained longer. Empty where nothing is inherited."""
    if engine.evolution.weight_inheritance != "parent":
        return []
    tokens: dict[str, int] = {}
    before: dict[str, str] = {}
    for one, candidate in engine.candidates.items():  # parents before their children
        if candidate.parents:
            before[one] = max(candidate.parents, key=lambda parent: tokens[parent])
        own = engine.reports[one].tokens.own if one in engine.reports else 0
        tokens[one] = own + (tokens[before[one]] if one in before else 0)
    line = []
    while id in before:
        id = before[id]
        line.append(id)
    return line[::-1]


def _parts(engine: Engine, ids: Iterable[str]) -> tuple[int, ...]:
    """The tokens that each was trained on; under `budget: flops` those that cost the root as much."""
    if engine.evolution.budget == "tokens":
        return tuple(engine.reports[id].tokens.own for id in ids)
    per_step = engine.experiment.tokens_per_step
    return tuple(_whole(engine, id, of_root=True).budget_tokens // per_step * per_step for id in ids)


def _control_name(parts: tuple[int, ...]) -> str:
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()
    return f"control-{len(parts) - 1}-{digest}"


def _unedited(engine: Engine) -> dict[tuple[int, ...], str]:
    """The root, and those that went on from it without an edit: the tokens of each part -> id."""
    parts: dict[str, tuple[int, ...]] = {}
    for id, candidate in engine.candidates.items():
        report = engine.reports.get(id)
        if candidate.edits or report is None or report.checkpoint is None:
            continue
        if not candidate.parents:
            parts[id] = (report.tokens.own,)
        elif len(candidate.parents) == 1 and candidate.parents[0] in parts:
            parts[id] = (*parts[candidate.parents[0]], report.tokens.own)
    return {tokens: id for id, tokens in reversed(parts.items())}
