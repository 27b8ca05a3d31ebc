"""How the search and its ledger scale: many simulated candidates, nothing trained.

Per tenth of the run: CPU milliseconds per candidate of asking (making variations apart from the rest), telling, closing
and writing to the ledger, and memory. Then replay, exports and the size of the ledger, and the growth exponent of the
engine's time: the slope of log time over log candidates from the middle to the end (1 is linear).

    python benchmarks/scale.py [--quick] [--candidates 100000] [--genome blueprint|vector]
"""

import argparse
import math
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from morphogen.candidate import Report, Status, Tokens
from morphogen.experiment import Evolution, Experiment
from morphogen.runfolder import events_csv
from morphogen.search.engine import Engine
from morphogen.search.machine import Search
from morphogen.store.frontier import build_frontier
from morphogen.store.ledger import Ledger, Reported, Start
from morphogen.store.lineage import build_lineage
from morphogen.testing import Vectors

MIB = 2**20


def experiment(generations, population, novelty):
    """Two small blocks to begin from; the size is bounded, or it would grow and grow."""
    attn = {"kind": "GQA", "heads": 2, "head_dim": 8, "kv_groups": 2}
    block = {"attn": attn, "ffn": {"kind": "dense", "hidden": 16}}
    model = {"name": "scale", "emb": {"dim": 16, "vocab": 37}, "blocks": [block, block]}
    evolution = settings(generations, population) | {"objectives": {"bpb": "min", "flops_per_token": "min"}}
    evolution |= {"rung0_thresholds": {"params": 60_000, "layers": 8}}
    if novelty:
        evolution["objectives"] |= {"novelty": "max"}
    return Experiment.model_validate({"model": model, "data": {"seq_len": 32}, "evolution": evolution})


def settings(generations, population):
    """Of both kinds of genome."""
    return {"generations": generations, "population": population, "topk_keep": population}


class Clock:
    """CPU seconds by name."""

    def __init__(self):
        self.seconds = {"variation": 0.0}

    def time(self, name, call, *args):
        """What `call` returns."""
        start = time.process_time()
        result = call(*args)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
        return result


def timed(kind, clock):
    """From now on the time that variations take in this kind of space is on the clock."""
    mutate, crossover = kind.mutate, kind.crossover
    kind.mutate = lambda *args: clock.time("variation", mutate, *args)
    kind.crossover = lambda *args: clock.time("variation", crossover, *args)


def measured(candidate, costs):
    """A pure function of the candidate's id, which ends in its digest, and of its costs."""
    luck = int(candidate.id[-4:], 16) / 16**4
    size = costs["params"] if costs else 1.0 + 1000.0 * sum(candidate.blueprint["x"])
    metrics = {"bpb": 2.0 + 3000.0 / size + 0.1 * luck, "other": size}
    return Report(
        id=candidate.id,
        status=Status.TRAINED,
        rung=2,
        metrics=metrics,
        costs=costs,
        tokens=Tokens(own=100, lineage=1000, unique=1000),
        steps=10,
        checkpoint=f"checkpoints/{candidate.id}.safetensors",
    )


def searches(genome, generations, population, novelty):
    """A maker of searches, what a Start event holds of them, and their costs of a candidate."""
    if genome == "vector":
        evolution = Evolution(**settings(generations, population), objectives={"bpb": "min", "other": "min"})
        space = Vectors(np.zeros(10), np.ones(10), population)
        return lambda: Search(evolution, space, seed=0), {}, lambda search, candidate: {}
    made = experiment(generations, population, novelty)

    def costs(search, candidate):
        return search.space.costs(search._genomes[candidate.id])

    return lambda: Engine(made, seed=0, run_dir="run", device="cpu"), made.model_dump(mode="json"), costs


def grown(search, costs, ledger, clock, generations):
    """Runs the search to its end; a row for every tenth of it, then the growth of the engine's time."""
    columns = ("variation", "ask", "tell", "close", "engine", "ledger")
    print(f"{'candidates':>10} " + " ".join(f"{c + ' ms':>12}" for c in columns) + f" {'MiB':>8} {'frontier':>8}")
    process, path, last, seen = psutil.Process(os.getpid()), [], {}, 0
    while not search.done:
        clock.time("ledger", ledger.append, clock.time("ask", search.ask))
        for report in [measured(candidate, costs(search, candidate)) for candidate in search.pending()]:
            clock.time("ledger", ledger.append, Reported(report=report))
            clock.time("tell", search.tell, report)
        clock.time("ledger", ledger.append, clock.time("close", search.close_generation))
        count = len(search.candidates)
        if len(search.generations) % max(1, generations // 10) == 0 or search.done:
            spent = dict(clock.seconds)
            spent["ask"] -= spent["variation"]
            spent["engine"] = sum(spent[name] for name in ("ask", "tell", "close"))
            each = [1e3 * (spent[name] - last.get(name, 0.0)) / (count - seen) for name in columns]
            memory = process.memory_info().rss / MIB
            row = " ".join(f"{value:12.3f}" for value in each)
            print(f"{count:10} {row} {memory:8.0f} {len(search.frontier_ids):8}", flush=True)
            path.append((count, spent["engine"]))
            last, seen = spent, count
    half = min(path, key=lambda point: abs(point[0] - path[-1][0] / 2))
    slope = math.log(path[-1][1] / half[1]) / math.log(path[-1][0] / half[0])
    print(f"engine: {1e3 * path[-1][1] / path[-1][0]:.3f} ms per candidate, growth exponent {slope:.3f}")


def replayed(again, search, ledger, clock, folder):
    """Replays the ledger into a search that has done nothing yet."""

    def replay():
        events = ledger.events()
        next(events)
        for event in events:
            again.apply(event)

    clock.time("replay", replay)
    assert (again.generations, again.survivors) == (search.generations, search.survivors)
    size = sum(path.stat().st_size for path in folder.iterdir())
    count = len(search.candidates)
    print(f"replay: {1e3 * clock.seconds['replay'] / count:.3f} ms per candidate; ledger {size / MIB:.1f} MiB")


def exported(search, clock):
    """Writes what a run's folder shows, to nowhere."""
    frontier, volume = search.frontier_ids, search.generations[-1].hypervolume
    known, objectives = (search.candidates, search.reports), search.evolution.objectives
    exports = {
        "lineage.json": lambda: build_lineage("scale", *known, frontier).to_json(),
        "frontier.json": lambda: build_frontier("scale", objectives, volume, *known, frontier).to_json(),
        "events.csv": lambda: events_csv(*known),
    }
    for name, export in exports.items():
        text = clock.time(name, export)
        print(f"{name}: {len(text) / MIB:.1f} MiB in {clock.seconds[name]:.1f} s")


def main():
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 candidates")
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--population", type=int, default=100)
    parser.add_argument("--genome", choices=["blueprint", "vector"], default="blueprint")
    parser.add_argument("--novelty", action="store_true", help="novelty as an objective")
    options = parser.parse_args()
    wanted, population = (2_000 if options.quick else options.candidates), options.population
    generations = wanted // population
    if generations < 2:
        parser.error(f"--candidates: {wanted} are {generations} generations of {population}, expected at least 2")
    make, plain, costs = searches(options.genome, generations, population, options.novelty)
    search, clock = make(), Clock()
    timed(type(search.space), clock)
    with tempfile.TemporaryDirectory() as folder, Ledger.open(Path(folder), create=True) as ledger:
        ledger.append(Start(run="scale", seed=0, experiment=plain))
        grown(search, costs, ledger, clock, generations)
        replayed(make(), search, ledger, clock, Path(folder))
        exported(search, clock)


if __name__ == "__main__":
    main()
