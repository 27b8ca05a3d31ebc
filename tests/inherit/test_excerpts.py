"""What a model needs of other models goes along with it, and does for them where they are not."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from foreign_models import blueprint, home, ids_of, llama
from morphogen.errors import InputError
from morphogen.inherit.borrowed import donors_of
from morphogen.inherit.checkpoint import load_checkpoint, save_checkpoint
from morphogen.inherit.excerpts import CARRIED, excerpts
from morphogen.network import assemble, initial_state
from morphogen.parts.foreign.donors.donor import open_donor
from morphogen.parts.foreign.foreign import Foreign
from morphogen.store.files import canonical_json
from morphogen.variation.act import Surroundings, apply_operator

__all__ = ["home"]


def test_an_excerpt_is_the_model_but_for_other_layers(home: Path, tmp_path: Path) -> None:
    model = blueprint(home, "a2 b1 a0")
    made = excerpts([model, blueprint(home, "a0")], tmp_path)
    assert made == excerpts([model], tmp_path)
    assert len(list((tmp_path / "donors").iterdir())) == 2
    whole, part = open_donor(str(home / "a")), open_donor(str(tmp_path / made[str(home / "a")]))
    assert part.available == (0, 2)
    assert whole.available == (0, 1, 2)
    assert [part.checksum(layer) for layer in (0, 2)] == [whole.checksum(layer) for layer in (0, 2)]
    with pytest.raises(InputError, match="has no weights of layer 1, expected one of 0, 2"):
        part.read(1)


def test_of_an_excerpt_only_its_layers_are_put_in(home: Path, tmp_path: Path) -> None:
    part = str(tmp_path / excerpts([blueprint(home, "a0 a2")], tmp_path)[str(home / "a")])
    seen = set()
    for seed in range(12):
        made = apply_operator(blueprint(), "insert_foreign", np.random.default_rng(seed), Surroundings(donors=(part,)))
        assert made is not None
        extra = made[0].blocks[0].extras[0]
        assert isinstance(extra, Foreign)
        seen.add(tuple(expert.layer for expert in extra.experts))
    assert seen == {(0,), (2,)}


@pytest.mark.parametrize("fields", [{}, {"freeze": False}, {"lora": 2, "router": "token"}], ids=str)
def test_a_checkpoint_is_whole_with_what_lies_beside_it(tmp_path: Path, fields: dict[str, object]) -> None:
    llama(tmp_path / "a")
    model = blueprint(tmp_path, "a0 a2", **fields)
    state, there = initial_state(model, 0), tmp_path / "one"
    assert excerpts([blueprint()], there) == {}
    with torch.no_grad():
        logits = assemble(model, state)(ids_of())
    carried = excerpts([model], there)
    save_checkpoint(there / "c.safetensors", state, model, {CARRIED: canonical_json(carried)})
    stamps = [one.sha256 for one in donors_of(model, state)]
    shutil.rmtree(tmp_path / "a")
    there.rename(tmp_path / "two")
    again, found, metadata = load_checkpoint(tmp_path / "two" / "c.safetensors")
    assert CARRIED not in metadata
    with torch.no_grad():
        assert torch.equal(assemble(found, again)(ids_of()), logits)
    assert [one.sha256 for one in donors_of(found, again)] == stamps
    assert [*excerpts([found], tmp_path / "two").values()] == [*carried.values()]  # called as before
    save_checkpoint(tmp_path / "two" / "d.safetensors", again, found, metadata)
    assert load_checkpoint(tmp_path / "two" / "d.safetensors")[1] == found
