"""Merges against references written here; genes are aligned as inheritance aligns them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Merging
from morphogen.errors import InputError
from morphogen.fusion.merging import merge, merge_checkpoints
from morphogen.inherit import merging
from morphogen.inherit.checkpoint import load_checkpoint, save_checkpoint
from morphogen.inherit.merging import METHODS, NEED_BASE, PASSTHROUGH, Model, Settings
from morphogen.inherit.splice import from_parent
from morphogen.network import assemble, initial_state
from tiny import Cli

Array = NDArray[np.float64]
BLOCK = {"attn": {"kind": "MHA", "heads": 2, "head_dim": 4}, "ffn": {"kind": "dense", "hidden": 12}}
PLAIN = Blueprint.model_validate({"emb": {"dim": 8, "vocab": 30}, "blocks": [BLOCK, BLOCK]})


def model(seed: int, blueprint: Blueprint = PLAIN) -> Model:
    state = initial_state(blueprint, seed)
    noise = torch.Generator().manual_seed(seed)
    moved = {n: t if n.endswith("eps") else t + 0.1 * torch.randn(t.shape, generator=noise) for n, t in state.items()}
    return Model(blueprint, moved)


A, B, C = model(1), model(2), model(3)
TRAINED = [name for name in A.state if not name.endswith("eps")]


def far(a: Tensor, b: Tensor | Array) -> float:
    return float((a.double() - torch.as_tensor(b)).abs().max())


def arrays(name: str, *models: Model) -> list[Array]:
    return [each.state[name].double().numpy() for each in models]


@pytest.mark.parametrize("method", ["linear", "slerp"])
@pytest.mark.parametrize(("weights", "wanted"), [((1.0, 0.0), A), ((0.0, 1.0), B)])
def test_at_its_ends_a_path_is_at_its_models(method: str, weights: tuple[float, ...], wanted: Model) -> None:
    made = merge(method, [A, B], Settings(weights))
    assert max(far(made.state[name], wanted.state[name].double()) for name in TRAINED) <= 1e-6


def test_linear_is_the_weighted_mean() -> None:
    made = merge("linear", [A, B, C], Settings((1.0, 2.0, 1.0)))
    for name in TRAINED:
        a, b, c = arrays(name, A, B, C)
        assert far(made.state[name], (a + 2 * b + c) / 4) <= 1e-6


def test_slerp_turns_by_a_share_of_the_angle_and_keeps_the_norm_of_equal_norms() -> None:
    made = merge("slerp", [A, B], Settings((0.7, 0.3)))
    for name in TRAINED:
        a, b = arrays(name, A, B)
        cosine = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
        if abs(cosine) > 0.9995:
            continue
        angle = np.arccos(cosine)
        wanted = (np.sin(0.7 * angle) * a + np.sin(0.3 * angle) * b) / np.sin(angle)
        assert far(made.state[name], wanted) <= 1e-6


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "della"])
def test_a_weight_scales_a_delta_by_it(method: str) -> None:
    made = merge(method, [A], Settings((0.3,), density=1.0, epsilon=0.0), base=C)
    for name in TRAINED:
        a, c = arrays(name, A, C)
        assert far(made.state[name], c + 0.3 * (a - c)) <= 1e-6


def test_task_arithmetic_adds_deltas() -> None:
    made = merge("task_arithmetic", [A, B], Settings((0.3, -0.5)), base=C)
    for name in TRAINED:
        a, b, c = arrays(name, A, B, C)
        assert far(made.state[name], c + 0.3 * (a - c) - 0.5 * (b - c)) <= 1e-6


def reference_ties(deltas: Sequence[Array], weights: Sequence[float], density: float) -> Array:
    """Entry by entry, as the paper has it."""
    trimmed = []
    for delta in deltas:
        count = max(1, round(density * delta.size))
        least = np.sort(np.abs(delta).ravel())[::-1][count - 1]
        trimmed.append(np.where(np.abs(delta) >= least, delta, 0.0))
    out = np.zeros_like(deltas[0])
    for place in np.ndindex(*out.shape):
        entries = [w * t[place] for w, t in zip(weights, trimmed, strict=True)]
        sign = np.sign(sum(entries))
        same = [entry for entry in entries if entry and np.sign(entry) == sign]
        out[place] = sum(same) / len(same) if same else 0.0
    return out


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_trims_elects_and_means(density: float) -> None:
    models, weights = [A, B, model(5)], (0.5, 0.8, 1.0)
    made = merge("ties", models, Settings(weights, density=density), base=C)
    for name in TRAINED:
        *theirs, c = arrays(name, *models, C)
        wanted = reference_ties([each - c for each in theirs], weights, density)
        assert far(made.state[name], c + wanted) <= 1e-6
        got = made.state[name].double().numpy() - c
        moved = np.abs(wanted) > 1e-6
        assert (np.sign(got)[moved] == np.sign(wanted)[moved]).all()


@pytest.mark.parametrize("method", ["dare_ties", "della"])
def test_dropping_keeps_the_share_that_is_asked_for_and_the_mean(method: str) -> None:
    plain = Blueprint.model_validate({"emb": {"dim": 256, "vocab": 300}, "blocks": [BLOCK]})
    a, c = model(1, plain), model(3, plain)
    how = Settings((1.0,), density=0.3, epsilon=0.2)
    made = merge(method, [a], how, base=c)
    name = "emb.weight"
    delta, got = a.state[name] - c.state[name], made.state[name] - c.state[name]
    kept = got.abs() > 1e-9
    assert float(kept.float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(got.mean()) == pytest.approx(float(delta.mean()), abs=0.01)
    ratio = (got / delta)[kept]
    if method == "dare_ties":
        assert torch.allclose(ratio, torch.tensor(1 / 0.3), rtol=1e-3)
    else:  # of a row's largest entries more stay than of its smallest, and are less enlarged
        rank = delta.abs().argsort(-1).argsort(-1)
        shares = [float(kept[(rank >= low) & (rank < low + 64)].float().mean()) for low in (0, 192)]
        assert shares == pytest.approx([0.225, 0.375], abs=0.02)
        assert float(ratio.min()) == pytest.approx(1 / 0.4, rel=0.01)
        assert float(ratio.max()) == pytest.approx(1 / 0.2, rel=0.01)
    again, other = merge(method, [a], how, base=c), merge(method, [a], how._replace(seed=1), base=c)
    assert torch.equal(again.state[name], made.state[name])
    assert not torch.equal(other.state[name], made.state[name])


def test_passthrough_stacks_blocks_unchanged() -> None:
    made = merge("passthrough", [A, B], Settings((1.0, 1.0)))
    assert [block.id for block in made.blueprint.blocks] == ["b0", "b1", "b0_0", "b1_0"]
    assert torch.equal(made.state["blocks.1.attn.q.weight"], A.state["blocks.1.attn.q.weight"])
    assert torch.equal(made.state["blocks.2.attn.q.weight"], B.state["blocks.0.attn.q.weight"])
    ids = torch.randint(30, (1, 9))
    ours, one, two = (assemble(*each).eval() for each in (made, A, B))
    with torch.no_grad():
        x = one._block(1, 0, one._block(0, 0, one.emb(ids)))
        x = two._block(1, 0, two._block(0, 0, x))
        assert torch.allclose(ours(ids), one._logits(one.norm(x)), atol=1e-6)


def test_genes_are_aligned_by_id_and_axes_and_what_one_lacks_stays() -> None:
    wide = {**BLOCK, "id": "b1", "ffn": {"kind": "dense", "hidden": 16}}
    other = Blueprint.model_validate({"emb": {"dim": 8, "vocab": 30}, "blocks": [wide, {**BLOCK, "id": "b7"}]})
    b = model(2, other)
    made = merge("linear", [A, b], Settings((0.5, 0.5)))
    assert made.blueprint == PLAIN
    assert torch.equal(made.state["blocks.0.attn.q.weight"], A.state["blocks.0.attn.q.weight"])
    wanted = (A.state["blocks.1.attn.q.weight"] + b.state["blocks.0.attn.q.weight"]) / 2
    assert torch.allclose(made.state["blocks.1.attn.q.weight"], wanted, atol=1e-7)
    back = merge("linear", [b, A], Settings((0.5, 0.5)))
    up, theirs, mine = (each.state for each in (back, b, A))
    assert torch.equal(up["blocks.0.ffn.up.weight"][12:], theirs["blocks.0.ffn.up.weight"][12:])
    half = (theirs["blocks.0.ffn.up.weight"][:12] + mine["blocks.1.ffn.up.weight"]) / 2
    assert torch.allclose(up["blocks.0.ffn.up.weight"][:12], half, atol=1e-7)
    assert assemble(*back)(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 30)


@pytest.mark.parametrize(
    ("method", "models", "how", "base", "said"),
    [
        ("liner", [A, B], Settings((1.0, 1.0)), None, "did you mean 'linear'"),
        ("slerp", [A, B, C], Settings((1.0, 1.0, 1.0)), None, "got 3 models, expected two"),
        ("ties", [A, B], Settings((1.0, 1.0)), None, "needs --base"),
        ("linear", [A, B], Settings((1.0, 1.0)), C, "--base: has no effect"),
        ("linear", [A, B], Settings((1.0,)), None, "got 1 weights for 2 models"),
        ("linear", [A, B], Settings((1.0, -1.0)), None, "the sum is 0"),
        ("ties", [A], Settings((1.0,), density=0.0), C, "--density: got 0"),
    ],
)
def test_what_does_not_go_together_is_told(method: str, models: Any, how: Settings, base: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        merge(method, models, how, base)


#: Method -> the options that it reads, of those below.
READS = {
    "linear": {"weight"},
    "slerp": {"weight"},
    "task_arithmetic": {"weight"},
    "ties": {"weight", "density"},
    "dare_ties": {"weight", "density", "seed"},
    "della": {"weight", "density", "epsilon", "seed"},
    "passthrough": set[str](),
}


def test_options_that_a_method_does_not_read_are_refused(cli: Cli, tmp_path: Path) -> None:
    files = [tmp_path / f"{letter}.safetensors" for letter in "ab"]
    for path, each in zip(files, (A, B), strict=True):
        save_checkpoint(path, each.state, each.blueprint, {})
    assert READS.keys() == {*METHODS, PASSTHROUGH}
    for method, reads in READS.items():
        based = ("--base", files[0]) if method in NEED_BASE else ()
        for name, value in (("weight", 0.5), ("density", 0.4), ("epsilon", 0.1), ("seed", 3)):
            out = tmp_path / f"{method}-{name}.safetensors"
            code, _, err = cli("merge", *files, "--method", method, *based, f"--{name}", value, "--out", out)
            said = "" if name in reads else f"--{name}: has no effect with --method {method}"
            assert (code, said in err, out.exists()) == (0 if name in reads else 2, True, name in reads), err


def test_models_without_a_common_gene_are_not_merged() -> None:
    strange = Blueprint.model_validate({"emb": {"dim": 8, "vocab": 30}, "blocks": [{**BLOCK, "id": "x"}]})
    with pytest.raises(InputError, match="model 2 and the first have no gene in common"):
        merge("linear", [A, model(2, strange)], Settings((0.5, 0.5)))
    narrow = Blueprint.model_validate({"emb": {"dim": 4, "vocab": 30}, "blocks": [BLOCK]})
    with pytest.raises(InputError, match="model 2 has width 4"):
        merge("passthrough", [A, model(2, narrow)], Settings((1.0, 1.0)))


def test_a_base_without_a_common_gene_is_the_commands_mistake_and_leaves_a_childs_weights_alone() -> None:
    strange = model(3, Blueprint.model_validate({"emb": {"dim": 8, "vocab": 30}, "blocks": [{**BLOCK, "id": "x"}]}))
    for method in sorted(NEED_BASE):
        how = Settings((0.5, 0.5))
        with pytest.raises(InputError, match="the base and the models have no gene in common"):
            merge(method, [A, B], how, strange)
        made, several = merging.mix(method, [A, B], how, strange)
        assert all(torch.equal(made.state[n], A.state[n]) for n in TRAINED if n.startswith("blocks."))
        assert not any(name.startswith("blocks.") for name in several)


def test_only_what_was_merged_is_said_to_be() -> None:
    more = Blueprint.model_validate({**PLAIN.to_json(), "blocks": [*PLAIN.to_json()["blocks"], {**BLOCK, "id": "x"}]})
    _, several = merging.mix("linear", [model(1, more), B], Settings((0.5, 0.5)))
    assert {name.split(".")[1] for name in several if name.startswith("blocks.")} == {"0", "1"}
    parents = [(each.blueprint, from_parent(dict(each.state))) for each in (model(1, more), B)]
    how = Merging(method="linear", weights=(0.5, 0.5))
    _, whole = merging.merged(how, parents, more, None)
    said = whole.report(more, False, (), 0, ("p", "q"))
    assert [(each.gene, each.how) for each in said.genes if each.gene in ("b0", "b1", "x")] == [
        ("b0", "merged"),
        ("b1", "merged"),
        ("x", "whole"),
    ]


def test_checkpoints_are_merged_into_one(tmp_path: Path) -> None:
    files = [tmp_path / f"{letter}.safetensors" for letter in "ab"]
    for path, each in zip(files, (A, B), strict=True):
        save_checkpoint(path, each.state, each.blueprint, {"tokenizer": "t", "tokenizer_name": "bytes"})
    out = tmp_path / "out.safetensors"
    found = merge_checkpoints(files, out, "linear", Settings((0.5, 0.5)))
    assert found.blocks == 2
    state, blueprint, metadata = load_checkpoint(out)
    assert blueprint == PLAIN
    assert metadata["tokenizer"] == "t"
    assert '"method": "linear"' in metadata["merged"]
    assert torch.allclose(state["emb.weight"], (A.state["emb.weight"] + B.state["emb.weight"]) / 2)
    with pytest.raises(InputError, match="is there already; --force"):
        merge_checkpoints(files, out, "linear", Settings((0.5, 0.5)))
    save_checkpoint(files[1], B.state, B.blueprint, {"tokenizer": "other"})
    with pytest.raises(InputError, match="was trained with the tokenizer other"):
        merge_checkpoints(files, out, "linear", Settings((0.5, 0.5)), force=True)


def test_every_method_names_its_formula_and_paper() -> None:
    for method in METHODS.values():
        assert method.__doc__
        assert "θ" in method.__doc__ or "As `" in method.__doc__
        assert any(word in method.__doc__ for word in ("arXiv", "2311.03099", "Shoemake"))
