"""A whole small run with crossovers whose children inherit weights and moments."""

import json
from pathlib import Path

import pytest

from morphogen.blueprint.yaml import read
from morphogen.candidate import MOMENTS_SUFFIX
from morphogen.cli.doctor import examine
from morphogen.cli.status import ancestry
from morphogen.experiment import Evolution, Experiment
from morphogen.keeping import Keep
from morphogen.run import evolve
from tiny import untimed, write_config

pytestmark = pytest.mark.trained_before

#: Enough breeders, of several blocks each, that some pair of them gives a new child.
CHANGES = {
    "ffn: {kind: dense, hidden: 32}": "\n    - ".join(["ffn: {kind: dense, hidden: 32}"] * 3),
    "generations: 2, population: 3, topk_keep: 2": "generations: 2, population: 6, topk_keep: 6, crossover: uniform, "
    "crossover_prob: 0.9",
}


def test_files_of_a_run_say_what_came_from_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    path = write_config(tmp_path, **CHANGES)
    experiment = read(path).parse(Experiment)
    run = evolve(experiment, tmp_path / "run", keep=Keep(cleanup=True))
    nodes = {node.id: node for node in run.lineage.nodes}
    parents: dict[str, list[str]] = {}
    for edge in run.lineage.edges:
        parents.setdefault(edge.child, []).append(edge.parent)
    crossed = [id for id, found in parents.items() if len(found) == 2 and nodes[id].inheritance is not None]
    assert crossed
    for id in crossed:
        edit = next(edge for edge in run.lineage.edges if edge.child == id).edits[0]
        origins = {origin.gene: origin for origin in nodes[id].inheritance.genes}
        assert origins["stem"].parent == parents[id][0]
        assert {gene: origins[gene].parent for gene in edit.sources} == {
            gene: parents[id][which] for gene, which in edit.sources.items()
        }
        candidates, reports = run.lineage.records()
        assert all(f"weights of {parent}: " in ancestry(candidates, reports, id) for parent in parents[id])
    files = sorted(each.name for each in (tmp_path / "run" / "checkpoints").iterdir())
    weights = {name.removesuffix(".safetensors") for name in files if not name.endswith(MOMENTS_SUFFIX)}
    assert {name.removesuffix(MOMENTS_SUFFIX) for name in files if name.endswith(MOMENTS_SUFFIX)} == weights
    assert examine(run.folder) == []
    spoilt = tmp_path / "run" / "checkpoints" / f"{sorted(weights)[0]}{MOMENTS_SUFFIX}"
    spoilt.write_bytes(spoilt.read_bytes()[:-4] + b"abcd")
    assert ["checksum" in finding.wrong and str(spoilt) in finding.wrong for finding in examine(run.folder)] == [True]
    again = evolve(experiment, tmp_path / "again")
    assert json.dumps(untimed(again.folder / "lineage.json")) == json.dumps(untimed(run.folder / "lineage.json"))


def test_moments_are_kept_where_somebody_may_go_on_with_them() -> None:
    def kept(**evolution: object) -> bool:
        return Evolution.model_validate(evolution).keeps_moments

    assert kept()
    assert not kept(inherit_optimizer=False)
    assert not kept(weight_inheritance="scratch")
    assert kept(weight_inheritance="scratch", rungs="asha")
    assert kept(weight_inheritance="init", promotion_prob=0.5)
