"""A small experiment made large: the same pattern at another width and depth, by priors that are stated.

What a search found is kept: the kinds of parts and their order, the ratio of hidden units to channels, query heads per
key head, how far windows reach in proportion. What follows from size alone changes: docs/scale_policy.md says how.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from morphogen.blueprint.schema import Block, Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.blueprint.yaml import dumps
from morphogen.data.tokenizers import ByteTokenizer, named
from morphogen.errors import InputError, RunError
from morphogen.escape import visible
from morphogen.experiment import BPE, Data, Experiment, Priors, Train
from morphogen.parts.contract.part import Part
from morphogen.parts.recurrence.recurrence import Recurrence
from morphogen.store.files import write_atomic

Depth = Literal["stretch", "stack"]
DEPTHS: Mapping[str, Depth] = {"stretch": "stretch", "stack": "stack"}
#: What a file made here begins with.
TITLE = "# Scaled up from "
#: Heads have so many channels in models at least so wide.
HEAD_DIM, WIDE = 64, 512
#: Residual channels come in multiples of this in wide models, and in narrow ones.
MULTIPLE, NARROW_MULTIPLE = 64, 8
#: Channels for each block, where that of the seed lies outside of this range.
ASPECTS = (32.0, 128.0)
#: Training tokens for a parameter unless `priors.tokens_per_param` says otherwise. Ref: 2203.15556.
TOKENS_PER_PARAM = 20.0
#: How much worse a shape is for being away from the size asked for than from its aspect.
SIZE_MATTERS = 400.0
#: Sizes that could be meant.
LEAST_PARAMS, MOST_PARAMS, MOST_LAYERS = 1_000, 10**13, 1024
#: The share of all steps that warm up, at least as many as before.
WARMUP_SHARE = 0.01


class Shape(NamedTuple):
    """Residual channels, and blocks."""

    dim: int
    layers: int


@dataclass(frozen=True)
class Wish:
    """What is asked for. params: parameters, embedding included. depth: how blocks are multiplied. dim, layers,
    seq_len: None where they follow."""

    params: int
    depth: Depth = "stretch"
    dim: int | None = None
    layers: int | None = None
    seq_len: int | None = None


@dataclass(frozen=True)
class Scaled:
    """The large experiment, its parameters, and what was done, a line each."""

    experiment: Experiment
    params: int
    notes: tuple[str, ...]


def scale(experiment: Experiment, wish: Wish) -> Scaled:
    """The experiment at another size. InputError for a size that no shape comes near, and a vocabulary nobody knows."""
    _check(wish)
    vocab = vocabulary(experiment)
    seq_len = experiment.data.seq_len if wish.seq_len is None else wish.seq_len
    longer = seq_len / experiment.data.seq_len
    seed = Shape(experiment.model.emb.dim, len(experiment.model.blocks))
    shape = fitting(experiment, wish, vocab)
    how = How(shape.dim / seed.dim, shape.dim, longer, seq_len, experiment.priors)
    notes: list[str] = []
    model = resized(experiment.model, shape, wish.depth, how, notes)
    params = parameter_count(model if model.emb.vocab is not None else model.with_vocab(vocab))
    if abs(math.log(params / wish.params)) > 0.15:
        raise InputError(
            f"--params: got {wish.params:,}, but the nearest with {shape.dim} channels and {shape.layers} blocks has "
            f"{params:,}; give another --dim or --layers"
        )
    each = experiment.priors.tokens_per_param or TOKENS_PER_PARAM
    data = experiment.data.model_copy(update={"seq_len": seq_len})
    train, said = _train(experiment.train, seed, round(each * params), data)
    evolution = experiment.evolution.model_copy(
        update={
            "generations": 0,
            "repeat": 0,
            "anneal_tokens": 0,
            "rungs": "fixed",
            "rung1_tokens": 0,
            "rung2_tokens": train.max_tokens,
            "rung0_thresholds": {},
            "rank_by": "inherited",
        }
    )
    whole = {"model": model, "train": train, "data": data, "evolution": evolution}
    told = [
        f"{seed.dim} channels, {seed.layers} blocks became {shape.dim} and {shape.layers} ({wish.depth}): {params:,} "
        "parameters.",
        f"Tokens: {train.max_tokens:,}, {each:g} for each parameter; data.shards are the seed's: see that they hold as "
        "many.",
        *said,
        *dict.fromkeys(notes),
    ]
    return Scaled(experiment.model_copy(update=whole), params, tuple(told))


def _check(wish: Wish) -> None:
    bounds = {
        "params": (wish.params, LEAST_PARAMS, MOST_PARAMS),
        "dim": (wish.dim, 1, 10**6),
        "layers": (wish.layers, 1, MOST_LAYERS),
        "seq-len": (wish.seq_len, 8, 2**24),
    }
    for name, (value, least, most) in bounds.items():
        if value is not None and not least <= value <= most:
            raise InputError(f"--{name}: got {value:,}, expected {least:,} to {most:,}")


def vocabulary(experiment: Experiment) -> int:
    """How many tokens the model has, without reading any text."""
    tokenizer = experiment.data.tokenizer
    if experiment.model.emb.vocab is not None:
        return experiment.model.emb.vocab
    if isinstance(tokenizer, BPE):
        return tokenizer.vocab
    return ByteTokenizer.vocab_size if tokenizer == "bytes" else named(tokenizer).vocab_size


# -------------------------------------------------------------------------------------------------------------- shape


def fitting(experiment: Experiment, wish: Wish, vocab: int) -> Shape:
    """Width and depth that come nearest to the size asked for, in about the proportion that the seed has."""
    model = experiment.model.model_copy(update={"growth": ()})
    seed = Shape(model.emb.dim, len(model.blocks))
    aspect = min(max(seed.dim / seed.layers, ASPECTS[0]), ASPECTS[1])
    seq_len = wish.seq_len or experiment.data.seq_len
    longer = seq_len / experiment.data.seq_len

    def size(shape: Shape) -> int:
        how = How(shape.dim / seed.dim, shape.dim, longer, seq_len, experiment.priors)
        made = resized(model, shape, wish.depth, how, [])
        return parameter_count(made if made.emb.vocab is not None else made.with_vocab(vocab))

    def worth(shape: Shape) -> float:
        off, odd = math.log(size(shape) / wish.params), math.log(shape.dim / shape.layers / aspect)
        return SIZE_MATTERS * off * off + (0.0 if wish.dim and wish.layers else odd * odd)

    def best_width(layers: int) -> Shape:
        if wish.dim is not None:
            return Shape(wish.dim, layers)
        low, high = 1, 2
        while size(Shape(_width(high), layers)) < wish.params and high < 2**16:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if size(Shape(_width(middle), layers)) < wish.params else (low, middle)
        return min((Shape(_width(low), layers), Shape(_width(high), layers)), key=worth)

    if wish.layers is not None:
        return best_width(wish.layers)
    depths = _depths(wish, seed, aspect, size)
    return min((best_width(layers) for layers in depths), key=worth)


def _width(number: int) -> int:
    """The width of this number: multiples of 8 up to 512 channels, of 64 beyond."""
    narrow = WIDE // NARROW_MULTIPLE
    return number * NARROW_MULTIPLE if number <= narrow else WIDE + (number - narrow) * MULTIPLE


def _depths(wish: Wish, seed: Shape, aspect: float, size: Any) -> Sequence[int]:
    """Depths worth trying: around that at which the proportion is kept, or all that the width allows."""
    if wish.dim is not None:
        each = max(1, (size(Shape(wish.dim, seed.layers + 1)) - size(Shape(wish.dim, seed.layers))))
        there = round(seed.layers + (wish.params - size(Shape(wish.dim, seed.layers))) / each)
        return range(max(1, there - 2), min(MOST_LAYERS, max(1, there + 2)) + 1)
    layers = 1
    while layers < MOST_LAYERS and size(Shape(_multiple(aspect * layers), layers)) < wish.params:
        layers = max(layers + 1, round(layers * 1.1))
    return range(max(1, round(layers * 0.8)), min(MOST_LAYERS, round(layers * 1.2) + 1) + 1)


def _multiple(dim: float) -> int:
    step = MULTIPLE if dim >= WIDE else NARROW_MULTIPLE
    return max(step, round(dim / step) * step)


# -------------------------------------------------------------------------------------------------------------- model


class How(NamedTuple):
    """wider: so many times the channels, `dim` now. longer: so many times the tokens of a sequence, `seq_len` now."""

    wider: float
    dim: int
    longer: float
    seq_len: int
    priors: Priors


def resized(model: Blueprint, shape: Shape, depth: Depth, how: How, notes: list[str]) -> Blueprint:
    """The blueprint at a shape. notes: takes what could not be kept."""
    order = sources(len(model.blocks), shape.layers, depth)
    blocks, seen = [], dict[str, int]()
    for source in order:
        block = _block(model.blocks[source], how, notes)
        seen[block.id] = seen.get(block.id, 0) + 1
        name = block.id if seen[block.id] == 1 else f"{block.id}_{seen[block.id]}"
        blocks.append(block.model_copy(update={"id": name, "origin": None}))
    if model.growth:
        notes.append("Growth rules are left out: their limits and times are those of the small model.")
    std = model.emb.init_std
    emb = model.emb.model_copy(
        update={"dim": shape.dim, "init_std": None if std is None else std / math.sqrt(how.wider)}
    )
    if emb.positions is not None:
        emb = emb.model_copy(update={"positions": max(1, round(emb.positions * how.longer))})
    data = {**model.to_json(), "emb": emb.model_dump(mode="json"), "growth": [], "recurrences": []}
    data["blocks"] = [block.model_dump(mode="json") for block in blocks]
    data["recurrences"] = [loop.model_dump(mode="json") for loop in loops(model.recurrences, order, depth)]
    return Blueprint.model_validate(data)


def sources(before: int, after: int, depth: Depth) -> list[int]:
    """For every block the one of the seed that it is made from: each several times in a row, or all over again."""
    return [i * before // after if depth == "stretch" else i % before for i in range(after)]


def loops(recurrences: Sequence[Recurrence], order: Sequence[int], depth: Depth) -> list[Recurrence]:
    """The recurrences over what their blocks became: one run each where blocks are stretched, one a copy where they are
    stacked."""
    found: list[Recurrence] = []
    for loop in recurrences:
        inside = [i for i, source in enumerate(order) if loop.start <= source < loop.end]
        runs: list[list[int]] = []
        for i in inside:
            new = not runs or i != runs[-1][-1] + 1 or (depth == "stack" and order[i] < order[i - 1])
            runs = [*runs, [i]] if new else [*runs[:-1], [*runs[-1], i]]
        for k, run in enumerate(runs, start=1):
            name = loop.id if k == 1 else f"{loop.id}_{k}"
            found.append(loop.model_copy(update={"id": name, "start": run[0], "end": run[-1] + 1}))
    return sorted(found, key=lambda loop: loop.start)


def _block(block: Block, how: How, notes: list[str]) -> Block:
    parts = {name: part and _part(part, how, notes) for name, part in
             (("attn", block.attn), ("ssm", block.ssm), ("ffn", block.ffn))}  # fmt: skip
    extras = tuple(_part(extra, how, notes) for extra in block.extras)
    return block.evolve(**parts, extras=extras) or block


def _part(part: Part, how: How, notes: list[str]) -> Part:
    """The part as it is in a model of another size; itself where nothing of it follows from size."""
    fields = dict(part)
    changed = _heads(fields, how) | _widths(fields, how) | _reach(fields, part.inert(), how)
    if isinstance(fields.get("experts"), tuple):
        changed["experts"] = tuple(_part(each, how, notes) for each in fields["experts"])
    changed = {name: value for name, value in changed.items() if fields[name] != value}
    if not changed:
        return part
    made = part.evolve(**changed)
    if made is None:
        notes.append(f"{part.label} is kept as it is: it cannot have {', '.join(sorted(changed))} of another size.")
    return made or part


def _heads(fields: Mapping[str, Any], how: How) -> dict[str, Any]:
    """Heads for the same share of the channels, of `HEAD_DIM` where the model is wide; groups stay as they are."""
    if not isinstance(fields.get("head_dim"), int):
        return {}
    width = max(HEAD_DIM, fields["head_dim"]) if how.dim >= WIDE else fields["head_dim"]
    if not isinstance(fields.get("heads"), int):
        return {"head_dim": width} if how.dim >= WIDE and "expand" in fields else {}
    single = fields.get("kind") == "MQA"
    group = 1 if single else fields.get("kv_groups", 1)
    heads = group * max(1, round(fields["heads"] * fields["head_dim"] * how.wider / width / group))
    changed = {"heads": heads, "head_dim": width} | ({"kv_groups": heads} if single else {})
    if isinstance(fields.get("value_dim"), int):
        changed["value_dim"] = max(1, round(fields["value_dim"] * width / fields["head_dim"]))
    return changed


def _widths(fields: Mapping[str, Any], how: How) -> dict[str, Any]:
    """Hidden units, latents and ranks in proportion to the channels."""
    changed = {}
    for name in ("hidden", "shared_hidden", "kv_latent_dim", "dt_rank", "bottleneck"):
        if isinstance(fields.get(name), int):
            changed[name] = _rounded(fields[name] * how.wider, how.dim)
    return changed


def _rounded(units: float, dim: int) -> int:
    step = MULTIPLE if dim >= WIDE and units >= MULTIPLE else NARROW_MULTIPLE
    return max(1, round(units / step) * step)


def _reach(fields: Mapping[str, Any], inert: frozenset[str], how: How) -> dict[str, Any]:
    """Windows and strides with the root of the sequence, what a selector reads and RoPE's base with the sequence."""
    root, changed = math.sqrt(how.longer), dict[str, Any]()
    if "sliding_window" in fields and "sliding_window" not in inert:
        scale = how.priors.window_scale
        window = fields["sliding_window"] * root if scale is None else scale * math.sqrt(how.seq_len)
        changed["sliding_window"] = max(1, round(window))
    for name in ("global_stride", "block_size"):
        if name in fields and name not in inert:
            changed[name] = max(1, round(fields[name] * root))
    if "selector_topk" in fields and "selector_topk" not in inert:
        changed["selector_topk"] = max(2, round(fields["selector_topk"] * how.longer))
    if "rope_theta" in fields and "rope_theta" not in inert and how.longer > 1.0:
        changed["rope_theta"] = max(fields["rope_theta"], how.priors.rope_theta_default) * how.longer
    return changed


# ----------------------------------------------------------------------------------------------------------- training


def _train(train: Train, seed: Shape, tokens: int, data: Data) -> tuple[Train, list[str]]:
    """How the large model is trained, and what is to be said of it."""
    notes = []
    changed: dict[str, Any] = {"max_tokens": tokens, "init_checkpoint": None, "init_tokenizer": "same"}
    changed["ppl_stop_threshold"] = None
    steps = tokens // (data.seq_len * data.batch_size * train.accumulate)
    changed["warmup"] = max(train.warmup, round(WARMUP_SHARE * steps))
    if train.init_checkpoint is not None:
        notes.append("Weights begin afresh: those of the small model are of another size.")
    if train.optimizer.name == "muon" or train.searches_rate:
        why = "muon has none of it" if train.optimizer.name == "muon" else "it is found anew"
        notes.append(f"The learning rate is not carried over by µP: {why}.")
    else:
        base = train.base_dim or seed.dim
        changed["base_dim"] = base
        rate = train.lr if train.optimizer.lr is None else train.optimizer.lr
        notes.append(f"Learning rate: {rate:g} as found at {base} channels, carried over by µP (train.base_dim).")
    return Train.model_validate({**dict(train), **changed}), notes


# -------------------------------------------------------------------------------------------------------------- file


def write_scaled(made: Scaled, seed: Path, config: Path, *, force: bool = False) -> None:
    """Writes the large experiment, with what was done as comments. InputError for a name that is none of a YAML file,
    and for a file that is no older one of these; RunError where it cannot be written."""
    if config.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out: {config}: expected a name that ends in .yaml")
    if config.is_dir():
        raise InputError(f"--out: {config}: is a folder, expected a file to write to")
    if config.exists() and not force:
        with config.open("rb") as file:
            if file.read(len(TITLE)) != TITLE.encode():
                raise InputError(f"--out: {config}: is there already, and was not made by scale; --force overwrites it")
    lines = [f"{TITLE}{visible(seed.name)}.", *made.notes]
    try:
        config.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{config}: cannot be written: {error.strerror or error}") from None
    text = "\n# ".join(line.replace("\n", " ") for line in lines)
    write_atomic(config, f"{text}\n{dumps(made.experiment)}".encode())
