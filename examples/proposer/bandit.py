"""A bandit over operators that proposes candidates: `evolution.proposer` runs it, or `ask | bandit.py | tell`.

It reads the state of a run on standard input and answers on standard output. Every operator is credited with the gain
of its children over their parents in the first objective (as these are trained on beside them), shrunk towards the mean
of all operators, with a bonus while it has been tried little (UCB1); the best one that applies to a parent is proposed.
It has no memory of its own and draws nothing: the same state gives the same answer. Only the standard library is used.
"""

import hashlib
import json
import math
import sys
from collections import defaultdict

#: How much trying the untried is worth, in units of the spread of gains.
CURIOSITY = 1.0


def value(one: dict, name: str) -> float | None:
    """A candidate's figure, as selection reads it; infinities and NaNs stand as text, and count as nothing."""
    found = next((one[table][name] for table in ("metrics", "costs", "timed") if name in one[table]), None)
    if (twin := one["twin"]) and name in one["metrics"] and name in twin["metrics"]:
        pair = found, twin["metrics"][name]
        if not all(isinstance(each, int | float) for each in pair):
            return None
        return (1.0 - twin["share"]) * pair[0] + twin["share"] * pair[1]
    return found if isinstance(found, int | float) else None


def gains(state: dict) -> dict[str, list[float]]:
    """Operator -> by how much each of its trained children is better than its first parent, which trained as long:
    without edits in the same generation, where survivors train on."""
    objective, direction = next(iter(state["objectives"].items()))
    sign = 1.0 if direction == "max" else -1.0
    past = {one["id"]: one for one in state["history"]}
    went_on = {
        (one["parents"][0], one["generation"]): one
        for one in state["history"]
        if one["status"] == "trained" and len(one["parents"]) == 1 and not one["edits"]
    }
    found = defaultdict(list)
    for child in state["history"]:
        if child["status"] != "trained" or not child["parents"]:
            continue
        parent = child["parents"][0]
        beside = went_on.get((parent, child["generation"]), past[parent])
        after, before = value(child, objective), value(beside, objective)
        if after is not None and before is not None:
            for edit in child["edits"]:
                found[edit["operator"]].append(sign * (after - before))
    return found


def answer(state: dict) -> dict:
    """Proposals for the open seats: parents in turn, the best first, each with the operator that promises most."""
    tried = {name: (len(known), sum(known)) for name, known in gains(state).items()}
    count, total = sum(times for times, _ in tried.values()), sum(gained for _, gained in tried.values())
    mean = total / max(1, count)
    spread = max((abs(gained / times - mean) for times, gained in tried.values()), default=0.0) or 1.0

    def promise(operator: str) -> tuple[float, str]:
        times, gained = tried.get(operator, (0, 0.0))
        bonus = CURIOSITY * spread * math.sqrt(math.log(2 + count) / (1 + times))
        return (gained + mean) / (times + 1) + bonus, hashlib.sha256(operator.encode()).hexdigest()

    parents = [parent for parent in state["parents"] if parent["survivor"] and parent["operators"]]
    proposals = []
    for seat in range(state["seats"] if parents else 0):
        parent = parents[seat % len(parents)]
        operator = max(parent["operators"], key=promise)
        times, gained = tried.get(operator, (0, 0.0))
        tried[operator] = times + 1, gained  # as if without gain, so that the seats that follow try others
        seed = 1000 * state["generation"] + seat
        proposals.append({"parent": parent["id"], "edits": [{"operator": operator, "seed": seed}]})
    return {"proposer": "bandit", "proposals": proposals}


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
