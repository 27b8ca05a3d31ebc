"""Made-up runs for the report tests: a pure function of a seed."""

import random

from morphogen.candidate import Candidate, Change, Edit, Report, Status, Tokens
from morphogen.report.shown import RunShown

OPERATORS = (("widen_ffn", True), ("add_query_heads", True), ("set_sparsity", False), ("swap_activation", False))


def make_run(generations, per_generation, keep, seed=0):
    """(candidates, reports, finalists) of a search with crossovers, failures and steady improvement."""
    rng = random.Random(seed)
    root = Candidate(id="seed-0-9c1e", index=0, generation=0, blueprint={})
    candidates, alive = {root.id: root}, [root.id]
    reports = {root.id: made_report(root.id, Status.TRAINED, 3.0, 1.2e6)}
    for generation in range(1, generations + 1):
        children = []
        for _ in range(per_generation):
            crossed = rng.random() < 0.3 and len(alive) > 1
            parents = rng.sample(alive, 2) if crossed else [rng.choice(alive)]
            edits = [made_edit("xover", False)] if crossed else []
            edits += [made_edit(*rng.choice(OPERATORS)) for _ in range(rng.choice((0, 1, 2)))]
            index = len(candidates)
            id = f"{'xover' if crossed else 'edit'}-{index}-{rng.randrange(65536):04x}"
            candidates[id] = Candidate(
                id=id, index=index, generation=generation, blueprint={}, parents=tuple(parents), edits=tuple(edits)
            )
            status = rng.choices([Status.TRAINED, Status.GATED, Status.FAILED, Status.REJECTED], [8, 1, 1, 1])[0]
            bpb = reports[parents[0]].metrics["bpb"] * rng.uniform(0.9, 1.02)
            reports[id] = made_report(id, status, bpb, rng.uniform(1e6, 2e6))
            if status is Status.TRAINED:
                children.append(id)
        alive = sorted(alive + children, key=lambda id: (reports[id].metrics["bpb"], id))[:keep]
    return candidates, reports, alive


def made_edit(operator, preserves):
    change = Change(path="blocks.b0.ffn.hidden", before=64, after={"b": [1, 2], "a": "<&>"})
    return Edit(operator=operator, target="b0", preserves=preserves, changes=(change,))


def made_report(id, status, bpb, flops):
    reason = "" if status is Status.TRAINED else 'ppl 900 > 500 & "gate" <x>'
    tokens = Tokens(own=100_000, lineage=300_000, unique=250_000)
    costs = {"flops_per_token": flops, "params": 3e5}
    return Report(id=id, status=status, reason=reason, metrics={"bpb": bpb}, costs=costs, tokens=tokens, flops=1e12)


def shown(made, objectives, *, run="run", **more):
    """A made-up run as a page takes it."""
    candidates, reports, finalists = made
    return RunShown(run, candidates, reports, finalists, objectives, **more)
