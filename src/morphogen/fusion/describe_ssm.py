"""What is known of state-space models of other frameworks, as `fusion.describe` says it of decoders with attention."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from morphogen.blueprint.schema import Blueprint
from morphogen.fusion.describe import Config, Layout, made, refuse_fixed
from morphogen.fusion.taking import Filled, Rows, Taken
from morphogen.parts.contract.part import Context
from morphogen.parts.ssm.mamba import Mamba
from morphogen.parts.ssm.mamba2 import Mamba2

PREFIX = "backbone."
FIXED: dict[str, tuple[Any, ...]] = {"use_bias": (False,), "use_conv_bias": (True,), "hidden_act": ("silu", "swish")}
#: Fields that only training, or the choice of a kernel, reads.
SILENT = frozenset(
    [
        "residual_in_fp32",
        "time_step_scale",
        "time_step_min",
        "time_step_max",
        "time_step_init_scheme",
        "time_step_floor",
        "chunk_size",
        "rescale_prenorm_residual",
        "use_mambapy",
        "use_associative_scan",
        "intermediate_size",
        "time_step_rank",
        # what the first configs say twice
        "d_inner",
        "d_model",
        "n_layer",
        "ssm_cfg",
        "fused_add_norm",
        "pad_vocab_size_multiple",
    ]
)
#: Tensors of one layer: the part, the model around it, what theirs begin with, the norm's eps.
Layer = Callable[[Any, Context, str, float], Iterator[tuple[str, Taken | Filled]]]


def read_mamba(config: Config) -> Layout:
    """The layout of a Mamba config. InputError for what a blueprint cannot say."""
    refuse_fixed(config, {**FIXED, "rms_norm": (True,)})
    ssm = {"kind": "mamba", "dt_rank": _rank(config), **_fields(config)}
    return _layout(config, ssm, _mamba_tensors)


def read_mamba2(config: Config) -> Layout:
    """The layout of a Mamba-2 config. InputError for what a blueprint cannot say."""
    limits = ([0.0, float("inf")], (0.0, float("inf")), [0.0, "inf"], [0.0, "Infinity"])
    refuse_fixed(config, {**FIXED, "n_groups": (1,), "time_step_limit": limits})
    width, heads, dim = int(config["head_dim"]), int(config["num_heads"]), int(config["hidden_size"])
    fields = {**_fields(config), "expand": heads * width / dim}
    return _layout(config, {"kind": "mamba2", "head_dim": width, **fields}, _mamba2_tensors)


def _rank(config: Config) -> int:
    found = config["time_step_rank"]
    return -(-int(config["hidden_size"]) // 16) if found == "auto" else int(found)


def _fields(config: Config) -> dict[str, Any]:
    return {
        "d_state": int(config["state_size"]),
        "d_conv": int(config["conv_kernel"]),
        "expand": float(config["expand"]),
    }


def _layout(config: Config, ssm: dict[str, Any], tensors: Layer) -> Layout:
    config.read.update(SILENT)
    dim, vocab = int(config["hidden_size"]), int(config["vocab_size"])
    tied = bool(config.get("tie_word_embeddings", False))
    blueprint = made(
        {
            "name": config.type,
            "emb": {"dim": dim, "vocab": vocab},
            "blocks": [{"ssm": ssm}] * int(config["num_hidden_layers"]),
            "head": {"tie_embeddings": tied},
        }
    )
    return Layout(blueprint, dict(_tensors(blueprint, float(config["layer_norm_epsilon"]), tensors)), PREFIX)


def _tensors(blueprint: Blueprint, eps: float, layer: Layer) -> Iterator[tuple[str, Taken | Filled]]:
    ctx = blueprint.context()
    yield "emb.weight", Taken("backbone.embeddings.weight", (ctx.vocab, ctx.dim))
    yield from _norm("norm", "backbone.norm_f", ctx.dim, eps)
    if not blueprint.head.tie_embeddings:
        yield "head.weight", Taken("lm_head.weight", (ctx.vocab, ctx.dim))
    for i, block in enumerate(blueprint.blocks):
        ours, theirs = f"blocks.{i}.ssm.", f"backbone.layers.{i}."
        yield from _norm(f"{ours}norm", f"{theirs}norm", ctx.dim, eps)
        for name, source in layer(block.ssm, ctx, f"{theirs}mixer.", eps):
            yield ours + name, source


def _norm(ours: str, theirs: str, size: int, eps: float) -> Iterator[tuple[str, Taken | Filled]]:
    yield f"{ours}.weight", Taken(f"{theirs}.weight", (size,))
    yield f"{ours}.eps", Filled(eps)


def _rows(names: dict[str, int], theirs: str, of: tuple[int, ...]) -> Iterator[tuple[str, Taken]]:
    """Tensors of ours of so many rows each, one after another in one of theirs."""
    start = 0
    for name, rows in names.items():
        yield name, Taken(theirs, of, part=Rows(start, start + rows))
        start += rows


def _mamba_tensors(part: Mamba, ctx: Context, theirs: str, eps: float) -> Iterator[tuple[str, Taken | Filled]]:
    dim, inner, state, rank = ctx.dim, part.inner(ctx), part.d_state, part.rank(ctx)
    yield from _rows({"x.weight": inner, "z.weight": inner}, f"{theirs}in_proj.weight", (2 * inner, dim))
    yield "conv_x.weight", Taken(f"{theirs}conv1d.weight", (inner, 1, part.d_conv))
    yield "conv_x.bias", Taken(f"{theirs}conv1d.bias", (inner,))
    reads = {"dt_down.weight": rank, "b.weight": state, "c.weight": state}
    yield from _rows(reads, f"{theirs}x_proj.weight", (rank + 2 * state, inner))
    yield "dt_up.weight", Taken(f"{theirs}dt_proj.weight", (inner, rank))
    yield "dt_bias", Taken(f"{theirs}dt_proj.bias", (inner,))
    yield "a_log", Taken(f"{theirs}A_log", (inner, state), transposed=True)
    yield "d", Taken(f"{theirs}D", (inner,))
    yield "out.weight", Taken(f"{theirs}out_proj.weight", (dim, inner))


def _mamba2_tensors(part: Mamba2, ctx: Context, theirs: str, eps: float) -> Iterator[tuple[str, Taken | Filled]]:
    dim, inner, state, heads = ctx.dim, part.inner(ctx), part.d_state, part.units(ctx)
    names = {"z.weight": inner, "x.weight": inner, "b.weight": state, "c.weight": state, "dt.weight": heads}
    yield from _rows(names, f"{theirs}in_proj.weight", (sum(names.values()), dim))
    channels = inner + 2 * state
    for kind, of in (("weight", (channels, 1, part.d_conv)), ("bias", (channels,))):
        pieces = {f"conv_x.{kind}": inner, f"conv_b.{kind}": state, f"conv_c.{kind}": state}
        yield from _rows(pieces, f"{theirs}conv1d.{kind}", of)
    yield "a_log", Taken(f"{theirs}A_log", (heads,))
    yield "dt_bias", Taken(f"{theirs}dt_bias", (heads,))
    yield "d", Taken(f"{theirs}D", (heads,))
    yield from _norm("out_norm", f"{theirs}norm", inner, eps)
    yield "out.weight", Taken(f"{theirs}out_proj.weight", (dim, inner))


#: model_type -> what reads its config.
SSMS: Mapping[str, Callable[[Config], Layout]] = {"mamba": read_mamba, "mamba2": read_mamba2}


def write_ssm(blueprint: Blueprint, kind: str, eps: float) -> dict[str, Any] | None:
    """The fields of a config that makes this blueprint, if any does; whether it does is to be tried."""
    part, ctx = blueprint.blocks[0].ssm, blueprint.context()
    if not isinstance(part, Mamba | Mamba2) or part.label != kind:
        return None
    expand, odd = divmod(part.inner(ctx), ctx.dim)
    if odd:
        return None
    fields: dict[str, Any] = {
        "vocab_size": ctx.vocab,
        "hidden_size": ctx.dim,
        "num_hidden_layers": len(blueprint.blocks),
        "state_size": part.d_state,
        "conv_kernel": part.d_conv,
        "expand": expand,
        "layer_norm_epsilon": eps,
        "tie_word_embeddings": blueprint.head.tie_embeddings,
        **{name: allowed[0] for name, allowed in FIXED.items()},
    }
    if isinstance(part, Mamba):
        return fields | {"time_step_rank": part.rank(ctx), "intermediate_size": part.inner(ctx)}
    return fields | {"num_heads": part.units(ctx), "head_dim": part.head_dim, "n_groups": 1}
