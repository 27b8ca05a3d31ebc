"""Operators on mixtures of experts: into and out of one, its experts, its router, its place."""

import numpy as np

from morphogen.parts.contract.operator import BlockT, block_operator, operator, pick
from morphogen.parts.contract.part import Context, Part
from morphogen.parts.ffn.mlp import ACTIVATIONS, MLP, regated, resized, scaled
from morphogen.parts.ffn.moe import EXPERT, MoE
from morphogen.parts.mixing.custom import ready_made
from morphogen.parts.mixing.short_conv import ShortConv
from morphogen.parts.ssm.mamba2 import Mamba2


def upcycled(part: MLP, rng: np.random.Generator, drop: float) -> MoE:
    """A mixture of layers like `part`, of which every token runs two."""
    n_experts = int(rng.choice([4, 8]))
    return MoE(hidden=part.hidden, activation=part.activation, n_experts=n_experts, drop_upcycle=drop)


@operator(MLP, preserves=lambda part, ctx: not part.bias)
def dense_to_moe(part: MLP, ctx: Context, rng: np.random.Generator) -> Part | None:
    """A dense layer becomes four or eight experts, each a copy of it, but for biases, which experts have not. Ref:
    arXiv 2212.05055."""
    return upcycled(part, rng, drop=0.0)


@operator(MLP, preserves=False)
def drop_upcycle(part: MLP, ctx: Context, rng: np.random.Generator) -> Part | None:
    """As dense_to_moe, with a part of every expert's units, not the same ones, drawn afresh. Ref: arXiv 2502.19261."""
    return upcycled(part, rng, drop=float(rng.choice([0.25, 0.5]))) if part.hidden > 1 else None


@operator(MoE, preserves=False)
def moe_to_dense(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """One dense layer, the mean of the experts."""
    return MLP(hidden=part.hidden, activation=part.activation) if part.stacked else None


# ------------------------------------------------------------------------------------------------ experts


@operator(MoE, preserves=False)
def tune_experts(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """More experts, the new ones writing zero where they are chosen; or fewer, those of largest norm. Without twins."""
    if part.twins or not part.stacked:
        return None
    count = pick(rng, [n for n in (part.stacked - 1, part.stacked // 2, part.stacked + 1, 2 * part.stacked) if n > 0])
    return None if count is None else part.evolve(n_experts=count + len(part.experts))


@operator(MoE, preserves=lambda part, ctx: part.drop_policy == "none")
def split_expert(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """An expert becomes two that share its place: every token of it goes to one of the two, at first equal ones."""
    place = pick(rng, [i for i in range(part.own_places) if i not in part.twins])
    return None if place is None else part.evolve(n_experts=part.n_experts + 1, twins=(*part.twins, place))


@operator(MoE, preserves=False)
def merge_twins(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """Of two experts that share a place, the second goes: the last twin of one, that has none itself."""
    last = {gate.host: gate.twin for gate in part.sharing.gates}
    gone = pick(rng, [gate.twin for gate in part.sharing.gates if last[gate.host] == gate.twin not in last])
    return None if gone is None else part.shared_by(part.sharing.without(gone))


@operator(MoE, preserves=True)
def segment_experts(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """Every expert becomes two of half its units, and twice as many are chosen. Ref: arXiv 2401.06066."""
    if part.hidden % 2 or part.twins or part.experts:
        return None
    shared_hidden = part.shared_width if part.shared else part.shared_hidden
    return part.evolve(n_experts=2 * part.n_experts, k=2 * part.k, hidden=part.hidden // 2, shared_hidden=shared_hidden)


@operator(MoE, preserves=True)
def widen_experts(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """More hidden units in every expert; the new ones write zero."""
    wider = scaled(part.hidden, float(rng.choice([1.25, 1.5, 2.0])))
    return part.evolve(hidden=wider) if part.stacked and wider > part.hidden else None


@operator(MoE, preserves=False)
def narrow_experts(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """Fewer hidden units in every expert; those of largest norm over all experts stay."""
    smaller = scaled(part.hidden, float(rng.choice([0.5, 0.75])))
    return part.evolve(hidden=smaller) if part.stacked and 0 < smaller < part.hidden else None


@operator(MoE, preserves=False)
def change_expert_activation(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """Another activation in every expert; the weights both have are carried."""
    if not (part.stacked or part.shared):
        return None
    return part.evolve(activation=pick(rng, [a for a in ACTIVATIONS if a != part.activation]))


@operator(MoE, preserves=False)
def toggle_expert_gate(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """A gate put into every expert or taken away, with so many hidden units that parameters and FLOPs stay."""
    if not (part.stacked or part.shared):
        return None
    activation, factor = regated(part.activation, rng)
    shared = None if part.shared_hidden is None else resized(part.shared_hidden, factor)
    return part.evolve(activation=activation, hidden=resized(part.hidden, factor), shared_hidden=shared)


@operator(MoE, preserves=True)
def add_shared_expert(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """One more expert that every token runs; its output starts at zero. Ref: arXiv 2401.06066."""
    return part.evolve(shared=part.shared + 1)


@operator(MoE, preserves=False)
def remove_shared_expert(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """One shared expert fewer, that of smallest norm."""
    return part.evolve(shared=part.shared - 1) if part.shared else None


@operator(MoE, preserves=True)
def widen_shared_expert(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """More hidden units in the shared experts; the new ones write zero."""
    wider = scaled(part.shared_width, float(rng.choice([1.25, 1.5, 2.0])))
    return part.evolve(shared_hidden=wider) if part.shared and wider > part.shared_width else None


@operator(MoE, preserves=False)
def insert_other_expert(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """One more expert of another kind: another dense layer, a state-space layer, a short convolution, or a plug-in."""
    width = scaled(part.hidden, float(rng.choice([0.5, 2.0])))
    head_dim = next((size for size in (32, 16, 8) if ctx.dim >= size), ctx.dim)
    others: list[Part] = [
        MLP(hidden=max(1, width), activation=pick(rng, ACTIVATIONS)),
        Mamba2(expand=1.0, head_dim=head_dim),
        ShortConv(),
        *ready_made(),
        *EXPERT.newcomers(ctx),
    ]
    return part.evolve(n_experts=part.n_experts + 1, experts=(*part.experts, pick(rng, others)))


@operator(MoE, preserves=False)
def remove_other_expert(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """One expert fewer, the last of those of another kind."""
    return part.evolve(n_experts=part.n_experts - 1, experts=part.experts[:-1]) if part.experts else None


# ------------------------------------------------------------------------------------------------- router


@operator(MoE, preserves=False)
def mutate_topk(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """One more or one fewer expert for every token."""
    return part.evolve(k=pick(rng, [k for k in (part.k - 1, part.k + 1) if 0 < k <= part.places]))


@operator(MoE, preserves=False)
def tune_router(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """Softmax or sigmoid scores, or another temperature."""
    if rng.random() < 0.5:
        return part.evolve(router_type="sigmoid" if part.router_type == "softmax" else "softmax")
    return part.evolve(router_temperature=pick(rng, [t for t in (0.5, 1.0, 2.0) if t != part.router_temperature]))


@operator(MoE, preserves=lambda part, ctx: part.router_bias == "none")
def toggle_router_bias(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """A bias per expert that training moves against its load, from zero on; or none. Ref: arXiv 2408.15664."""
    return part.evolve(router_bias="aux_free" if part.router_bias == "none" else "none")


@operator(MoE, preserves=True)
def tune_router_coeffs(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """Another coefficient of the load-balance loss or of the z-loss; the function stays, training changes."""
    if rng.random() < 0.5:
        return part.evolve(balance=pick(rng, [b for b in (0.0, 0.003, 0.01, 0.03) if b != part.balance]))
    return part.evolve(z_loss=pick(rng, [z for z in (0.0, 1e-4, 1e-3) if z != part.z_loss]))


@operator(MoE, preserves=False)
def tune_capacity(part: MoE, ctx: Context, rng: np.random.Generator) -> Part | None:
    """Experts that refuse tokens beyond a capacity, another capacity, or none."""
    factor = pick(rng, [c for c in (None, 1.0, 1.25, 1.5) if c != part.capacity_factor or part.drop_policy == "none"])
    return part.evolve(capacity_factor=factor, drop_policy="none" if factor is None else "greedy")


@block_operator(preserves=True)
def insert_moe(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """A mixture of experts in a block without a feed-forward layer; its output starts at zero."""
    if block.ffn is not None:
        return None
    hidden = max(8, round(ctx.dim * 4 / 3 / 8) * 8)  # two of them do the work of one dense layer
    return block.evolve(ffn=MoE(hidden=hidden, n_experts=int(rng.choice([4, 8]))))
