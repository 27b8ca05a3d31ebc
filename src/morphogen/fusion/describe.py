"""From the config of another framework to our blueprint, and where each of our tensors lies in theirs.

`read_decoder` makes a `Layout` of a config and the dialect of its architecture. What a blueprint cannot say is refused
by name. State-space models are read in `fusion.describe_ssm`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from morphogen.blueprint.schema import Blueprint
from morphogen.errors import InputError, unknown
from morphogen.fusion.dialects import DROPOUTS, GATE, PLAIN, Dialect
from morphogen.fusion.taking import Filled, Halves, Interleaved, Rows, Taken
from morphogen.parts.attention.attention import Attention
from morphogen.parts.ffn.mlp import MLP


class Config:
    """A config's fields, and which of them were read."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        if name not in self._fields:
            raise InputError(f"config.json: has no {name!r}, expected one with a model of type {self.type}")
        return self._fields[name]

    def get(self, name: str | None, default: Any = None) -> Any:
        """The field, or `default` where there is none or it is null."""
        if name is None:
            return default
        self.read.add(name)
        found = self._fields.get(name)
        return default if found is None else found

    @property
    def type(self) -> str:
        """What the architecture is called."""
        self.read.add("model_type")
        return str(self._fields["model_type"])


@dataclass(frozen=True)
class Layout:
    """A model of another framework: our blueprint of it, each of our tensors in theirs, and theirs that have none of
    ours, by the end of their names. notes: what of the config is left out, as it matters only to training."""

    blueprint: Blueprint
    tensors: Mapping[str, Taken | Filled]
    prefix: str
    notes: tuple[str, ...] = ()
    spare: tuple[str, ...] = (".inv_freq", ".masked_bias", ".attn.bias", ".attention.bias", "lm_head.weight")

    def renamed(self, name: str, other: str) -> "Layout":
        """The same of a checkpoint in which one of their tensors is called otherwise."""
        tensors = {
            ours: replace(source, name=other) if isinstance(source, Taken) and source.name == name else source
            for ours, source in self.tensors.items()
        }
        return replace(self, tensors=tensors)


def refuse_fixed(config: Config, fixed: Mapping[str, tuple[Any, ...]]) -> None:
    """InputError where a field is not one of the values that can be honoured."""
    for name, allowed in fixed.items():
        if (found := config.get(name, allowed[0])) not in allowed:
            shown = " or ".join(repr(value) for value in allowed)
            raise InputError(f"config.json: {name} is {found!r}, which no blueprint can say, expected {shown}")


def made(data: Mapping[str, Any]) -> Blueprint:
    """The blueprint; InputError where the config makes none."""
    try:
        return Blueprint.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        raise InputError(f"config.json: its {place} cannot be: {first['msg']}") from None


def _dropouts(config: Config, dialect: Dialect) -> dict[str, float]:
    return {ours: float(config.get(theirs, 0.0)) for theirs, ours in dialect.dropout_keys.items()}


def _rope(config: Config, dialect: Dialect, head_dim: int, layer_type: str) -> dict[str, Any]:
    """The fields of RoPE for layers of a type."""
    found = config.get("rope_parameters", {})
    found = found.get(layer_type, found) if isinstance(found, Mapping) else {}
    kind, theta = found.get("rope_type", "default"), float(found.get("rope_theta", 10_000.0))
    share = float(found.get("partial_rotary_factor", 1.0))
    if share != 1.0 and not dialect.partial_rope:
        raise InputError(f"config.json: partial_rotary_factor is {share:g}, which models of type {config.type} ignore")
    known = {"rope_type", "rope_theta", "partial_rotary_factor"}
    if found.get("type") == kind:  # its older name
        known |= {"type"}
    fields: dict[str, Any] = {"rope": "standard", "rope_theta": theta}
    if kind == "linear":
        known |= {"factor"}
        fields |= {"rope_factor": float(found["factor"])}
    elif kind == "yarn":
        known |= {"factor", "original_max_position_embeddings"}
        context = found.get("original_max_position_embeddings") or config["max_position_embeddings"]
        fields |= {"rope": "yarn", "rope_factor": float(found["factor"]), "rope_context": int(context)}
    elif kind != "default":
        raise InputError(unknown("config.json: rope_type, of those a blueprint can say", kind, ROPES))
    if odd := sorted(name for name in found if name not in known and found[name] is not None):
        raise InputError(f"config.json: rope_parameters.{odd[0]} is {found[odd[0]]!r}, which no blueprint can say")
    if share < 1.0:
        if kind != "default":
            raise InputError(f"config.json: rope_type {kind!r} of a share of the channels, which no blueprint can say")
        turned = int(head_dim * share)
        return {"rope": "partial", "rope_theta": theta, "rope_factor": (turned + 0.25) / head_dim}
    return fields


ROPES = ("default", "linear", "yarn")


def _windows(config: Config, dialect: Dialect, layers: int) -> list[tuple[str, int | None]]:
    """For every layer its type, and how many tokens it sees, itself included; None for all."""
    window = config.get("sliding_window") if dialect.sliding != "none" else None
    if dialect.sliding != "layers":
        return [("full_attention", window)] * layers
    types = config.get("layer_types", ["full_attention"] * layers)
    if odd := sorted(set(types) - {"full_attention", "sliding_attention"}):
        raise InputError(f"config.json: layer_types has {odd[0]!r}, which no blueprint can say")
    return [(each, window if each == "sliding_attention" else None) for each in types]


def read_decoder(config: Config, dialect: Dialect) -> Layout:
    """The layout of a config. InputError for what a blueprint cannot say."""
    refuse_fixed(config, dialect.fixed)
    dim, layers, heads = (int(config[key]) for key in (dialect.dim_key, dialect.layers_key, dialect.heads_key))
    kv_heads = int(config.get(dialect.kv_heads_key, heads))
    width = int(config.get(dialect.head_dim_key, dim // heads))
    hidden = int(config.get(dialect.hidden_key, 4 * dim))
    attn_bias = dialect.attn_bias if config.get(dialect.attn_bias_key, dialect.attn_bias_key is None) else "none"
    mlp_bias = dialect.mlp_bias and bool(config.get(dialect.mlp_bias_key, True))
    named = config[dialect.activation_key]
    if named not in PLAIN or (dialect.gate and PLAIN[named] not in GATE):
        raise InputError(unknown(f"config.json: {dialect.activation_key}", named, PLAIN))
    plain = PLAIN[named]
    dropouts = _dropouts(config, dialect)
    tied = bool(config.get("tie_word_embeddings", False))
    if heads % max(1, kv_heads):
        raise InputError(f"config.json: {heads} query heads cannot be shared out over {kv_heads} kv heads")
    blocks = []
    for layer_type, window in _windows(config, dialect, layers):
        attn: dict[str, Any] = {
            "kind": "MHA" if kv_heads == heads else "MQA" if kv_heads == 1 else "GQA",
            "heads": heads,
            "head_dim": width,
            "kv_groups": heads // kv_heads,
            "qk_norm": dialect.qk_norm,
            "bias": attn_bias,
            "dropout": dropouts["attn.dropout"],
            **(_rope(config, dialect, width, layer_type) if dialect.rope else {"rope": "none"}),
        }
        if window is not None and window < 2:
            raise InputError(f"config.json: sliding_window is {window}, which no blueprint can say, expected 2 or more")
        if window is not None:
            attn |= {"sparsity": "sliding", "sliding_window": window - 1}
        ffn = {"hidden": hidden, "activation": GATE[plain] if dialect.gate else plain, "bias": mlp_bias}
        parallel = dialect.parallel and bool(config.get(dialect.parallel_key, True))
        blocks.append({"attn": attn, "ffn": {"kind": "dense", **ffn}, "parallel": parallel})
    blueprint = made(
        {
            "name": config.type,
            "emb": {
                "dim": dim,
                "vocab": int(config["vocab_size"]),
                "dropout": dropouts.get("emb.dropout", 0.0),
                "scale": math.sqrt(dim) if dialect.scaled_embedding else 1.0,
                "positions": config[dialect.positions_key] if dialect.positions_key else None,
            },
            "norm": dialect.norm,
            "blocks": blocks,
            "head": {"tie_embeddings": tied, "bias": dialect.head_bias and not tied},
        }
    )
    eps = float(config[dialect.eps_key]) if dialect.eps_key else 1e-5
    left_out = tuple(
        f"{name} is {found}, dropout between layers, which a blueprint has not; it is left out of training"
        for name in DROPOUTS
        if (found := config.get(name, 0.0))
    )
    return Layout(blueprint, dict(_decoder_tensors(blueprint, dialect, eps)), dialect.prefix, left_out)


def _decoder_tensors(blueprint: Blueprint, dialect: Dialect, eps: float) -> Iterator[tuple[str, Taken | Filled]]:
    dim, vocab = blueprint.emb.dim, blueprint.context().vocab
    yield "emb.weight", Taken(dialect.embedding, (vocab, dim))
    if dialect.positions and (places := blueprint.emb.positions):
        yield "positions.weight", Taken(dialect.positions, (places, dim))
    yield from _norm("norm", dialect.final_norm, dim, dialect, eps)
    if not blueprint.head.tie_embeddings:
        yield "head.weight", Taken(f"{dialect.head}.weight", (vocab, dim))
        if blueprint.head.bias:
            yield "head.bias", Taken(f"{dialect.head}.bias", (vocab,))
    for i, block in enumerate(blueprint.blocks):
        ours, theirs = f"blocks.{i}.", dialect.layer.format(i)
        assert isinstance(block.attn, Attention) and isinstance(block.ffn, MLP)  # noqa: PT018
        yield from _norm(f"{ours}attn.norm", theirs + dialect.attn_norm, dim, dialect, eps)
        yield from _attention(f"{ours}attn.", theirs, block.attn, dim, dialect, eps)
        yield from _norm(f"{ours}ffn.norm", theirs + dialect.ffn_norm, dim, dialect, eps)
        yield from _ffn(f"{ours}ffn.", theirs, block.ffn, dim, dialect)


def _norm(
    ours: str, theirs: str, size: int, dialect: Dialect, eps: float, rope: Halves | None = None
) -> Iterator[tuple[str, Taken | Filled]]:
    known = dialect.norm_weight
    weight = Taken(f"{theirs}.weight", (size,), rope=rope, plus=dialect.norm_plus)
    yield f"{ours}.weight", weight if known else Filled(1.0)
    if dialect.norm == "layernorm":
        yield f"{ours}.bias", Taken(f"{theirs}.bias", (size,), rope=rope) if known else Filled(0.0)
    yield f"{ours}.eps", Filled(eps)


def _linear(
    ours: str,
    theirs: str,
    rows: int,
    columns: int,
    dialect: Dialect,
    bias: bool,
    part: Rows | Interleaved | None = None,
    rope: Halves | None = None,
) -> Iterator[tuple[str, Taken]]:
    """A matrix of ours in one of theirs with `rows` rows, and its bias."""
    shape = (columns, rows) if dialect.transposed else (rows, columns)
    yield f"{ours}.weight", Taken(f"{theirs}.weight", shape, dialect.transposed, part, rope)
    if bias:
        yield f"{ours}.bias", Taken(f"{theirs}.bias", (rows,), False, part, rope)


def _attention(
    ours: str, theirs: str, part: Attention, dim: int, dialect: Dialect, eps: float
) -> Iterator[tuple[str, Taken | Filled]]:
    width, turned = part.head_dim, part.rotated_dims if part.rope != "none" else 0
    counts = (part.heads, part.kv_heads, part.kv_heads)
    total, start = sum(counts) * width, 0
    for which, (letter, heads) in enumerate(zip("qkv", counts, strict=True)):
        rope = Halves(heads, width, turned) if letter != "v" and turned else None
        stop, bias = start + heads * width, part.bias != "none"
        if len(dialect.heads) == 1:
            piece = Interleaved(heads, which, 3) if dialect.fused == "interleaved" else Rows(start, stop)
            yield from _linear(f"{ours}{letter}", theirs + dialect.heads[0], total, dim, dialect, bias, piece, rope)
        else:
            name = theirs + dialect.heads[which]
            yield from _linear(f"{ours}{letter}", name, heads * width, dim, dialect, bias, None, rope)
        start = stop
    yield from _linear(f"{ours}o", theirs + dialect.out, dim, part.heads * width, dialect, part.bias == "all")
    if part.qk_norm != "none":
        rope = Halves(1, width, turned) if turned else None
        for letter in "qk":
            yield from _norm(f"{ours}{letter}_norm", f"{theirs}self_attn.{letter}_norm", width, dialect, eps, rope)


def _ffn(ours: str, theirs: str, part: MLP, dim: int, dialect: Dialect) -> Iterator[tuple[str, Taken]]:
    hidden = part.hidden
    names: Sequence[tuple[str, str | None]] = [("gate", dialect.gate), ("up", dialect.up)]
    for i, (letter, name) in enumerate(names):
        if name is None:
            continue
        if dialect.gate_up:
            piece = Rows(i * hidden, (i + 1) * hidden)
            yield from _linear(f"{ours}{letter}", theirs + dialect.gate_up, 2 * hidden, dim, dialect, part.bias, piece)
        else:
            yield from _linear(f"{ours}{letter}", theirs + name, hidden, dim, dialect, part.bias)
    yield from _linear(f"{ours}down", theirs + dialect.down, dim, hidden, dialect, part.bias)
