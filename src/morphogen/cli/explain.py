"""What an experiment will take: costs from the blueprint, and time from a few steps measured on this machine."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.cost import TRAIN_FACTOR, Step, costs
from morphogen.data.prepare import PreparedData, prepare
from morphogen.data.tokenizers import named
from morphogen.errors import InputError, MorphogenError
from morphogen.experiment import BPE, Data, Experiment, Train
from morphogen.foresight import grown, lineage_tokens
from morphogen.metrics.probing import SEQUENCES
from morphogen.metrics.throughput import tokens_per_second
from morphogen.network import build
from morphogen.search.rungs import stages
from morphogen.training.device import choose_device
from morphogen.training.precision import bf16_warning
from morphogen.training.precision import told as train_precision
from morphogen.training.range_test import rates
from morphogen.training.trainer import Trainer

#: The probe takes about this many FLOPs a step: fewer sequences than a real batch, of a large model one shorter one.
PROBE_FLOPS = 4e10
#: The shortest sequence it is shortened to, and the most tokens of a step.
PROBE_TOKENS, PROBE_MOST_TOKENS = 32, 2**16
PROBE_STEPS = 4
#: Weights, gradients and AdamW's two moments in fp32, per parameter.
STATE_BYTES = 16


#: Text of so many bytes is read to be told of.
SMALL_BYTES = 2**24


@dataclass(frozen=True)
class Probe:
    """A few training steps on random tokens: sequences of how many tokens, median speed, peak bytes."""

    sequences: int
    sequence_tokens: int
    tokens_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Forecast:
    """What the search will train: candidates at most, training tokens each at most, held-out tokens measured each.

    tokens, measurements: of all candidates together. With successive halving most of them are stopped early, and each
    is measured after every rung.
    """

    candidates: int
    tokens_each: int
    eval_tokens_each: int
    tokens: int
    measurements: int

    def seconds(self, speed: float) -> float:
        """Time at `speed` training tokens per second; a measured token costs a forward pass, so 1 / TRAIN_FACTOR."""
        return (self.tokens + self.measurements * self.eval_tokens_each / TRAIN_FACTOR) / speed


def with_nominal_vocab(experiment: Experiment) -> Blueprint:
    """The blueprint with its vocabulary size as the `data` section names it, without reading any corpus."""
    return experiment.model.with_vocab(nominal_vocab(experiment.data))


def nominal_vocab(data: Data) -> int:
    """Tokens in the vocabulary; a BPE may come out smaller where the text is short."""
    if isinstance(data.tokenizer, BPE):
        return data.tokenizer.vocab
    return named(data.tokenizer).vocab_size


def text_at_hand(data: Data) -> PreparedData | None:
    """The data made ready where that takes a moment: files of at most `SMALL_BYTES` in all. None for any other, and for
    what cannot be read, which a run will complain of."""
    sources = {
        Path(shard.source) for shard in (*data.shards, *data.eval_shards, *data.healing_shards) if not shard.probe
    }
    total = 0
    for source in sources:
        files = source.rglob("*") if source.is_dir() else [source]
        for file in files:
            if not file.exists() or (total := total + file.stat().st_size) > SMALL_BYTES:
                return None
    try:
        return prepare(data)
    except MorphogenError:
        return None


def probed_tokens(data: Data) -> int:
    """Tokens that probes ask of a candidate."""
    return SEQUENCES * sum(length for shard in data.probes for length in shard.lengths or (data.seq_len,))


def forecast(experiment: Experiment, prepared: PreparedData | None = None) -> Forecast:
    """The search in numbers, when no candidate is turned away or promoted. What finalists are trained besides, annealed
    or again on other seeds, and the search for a rate, come on top.

    prepared: its text; without it held-out tokens are counted as if every shard had as many as are asked for.
    """
    evolution, data = experiment.evolution, experiment.data
    candidates = sum(evolution.sizes)
    tokens_each = min(sum(stage.budget_tokens for stage in stages(evolution)), experiment.train.max_tokens)
    tokens, measurements = candidates * tokens_each, candidates
    if evolution.rungs == "asha":
        tokens = measurements = 0
        for started, times in Counter(evolution.sizes).items():
            left = started
            for stage in stages(evolution):
                tokens += times * left * stage.budget_tokens
                measurements += times * left
                left = max(1, left // evolution.eta)
    if evolution.twin_share:  # in one round those that train on have their parents' twins
        twins = evolution.population * evolution.generations
        more = (twins * tokens_each, twins) if evolution.rungs == "fixed" else (tokens, measurements)
        tokens, measurements = tokens + more[0], measurements + more[1]
    whole = max(1, data.eval_tokens // data.seq_len) * data.seq_len
    held_out = len(data.measured_shards) * whole if prepared is None else sum(prepared.measured_tokens().values())
    return Forecast(
        candidates=candidates,
        tokens_each=tokens_each,
        eval_tokens_each=held_out + probed_tokens(data),
        tokens=tokens,
        measurements=measurements,
    )


def blueprint_costs(experiment: Experiment) -> dict[str, float]:
    """Every cost of the experiment's blueprint by name; computed, not measured."""
    step = Step.of(experiment.train, experiment.data.batch_size)
    return costs(with_nominal_vocab(experiment), experiment.data.seq_len, step)


def grown_costs(experiment: Experiment) -> dict[str, int]:
    """What the blueprint's rules of growth may bring it to in the longest lineage of the search: its costs, how often
    it grows until then and in how many steps; nothing without rules that add any. bounded: whether it comes to an end
    there; else it is more yet, and no limit ends it."""
    if not any(rule.do.adds for rule in experiment.model.growth):
        return {}
    step, end = Step.of(experiment.train, experiment.data.batch_size), grown(experiment, with_nominal_vocab(experiment))
    found = costs(end.blueprint, experiment.data.seq_len, step)
    told = {name: int(found[name]) for name in ("params", "flops_per_token", "train_memory_bytes", "layers")}
    steps = lineage_tokens(experiment) // experiment.tokens_per_step
    return {**told, "dim": end.blueprint.emb.dim, "growths": end.growths, "steps": steps, "bounded": end.bounded}


def grown_told(found: dict[str, int]) -> str:
    """`grown_costs` in words."""
    more = "" if found["bounded"] else "at least "
    size = f"{more}{found['params']:,} parameters, {found['flops_per_token']:,} forward FLOPs/token"
    memory = f"{found['train_memory_bytes']:,} bytes to train, {found['layers']} blocks of {found['dim']:,} channels"
    end = "" if found["bounded"] else "; no limit ends it"
    return f"{size}, {memory} (by {found['growths']} growths in {found['steps']:,} steps at most{end})"


def too_large(experiment: Experiment, device: str = "cpu") -> str:
    """Why the experiment cannot be trained on this machine, however small the probe; empty where nothing says so.

    Counted from below: weights, gradients and moments, and one vector per token and block.
    """
    blueprint, data = with_nominal_vocab(experiment), experiment.data
    tokens = data.seq_len * data.batch_size
    least = STATE_BYTES * parameter_count(blueprint) + 4 * tokens * blueprint.emb.dim * len(blueprint.blocks)
    free = memory_bytes(device)
    if least <= free:
        return ""
    return f"a step of {tokens:,} tokens takes at least {least:,} bytes, and {device} has {free:,}"


def precision(train: Train, device: str) -> list[str]:
    """In which precision a device will train and why, and what should be known of it before."""
    where = choose_device(device)
    warning = bf16_warning(train, where)
    return [f"train.bf16: {train_precision(train, where)}", *([warning] if warning else [])]


def memory_bytes(device: str) -> int:
    """The memory that is free on a device."""
    where = choose_device(device)
    return int(torch.cuda.mem_get_info(where)[0]) if where.type == "cuda" else int(psutil.virtual_memory().available)


def probe(experiment: Experiment, device: str = "cpu") -> Probe:
    """Train the blueprint for `PROBE_STEPS` steps on random tokens and time them. InputError where `too_large`."""
    if why := too_large(experiment, device):
        raise InputError(f"cannot be measured here: {why}")
    blueprint, whole = with_nominal_vocab(experiment), experiment.data.seq_len
    affordable = PROBE_FLOPS / (TRAIN_FACTOR * costs(blueprint, whole)["flops_per_token"])
    affordable = min(affordable, PROBE_MOST_TOKENS)
    sequences = int(min(max(affordable / whole, 1), experiment.data.batch_size))
    length = int(min(max(affordable, PROBE_TOKENS), whole))
    model = build(blueprint, seed=0).to(choose_device(device))
    shape = (PROBE_STEPS, sequences, length + 1)
    ids_SBT1 = np.random.default_rng(0).integers(blueprint.context().vocab, size=shape)
    tokens = sequences * length
    train = experiment.train.model_copy(update={"accumulate": 1})
    if train.searches_rate:  # which rate it is does not change how long a step takes
        train = train.model_copy(update={"lr": rates(train)[0]})
    trainer = Trainer(model, train, total_steps=PROBE_STEPS, tokens_per_step=tokens, seed=0)
    trainer.run(lambda step: ids_SBT1[step], PROBE_STEPS)
    return Probe(sequences, length, tokens_per_second(tokens, trainer.trace.seconds), int(trainer.memory.bytes))
