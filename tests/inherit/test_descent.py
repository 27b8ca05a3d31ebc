"""From parents to children over checkpoints: chains of exact edits, reports, memory that is shared or not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from examples import up_to
from morphogen.blueprint.diff import changes
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.candidate import Candidate, Edit, Job, ParentRef
from morphogen.errors import InputError
from morphogen.inherit.checkpoint import load_checkpoint, save_checkpoint
from morphogen.inherit.descent import inherit, splice_job
from morphogen.inherit.plan import plan
from morphogen.network import assemble, initial_state
from morphogen.parts.contract.operator import OPERATORS
from morphogen.variation.crossover import CROSSOVERS
from morphogen.variation.operator import apply_operator, mutate
from strategies import VOCAB, blueprints, rngs

FP64_BOUND = 1e-12
EXACT = sorted(name for name, op in OPERATORS.items() if op.preserves is not False)

some = settings(max_examples=up_to(12), deadline=None, suppress_health_check=list(HealthCheck))


def stirred(blueprint: Blueprint, seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A state as after training: no gain is one, no gate is zero."""
    noise = torch.Generator().manual_seed(seed + 1)
    return {
        name: (x if name.endswith(("eps", "slopes")) else x + 0.02 * torch.randn(x.shape, generator=noise)).to(dtype)
        for name, x in initial_state(blueprint, seed).items()
    }


def logits(blueprint: Blueprint, state: dict[str, Tensor]) -> Tensor:
    ids_BT = torch.randint(VOCAB, (2, 33), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return assemble(blueprint, state).eval()(ids_BT)


def job_of(folder: Path, child: Blueprint, edits: tuple[Edit, ...], parents: list[Blueprint]) -> Job:
    """A job whose parents' checkpoints are `p0.safetensors` and so on in `folder`."""
    refs = tuple(
        ParentRef(id=f"p{i}", blueprint=parent.to_json(), checkpoint=f"p{i}.safetensors")
        for i, parent in enumerate(parents)
    )
    candidate = Candidate(id="c", index=1, generation=1, blueprint=child.to_json(), edits=edits)
    where = {"run_dir": str(folder), "device": "cpu"}
    return Job(experiment={}, candidate=candidate, parents=refs, ancestors=(), stages=(), seed=0, **where)


def exact_chain(blueprint: Blueprint, rng: np.random.Generator, length: int) -> list[tuple[Blueprint, Edit]]:
    """Up to `length` edits that all say they are exact, each with the blueprint it leads to."""
    chain: list[tuple[Blueprint, Edit]] = []
    for i in rng.permutation(len(EXACT)):
        made = apply_operator(blueprint, EXACT[i], rng)
        if made is not None and made[1].preserves:
            chain.append(made)
            blueprint = made[0]
        if len(chain) == length:
            break
    return chain


def chains_are_exact(folder: Path, blueprint: Blueprint, rng: np.random.Generator, length: int) -> None:
    """Through one job, and through a checkpoint after every edit."""
    chain = exact_chain(blueprint, rng, length)
    assume(len(chain) >= 2)
    state = stirred(blueprint, 3)
    before = logits(blueprint, state)
    bound = len(chain) * FP64_BOUND * float(before.abs().max())
    save_checkpoint(folder / "p0.safetensors", state, blueprint, {})
    at_once = splice_job(job_of(folder, chain[-1][0], tuple(edit for _, edit in chain), [blueprint]), 5)
    names = [edit.operator for _, edit in chain]
    assert at_once.report.exact, (names, at_once.report.notes)
    assert float((logits(chain[-1][0], at_once.state) - before).abs().max()) <= bound, names
    here = blueprint
    for child, edit in chain:
        one = splice_job(job_of(folder, child, (edit,), [here]), 6)
        assert one.report.exact, edit
        save_checkpoint(folder / "p0.safetensors", one.state, child, {})
        here = child
    last, found, _ = load_checkpoint(folder / "p0.safetensors")
    assert found == here
    assert float((logits(here, last) - before).abs().max()) <= bound, names


@given(blueprint=blueprints(max_blocks=3), rng=rngs(), length=st.integers(2, 5))
@some
def test_exact_after_exact_is_exact(
    tmp_path_factory: pytest.TempPathFactory, blueprint: Blueprint, rng: np.random.Generator, length: int
) -> None:
    chains_are_exact(tmp_path_factory.mktemp("chain"), blueprint, rng, length)


@pytest.mark.slow
@given(blueprint=blueprints(), rng=rngs(), length=st.integers(2, 5))
@settings(some, max_examples=50)
def test_exact_after_exact_is_exact_on_many_blueprints(
    tmp_path_factory: pytest.TempPathFactory, blueprint: Blueprint, rng: np.random.Generator, length: int
) -> None:
    chains_are_exact(tmp_path_factory.mktemp("chain"), blueprint, rng, length)


@given(root=blueprints(), rng=rngs())
@some
def test_every_tensor_of_parent_and_child_is_accounted_for(root: Blueprint, rng: np.random.Generator) -> None:
    child = mutate(root, rng, 3, {}).child
    drawn = plan(child, [root])
    assert sorted(item.tensor for item in drawn.tensors) == sorted(specs(child))
    read = {item.source for item in drawn.tensors if item.source is not None and not item.clear}
    read |= {source for item in drawn.derived for source in item.sources}
    read -= {item.name for item in drawn.derived}
    gone = {item.tensor for item in drawn.dropped}
    assert not read & gone
    assert read | gone == set(specs(root))
    _, report = inherit(child, [(root, stirred(root, 0))])
    assert report.dropped == sum(item.entries for item in drawn.dropped)
    assert report.inherited + report.resized + report.fresh == sum(x.numel() for x in initial_state(child, 0).values())


# ------------------------------------------------------------------------------------------------- of two parents


def model(dim: int, hidden: tuple[int, ...], norm: str = "rmsnorm", vocab: int = 37, **fields: object) -> Blueprint:
    attn = {"kind": "MHA", "heads": 2, "head_dim": 8}
    blocks = [{"attn": attn, "ffn": {"kind": "dense", "hidden": size}} for size in hidden]
    return Blueprint.model_validate({"emb": {"dim": dim, "vocab": vocab}, "norm": norm, "blocks": blocks, **fields})


@pytest.mark.parametrize(
    "second",
    [
        model(24, (16, 40)),
        model(12, (16, 40)),
        model(16, (24, 24), norm="layernorm"),
        model(16, (16, 24, 40, 16), vocab=50),
        model(24, (8, 8), recurrences=[{"start": 0, "end": 1}], head={"tie_embeddings": False}),
    ],
    ids=["wider", "narrower", "other norm", "deeper, more tokens", "looped and untied"],
)
@pytest.mark.parametrize("way", sorted(CROSSOVERS))
def test_the_report_says_what_came_from_whom(way: str, second: Blueprint) -> None:
    first = model(16, (24, 16))
    parents = [(first, stirred(first, 1)), (second, stirred(second, 2))]
    child, (edit,) = next(
        made for seed in range(99) if (made := CROSSOVERS[way](first, second, np.random.default_rng(seed))) is not None
    )
    assert child.norm == first.norm
    assert child.recurrences == first.recurrences
    state, report = inherit(child, parents, sources=edit.sources)
    assert torch.isfinite(logits(child, state)).all()
    origins = {origin.gene: origin for origin in report.genes}
    assert (origins["stem"].parent, origins["stem"].how) == ("0", "whole")
    assert {gene: origins[gene].parent for gene in edit.sources} == {g: str(i) for g, i in edit.sources.items()}
    for gene, which in edit.sources.items():
        resized = which == 1 and second.emb.dim != first.emb.dim
        fresh = which == 1 and second.emb.dim < first.emb.dim
        assert origins[gene].how == ("resized" if resized else "whole")
        assert (origins[gene].fresh > 0) == fresh
    assert sum(o.carried for o in report.genes) == report.inherited + report.resized
    assert sum(o.fresh for o in report.genes) == report.fresh
    for name, (gene, _, _) in specs(child).items():  # whole blocks come bit for bit
        if gene.block is not None and origins[gene.block.id].how == "whole":
            blueprint, weights = parents[edit.sources[gene.block.id]]
            at = [block.id for block in blueprint.blocks].index(gene.block.id)
            assert torch.equal(state[name], weights[f"blocks.{at}.{name.split('.', 2)[2]}"])


@given(root=blueprints(min_blocks=2), rng=rngs())
@some
def test_a_crossing_of_descendants_splices_whatever_became_of_them(root: Blueprint, rng: np.random.Generator) -> None:
    first, second = mutate(root, rng, 4, {}).child, mutate(root, rng, 4, {}).child
    proposal = next((p for make in CROSSOVERS.values() if (p := make(first, second, rng)) is not None), None)
    assume(proposal is not None)
    child, (edit,) = proposal
    parents = [(first, stirred(first, 1)), (second, stirred(second, 2))]
    state, report = inherit(child, parents, sources=edit.sources)
    assert all(torch.isfinite(x).all() for x in state.values())
    assert {o.gene for o in report.genes} == {"stem", *edit.sources, *(loop.id for loop in child.recurrences)}
    drawn = plan(child, [first, second], edit.sources)
    read = {(item.parent, item.source) for item in drawn.tensors if item.source is not None and not item.clear}
    read |= {(item.parent, source) for item in drawn.derived for source in item.sources}
    read -= {(item.parent, item.name) for item in drawn.derived}
    gone = {(item.parent, item.tensor) for item in drawn.dropped}
    assert not read & gone
    assert read | gone == {(i, name) for i, side in enumerate((first, second)) for name in specs(side)}


def test_fresh_entries_of_a_grown_tensor_have_the_scale_of_a_new_one() -> None:
    parent, child = model(256, (64,)), model(256, (512,))
    state, _ = inherit(child, [(parent, stirred(parent, 0))])
    for name, wanted in (("gate", 256**-0.5), ("up", 256**-0.5)):
        fresh = state[f"blocks.0.ffn.{name}.weight"][64:]
        assert fresh.shape == (448, 256)
        assert float(fresh.std()) == pytest.approx(wanted, rel=0.02)
        assert abs(float(fresh.mean())) < 0.02 * wanted
    assert not state["blocks.0.ffn.down.weight"][:, 64:].any()


def test_a_tensor_of_which_no_entry_is_carried_starts_afresh() -> None:
    def mixture(place: int) -> Blueprint:
        ffn = {"kind": "moe", "hidden": 8, "n_experts": 3, "twins": [place]}
        return Blueprint.model_validate({"emb": {"dim": 8, "vocab": VOCAB}, "blocks": [{"ffn": ffn}]})

    parent, child = mixture(0), mixture(1)
    old = stirred(parent, 0)
    state, report = inherit(child, [(parent, old)])
    assert not report.exact
    assert not torch.equal(state["blocks.0.ffn.twin.weight"], old["blocks.0.ffn.twin.weight"])
    assert torch.equal(state["blocks.0.ffn.up.weight"][:2], old["blocks.0.ffn.up.weight"][:2])
    assert report.fresh >= 8


# ------------------------------------------------------------------------------------------------ shared memory


def test_parents_in_memory_are_copied_and_those_on_disk_are_not_written_to(tmp_path: Path) -> None:
    parent = model(16, (24, 16))
    child = parent.evolve(head={"tie_embeddings": False})
    assert child is not None
    edit = Edit(operator="untie_head", target="model", preserves=True, changes=changes(parent, child))
    state = stirred(parent, 0, torch.float32)
    held, _ = inherit(child, [(parent, state)])
    assert not {x.data_ptr() for x in held.values()} & {x.data_ptr() for x in state.values()}
    path = tmp_path / "p0.safetensors"
    save_checkpoint(path, state, parent, {})
    before = path.read_bytes()
    found = splice_job(job_of(tmp_path, child, (edit,), [parent]), 0).state
    assert len({x.data_ptr() for x in found.values()}) == len(found)  # the head is a copy of the embedding
    for tensor in found.values():
        tensor.add_(1.0)
    assert path.read_bytes() == before
    assert all(torch.equal(found[name], held[name] + 1.0) for name in held)


def test_a_state_that_is_not_its_blueprints_is_refused_before_anything_is_made_of_it() -> None:
    parent, child = model(16, (24,)), model(16, (32,))
    state = stirred(parent, 0)
    name = "blocks.0.ffn.up.weight"
    for wrong, said in (
        ({key: x for key, x in state.items() if key != name}, f"1 missing .{name}"),
        ({**state, name: state[name].T.contiguous()}, f"of another shape .{name}"),  # would be read row by row
        ({**state, "other": state[name]}, "1 unexpected .other"),
    ):
        with pytest.raises(InputError, match=said):
            inherit(child, [(parent, wrong)])


@pytest.mark.parametrize("other", ["norm", "emb"])
@pytest.mark.parametrize("name", ["widen_dim", "widen_ffn", "dense_to_moe", "duplicate_block"])
def test_what_a_parent_keeps_in_another_precision_its_child_keeps_so(name: str, other: str) -> None:
    root = Blueprint.model_validate(
        {
            "emb": {"dim": 16, "vocab": VOCAB},
            "blocks": [{"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}, "ffn": {"kind": "dense", "hidden": 8}}],
        }
    )
    made = apply_operator(root, name, np.random.default_rng(0))
    assert made is not None
    mixed = {key: x if other in key else x.bfloat16() for key, x in stirred(root, 0, torch.float32).items()}
    state, _ = inherit(made[0], [(root, mixed)])
    for key, tensor in state.items():
        assert tensor.dtype == (torch.float32 if other in key else torch.bfloat16) or key not in mixed
        assert tensor.dtype == torch.bfloat16 or tensor.dim() < 2 or other in key  # what is new, too
    if other == "norm":
        assert logits(made[0], state).isfinite().all()


@pytest.mark.parametrize("first", [torch.float32, torch.bfloat16])
def test_a_child_of_two_precisions_has_its_first_parents(first: torch.dtype) -> None:
    root = Blueprint.model_validate(
        {
            "emb": {"dim": 16, "vocab": VOCAB},
            "blocks": [{"ffn": {"kind": "dense", "hidden": 8}}, {"ffn": {"kind": "dense", "hidden": 8}}],
        }
    )
    second = torch.bfloat16 if first == torch.float32 else torch.float32
    a, b = stirred(root, 0, first), stirred(root, 1, second)
    state, _ = inherit(root, [(root, a), (root, b)], sources={"b0": 0, "b1": 1})
    assert {tensor.dtype for tensor in state.values()} == {first}
    assert torch.equal(state["blocks.1.ffn.up.weight"], b["blocks.1.ffn.up.weight"].to(first))
    assert logits(root, state).isfinite().all()


def test_edits_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    parent, other = model(16, (24,)), model(16, (32,))
    save_checkpoint(tmp_path / "p0.safetensors", stirred(parent, 0), parent, {})
    with pytest.raises(InputError, match="do not lead to the blueprint"):
        splice_job(job_of(tmp_path, other, (), [parent]), 0)
