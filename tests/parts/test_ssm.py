"""State-space parts in decoding, cost, start values and inheritance.

B batch, T tokens, D model dim
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from morphogen.blueprint.diff import digest
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.inherit.descent import inherit
from morphogen.network import assemble, initial_state
from morphogen.parts.contract.part import Context
from morphogen.parts.contract.tensors import decays
from morphogen.parts.ssm.mamba import Mamba
from morphogen.parts.ssm.mamba2 import Mamba2
from morphogen.parts.ssm.ssm import SSM
from morphogen.parts.ssm.ssm_layer import SSMBranch

DIM = 24
CTX = Context(dim=DIM, norm="rmsnorm", vocab=37, init_std=0.02, branches=2, seq_len=130)
PEERED = [Mamba2(d_state=9, head_dim=16, chunk=16), Mamba(d_state=9, dt_rank=5, chunk=16)]
SMALL = [
    Mamba2(d_state=5, head_dim=3, chunk=8),
    Mamba2(d_state=16, head_dim=8, d_conv=1, expand=1.5, gate=False),
    Mamba(d_state=5, chunk=8),
    Mamba(d_state=4, d_conv=1, expand=0.5, gate=False),
]


def blueprint_of(*parts: SSM) -> Blueprint:
    blocks = [{"id": f"b{i}", "ssm": part} for i, part in enumerate(parts)]
    return Blueprint.model_validate({"emb": {"dim": DIM, "vocab": 37}, "blocks": blocks})


def branch_of(part: SSM, dtype: torch.dtype = torch.float64) -> SSMBranch:
    """The part's module, every tensor moved off its special start."""
    blueprint, draw = blueprint_of(part), torch.Generator().manual_seed(0)
    state = initial_state(blueprint, 0)
    moved = {n: t if n.endswith("eps") else t + 0.05 * torch.randn(t.shape, generator=draw) for n, t in state.items()}
    branch = assemble(blueprint, {name: tensor.to(dtype) for name, tensor in moved.items()}).blocks[0].ssm
    assert isinstance(branch, SSMBranch)
    return branch


def sequence(tokens: int, dtype: torch.dtype = torch.float64, batch: int = 2) -> Tensor:
    return torch.randn(batch, tokens, DIM, generator=torch.Generator().manual_seed(tokens), dtype=torch.float64).to(
        dtype
    )


def error(want: Tensor, got: Tensor) -> float:
    """Relative RMS error."""
    return float(((want - got).square().mean().sqrt() / want.square().mean().sqrt()).detach())


# ------------------------------------------------------------------------------------------------------ module


@pytest.mark.parametrize("part", SMALL, ids=str)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_chunks_on_a_state_are_the_whole_sequence(part: SSM, dtype: torch.dtype, bound: float) -> None:
    branch, x = branch_of(part, dtype), sequence(63, dtype)
    state: dict[str, Tensor] = {}
    with torch.no_grad():
        pieces = [branch.extend(piece, state) for piece in x.split([1, 1, 1, 20, 2, 38], 1)]
        assert float((branch(x) - torch.cat(pieces, 1)).abs().max()) <= bound


@pytest.mark.parametrize("part", SMALL, ids=str)
def test_states_are_as_large_as_the_cost_says(part: SSM) -> None:
    """Convolution inputs in the activations' dtype, the recurrence in fp32."""
    state: dict[str, Tensor] = {}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        branch_of(part, torch.float32).extend(sequence(20, torch.float32, batch=1), state)
    assert sum(t.numel() * t.element_size() for t in state.values()) == part.cost(CTX).state_bytes
    assert part.cost(CTX).kv_bytes == 0.0


@pytest.mark.parametrize("part", SMALL, ids=str)
def test_bf16_autocast_stays_bf16_and_close(part: SSM) -> None:
    branch, x = branch_of(part, torch.float32), sequence(63, torch.float32)
    want = branch.mix(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = branch.mix(x)
    assert got.dtype == torch.bfloat16
    assert error(want, got.float()) <= 0.02
    got.float().square().mean().backward()
    grads = {n: p.grad for n, p in branch.named_parameters() if not n.startswith("norm.")}
    assert all(g is not None and g.dtype == torch.float32 and bool(g.isfinite().all()) for g in grads.values())


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("kind", [Mamba2, Mamba])
def test_flops_are_those_counted(kind: type[SSM], gate: bool) -> None:
    """The counter sees matmuls only: Mamba's are less than its cost by 5 of 7 operations per state entry."""
    ctx = Context(dim=128, norm="rmsnorm", vocab=37, init_std=0.02, branches=1, seq_len=256)
    part = kind(gate=gate)
    module = part.build(ctx)
    assert isinstance(module, SSMBranch)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.1, 0.1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.mix(torch.randn(2, 256, 128))
    counted = counter.get_total_flops() / 512
    unseen = 5.0 * part.d_state * part.inner(ctx) if kind is Mamba else 0.0
    assert part.cost(ctx).flops == pytest.approx(counted + unseen, rel=0.05)


def test_mamba_keeps_one_state_a_tile_for_the_backward_pass() -> None:
    """The states of all tokens would be 32 times as much."""
    branch, kept = branch_of(Mamba(d_state=16), torch.float32), {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        branch.mix(sequence(256, torch.float32))
    states = 2 * 256 * 48 * 16 * 4
    assert sum(kept.values()) < states


# ----------------------------------------------------------------------------------------------- start, identity


def test_decays_and_steps_start_where_the_papers_say() -> None:
    state = initial_state(blueprint_of(Mamba2(head_dim=1, expand=40.0), Mamba(d_state=6, expand=40.0)), 0)
    a_H = state["blocks.0.ssm.a_log"].exp()
    assert 1.0 <= float(a_H.min()) < 2.0
    assert 15.0 < float(a_H.max()) <= 16.0
    for block in (0, 1):
        dt = nn.functional.softplus(state[f"blocks.{block}.ssm.dt_bias"])
        assert 0.99e-3 <= float(dt.min()) < 2e-3
        assert 0.05 < float(dt.max()) <= 0.101
        assert float(dt.median()) == pytest.approx(1e-2, rel=0.5)
        assert bool((state[f"blocks.{block}.ssm.d"] == 1).all())
    a_NF = state["blocks.1.ssm.a_log"].view(6, -1).exp()
    torch.testing.assert_close(a_NF, torch.arange(1.0, 7.0)[:, None].expand_as(a_NF))


def test_decays_steps_and_skips_have_no_weight_decay() -> None:
    table = specs(blueprint_of(*PEERED))
    for name, (_, short, spec) in table.items():
        if short in ("a_log", "dt_bias", "d"):
            assert not decays(spec), name


@pytest.mark.parametrize(
    ("kind", "inert", "read"), [(Mamba2, {"dt_rank": 3}, {"head_dim": 8}), (Mamba, {"head_dim": 8}, {"dt_rank": 3})]
)
def test_fields_of_the_other_kind_and_the_chunk_have_no_effect(
    kind: Any, inert: dict[str, int], read: dict[str, int]
) -> None:
    plain = blueprint_of(kind())
    assert digest(blueprint_of(kind(**inert))) == digest(plain)
    assert digest(blueprint_of(kind(chunk=7))) == digest(plain)
    assert digest(blueprint_of(kind(**read))) != digest(plain)


@pytest.mark.parametrize("part", SMALL, ids=str)
def test_the_chunk_changes_nothing_but_rounding(part: SSM) -> None:
    x = sequence(63)
    want = branch_of(part).mix(x)
    for chunk in (1, 7, 64, 500):
        changed = part.model_copy(update={"chunk": chunk})
        torch.testing.assert_close(branch_of(changed).mix(x), want, rtol=0.0, atol=1e-12)


# ------------------------------------------------------------------------------------------------- inheritance


def spliced(parent: SSM, child: SSM) -> tuple[dict[str, Tensor], dict[str, Tensor], bool, float]:
    """Parent's and child's tensors of the part, what the splice says of exactness, and max |Δlogit| / max |logit|."""
    before, after = blueprint_of(parent), blueprint_of(child)
    draw = torch.Generator().manual_seed(2)
    state = {
        n: t.double() if n.endswith("eps") else t.double() + 0.1 * torch.randn(t.shape, generator=draw).double()
        for n, t in initial_state(before, 0).items()
    }
    new, report = inherit(after, [(before, state)], seed=1)
    ids_BT = torch.randint(37, (2, 40), generator=draw)
    with torch.no_grad():
        old_BTV, new_BTV = assemble(before, state)(ids_BT), assemble(after, new)(ids_BT)
    moved = float((old_BTV - new_BTV).abs().max() / old_BTV.abs().max())
    return part_of(state), part_of(new), report.exact, moved


def part_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("blocks.0.ssm."): tensor for name, tensor in state.items() if ".ssm." in name}


def growths() -> Iterator[Any]:
    mamba2, mamba = {"d_state": 4, "head_dim": 6}, {"d_state": 4, "dt_rank": 3}
    for gate in (True, False):
        for name, change in {
            "state": {"d_state": 9},
            "heads": {"expand": 3.25},
            "wider heads": {"head_dim": 12, "expand": 4.0},
            "taps": {"d_conv": 7},
            "split heads": {"head_dim": 2},
            "all": {"d_state": 5, "expand": 4.0, "d_conv": 5, "head_dim": 8, "chunk": 3},
        }.items():
            yield pytest.param(
                Mamba2(**mamba2, gate=gate), {"gate": gate, **mamba2, **change}, id=f"mamba2 {name} {gate}"
            )
        for name, change in {
            "state": {"d_state": 9},
            "channels": {"expand": 3.0},
            "rank": {"dt_rank": 7},
            "taps": {"d_conv": 7},
            "all": {"d_state": 5, "expand": 4.0, "d_conv": 5, "dt_rank": 4, "chunk": 3},
        }.items():
            yield pytest.param(Mamba(**mamba, gate=gate), {"gate": gate, **mamba, **change}, id=f"mamba {name} {gate}")


@pytest.mark.parametrize(("parent", "fields"), list(growths()))
def test_growth_is_exact(parent: SSM, fields: dict[str, Any]) -> None:
    _, _, exact, moved = spliced(parent, type(parent)(**fields))
    assert exact
    assert moved <= 1e-12


def test_halves_of_a_head_have_its_decay_step_and_skip() -> None:
    parent, child, _, _ = spliced(Mamba2(head_dim=12), Mamba2(head_dim=6))
    for name in ("a_log", "dt_bias", "d", "dt.weight"):
        assert torch.equal(child[name], parent[name].repeat_interleave(2, 0)), name
    for name in ("x.weight", "z.weight", "out.weight", "out_norm.weight"):
        assert torch.equal(child[name], parent[name]), name


def test_merged_heads_have_the_mean_decay_and_say_that_they_are_lossy() -> None:
    parent, child, exact, moved = spliced(Mamba2(head_dim=6), Mamba2(head_dim=12))
    torch.testing.assert_close(child["a_log"], parent["a_log"].view(-1, 2).mean(1))
    assert torch.equal(child["x.weight"], parent["x.weight"])
    assert not exact
    assert moved > 1e-6


def test_a_shorter_convolution_keeps_the_latest_taps() -> None:
    parent, child, exact, moved = spliced(Mamba(d_conv=4), Mamba(d_conv=2))
    assert torch.equal(child["conv_x.weight"], parent["conv_x.weight"][:, 2:])
    assert not exact
    assert moved > 1e-6


@pytest.mark.parametrize(("parent", "child"), [(Mamba2(head_dim=6), Mamba()), (Mamba(), Mamba2(head_dim=6))])
def test_another_kind_takes_over_projections_and_convolution(parent: SSM, child: SSM) -> None:
    before, after, exact, moved = spliced(parent, child)
    for name in ("x.weight", "z.weight", "conv_x.weight", "conv_x.bias", "out.weight", "norm.weight", "norm.eps"):
        assert torch.equal(before[name], after[name]), name
    assert not exact
    assert moved > 1e-6
