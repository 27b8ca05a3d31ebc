"""Memories, the short convolution and plug-ins as parts of a model: decoding, dtypes, costs, peers.

B batch, T tokens, D model dim
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from examples import up_to
from morphogen.parts.contract.branch import Branch, State
from morphogen.parts.contract.initial import draw
from morphogen.parts.contract.part import Context, Part
from morphogen.parts.memory.associative_memory import AssocMemory
from morphogen.parts.memory.chunk_memory import ChunkMemory
from morphogen.parts.memory.memory_tokens import MemoryTokens
from morphogen.parts.memory.retro import AGGREGATORS, Retro
from morphogen.parts.mixing.short_conv import ShortConv
from strategies import PARTS

CTX = Context(dim=12, norm="rmsnorm", vocab=7, init_std=0.02, branches=2)
EXTRAS = sorted(key for key in PARTS if key[0] == "extra")


def module(part: Part, ctx: Context = CTX, dtype: torch.dtype = torch.float32) -> Branch:
    """The part's module, no tensor at a special starting value."""
    built = part.build(ctx)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, spec in part.specs(ctx).items():
        noise = 0.0 if not spec.trained else 0.3 * torch.randn(spec.shape, generator=generator)
        state[name] = (draw(spec.init, spec.shape, generator) + noise).to(dtype)
    built.load_state_dict(state, assign=True)
    assert isinstance(built, Branch)
    return built


def inputs(length: int, dtype: torch.dtype = torch.float64, dim: int = CTX.dim) -> Tensor:
    return torch.randn(2, length, dim, generator=torch.Generator().manual_seed(length), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("slot", "kind"), EXTRAS)
@settings(max_examples=up_to(15))
@given(data=st.data())
def test_chunks_of_any_size_give_what_the_whole_gives(slot: str, kind: str, data: st.DataObject) -> None:
    part, length = data.draw(PARTS[slot, kind]()), data.draw(st.integers(1, 60))
    cuts = sorted(data.draw(st.sets(st.integers(1, length))) | {length})
    for dtype, bound in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        branch, x_BTD, state = module(part, dtype=dtype), inputs(length, dtype), State()
        with torch.no_grad():
            pieces = [branch.extend(x_BTD[:, a:b], state) for a, b in zip([0, *cuts], cuts, strict=False)]
            assert float((torch.cat(pieces, 1) - branch(x_BTD)).abs().max()) <= bound


@pytest.mark.parametrize(
    "part", [Retro(memory_tokens=3, stride=4), AssocMemory(), ShortConv(), MemoryTokens()], ids=str
)
def test_what_is_remembered_stays_within_the_state_that_the_cost_names(part: Part) -> None:
    branch, state, largest = module(part), State(), 0
    with torch.no_grad():
        for t in range(60):
            branch.extend(inputs(60, torch.float32)[:, t : t + 1], state)
            largest = max(largest, sum(tensor[0].numel() for tensor in state.values()))
    cost = part.cost(CTX)
    assert cost.kv_bytes == 0
    entry_bytes = 4 if isinstance(part, AssocMemory) else 2  # fast weights are summed in fp32
    assert entry_bytes * largest == cost.state_bytes


def test_the_cache_of_chunk_memory_grows_by_the_cost_it_names() -> None:
    part, state = ChunkMemory(chunk_size=8, stride=4, heads=3, head_dim=5), State()
    with torch.no_grad():
        module(part).extend(inputs(400, torch.float32), state)
    kept = sum(state[name][0].numel() for name in ("k", "v"))
    assert 2 * kept == pytest.approx(400 * part.cost(CTX).kv_bytes, rel=0.02)
    assert 2 * state["tail"][0].numel() <= part.cost(CTX).state_bytes


@pytest.mark.parametrize(("slot", "kind"), EXTRAS)
@settings(max_examples=5)
@given(data=st.data())
def test_bf16_autocast_keeps_activations_in_bf16_and_trains(slot: str, kind: str, data: st.DataObject) -> None:
    branch, x_BTD = module(data.draw(PARTS[slot, kind]())), inputs(40, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_BTD = branch(x_BTD)
    assert y_BTD.dtype == torch.bfloat16
    y_BTD.float().square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in branch.parameters())
    exact_BTD, y_BTD = branch(x_BTD).detach(), y_BTD.detach()
    error = (y_BTD - exact_BTD).square().mean().sqrt() / exact_BTD.square().mean().sqrt()
    assert float(error) <= 0.1  # a relu near zero, normalised, is as far off as bf16 rounds


@pytest.mark.parametrize(
    "part",
    [
        *(Retro(memory_tokens=8, stride=16, aggregator=how, heads=3, head_dim=16) for how in AGGREGATORS),
        ChunkMemory(chunk_size=32, stride=16, heads=3, head_dim=16),
        MemoryTokens(tokens=24, heads=3, head_dim=16),
        ShortConv(kernel=4, width=40),
    ],
    ids=lambda part: f"{part.kind}-{part.aggregator}" if isinstance(part, Retro) else part.label,
)
def test_flops_are_those_that_torch_counts(part: Part) -> None:
    ctx = replace(CTX, dim=64, seq_len=300)
    branch = module(part, ctx)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        branch(inputs(300, torch.float32, dim=64)[:1])
    assert part.cost(ctx).flops * 300 == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_flops_of_fast_weights_are_those_that_torch_counts_and_the_solve() -> None:
    ctx, length, chunk = replace(CTX, dim=64, seq_len=320), 320, 32
    for feature_map, keys in (("elu", 16), ("dpfp", 32)):
        part = AssocMemory(heads=3, head_dim=16, feature_map=feature_map)
        branch = module(part, ctx)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            branch(inputs(length, torch.float32, dim=64)[:1])
        solve = length * chunk * 3 * (16 + keys)  # a triangle of C × C against F + E columns, half a matmul
        assert part.cost(ctx).flops * length == pytest.approx(counter.get_total_flops() + solve, rel=0.05)


def test_retro_reads_only_finished_chunks_and_only_the_latest() -> None:
    """A token of chunk 0 gets nothing; one of chunk 5 with two remembered depends on chunks 3 and 4, and on itself."""
    branch, x_BTD = module(Retro(memory_tokens=2, stride=4), dtype=torch.float64), inputs(24).requires_grad_()
    y_BTD = branch.mix(x_BTD)
    assert not bool(y_BTD[:, :4].any())
    grad_BTD = torch.autograd.grad(y_BTD[:, 22].sum(), x_BTD)[0]
    moved = [t for t in range(24) if bool(grad_BTD[:, t].any())]
    assert moved == [*range(12, 20), 22]


def test_chunk_memory_reads_every_finished_run() -> None:
    branch, x_BTD = module(ChunkMemory(chunk_size=6, stride=4), dtype=torch.float64), inputs(24).requires_grad_()
    y_BTD = branch.mix(x_BTD)
    assert not bool(y_BTD[:, :6].any())
    grad_BTD = torch.autograd.grad(y_BTD[:, 20].sum(), x_BTD)[0]
    assert [t for t in range(24) if bool(grad_BTD[:, t].any())] == [*range(18), 20]


def test_the_gate_of_retro_starts_at_its_weight() -> None:
    for weight in (0.1, 0.9):
        spec = Retro(gating_weight=weight).specs(CTX)["strength"]
        assert math.tanh(float(draw(spec.init, spec.shape, torch.Generator()))) == pytest.approx(weight)


def test_sizes_that_make_no_sense_are_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match="stride is 9, expected at most chunk_size 8"):
        ChunkMemory(chunk_size=8, stride=9)
    with pytest.raises(ValueError, match="gating_weight"):
        Retro(gating_weight=1.0)
