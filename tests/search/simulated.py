"""A simulated evaluator, a pure function of the blueprint, and small experiments. As a script: the digest of a run."""

import hashlib
import sys

from morphogen.blueprint.diff import digest
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Report, Status, Tokens
from morphogen.cost import costs
from morphogen.experiment import Experiment
from morphogen.search.engine import Engine
from morphogen.store.files import canonical_json
from morphogen.store.ledger import Reported, Start

SEQ_LEN = 32


def experiment(**evolution):
    attn = {"kind": "GQA", "heads": 2, "head_dim": 8, "kv_groups": 2}
    ffn = {"kind": "dense", "hidden": 16}
    model = {
        "name": "tiny",
        "emb": {"dim": 16, "vocab": 37},
        "blocks": [{"attn": attn, "ffn": ffn}, {"attn": attn, "ffn": ffn}],
    }
    objectives = {"bpb": "min", "flops_per_token": "min"}
    settings = {
        "generations": 3,
        "population": 6,
        "topk_keep": 4,
        "objectives": objectives,
        "survivors": "rest",
        **evolution,
    }
    return Experiment.model_validate({"model": model, "data": {"seq_len": SEQ_LEN}, "evolution": settings})


def engine(seed=0, **evolution):
    return Engine(experiment(**evolution), seed=seed, run_dir="run", device="cpu")


def measure(candidate, status=Status.TRAINED, **metrics):
    """More parameters are better up to a point; a hash of the architecture stands for the rest."""
    blueprint = Blueprint.model_validate(candidate.blueprint)
    known = costs(blueprint, SEQ_LEN)
    luck = int(digest(blueprint)[:6], 16) / 16**6
    return Report(
        id=candidate.id,
        status=status,
        reason="" if status is Status.TRAINED else "it was so decided",
        rung=2,
        metrics={"bpb": 2.0 + 3000.0 / known["params"] + 0.1 * luck, **metrics},
        costs=known,
        tokens=Tokens(own=100 + candidate.index, lineage=0, unique=0),
        steps=10 + candidate.index,
        checkpoint=f"checkpoints/{candidate.id}.safetensors",
    )


def run(search, generations=None, evaluate=measure):
    """The events of a whole run, or of its next `generations`."""
    events = []
    while not search.done and generations != 0:
        events.append(search.ask())
        events += run_on(search, evaluate)
        generations = None if generations is None else generations - 1
    return events


def run_on(search, evaluate=measure):
    """The events that close the open generation."""
    events = []
    for candidate in search.pending():
        events.append(Reported(report=evaluate(candidate)))
        search.tell(events[-1].report)
    return [*events, search.close_generation()]


def start(search):
    return Start(run="demo", seed=search.seed, experiment=search.experiment.model_dump(mode="json"))


def as_text(events):
    return canonical_json([event.model_dump(mode="json") for event in events])


def run_digest(seed):
    return hashlib.sha256(as_text(run(engine(seed=seed))).encode()).hexdigest()


if __name__ == "__main__":
    print(run_digest(int(sys.argv[1])))
