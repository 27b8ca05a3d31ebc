"""Ways into layers of other models are fitted to text, across tokenizers; what wrote nothing still writes nothing."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import saved, write_tokenizer

from morphogen.blueprint.schema import Blueprint
from morphogen.data.tokenizers import ByteTokenizer
from morphogen.errors import InputError
from morphogen.fusion import calibrating
from morphogen.fusion.calibrating import calibrate
from morphogen.fusion.fused import FusionModel
from morphogen.inherit.descent import inherit
from morphogen.network import assemble, initial_state

TEXT = ["the quick brown fox jumps over the lazy dog, and " * 4, "pack my box with five dozen liquor jugs; " * 8]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny models have few places."""
    monkeypatch.setattr(calibrating, "PIECE", 50)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, model in (("a", "llama"), ("b", "gpt2")):
        saved(model, folder / name)
        write_tokenizer(folder / name)
    return folder


def test_the_hosts_own_layers_are_read_as_they_are(place: Path) -> None:
    """The stream before them is theirs already, so that the fit is the identity."""
    fused = FusionModel([str(place / "a")], [("a", 0), ("a", 1)]).eval()
    ids_BT = torch.arange(3, 40)[None]
    with torch.no_grad():
        before_BTV = fused(ids_BT)
        fits = calibrate(fused.model, fused.tokenizer, TEXT, tokens=400)
        assert all(fit.r2 > 0.999 for fit in fits)
        assert [fit.layer for fit in fits] == [0, 1]
        assert float((fused(ids_BT) - before_BTV).abs().max()) <= 1e-4 * float(before_BTV.abs().max())


def test_a_part_that_writes_nothing_is_fitted_and_still_does(place: Path) -> None:
    blocks = [{"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}}]
    root = Blueprint.model_validate({"emb": {"dim": 16, "vocab": 257}, "blocks": blocks})
    experts = [{"model": str(place / "b"), "layer": 1}, {"model": str(place / "a"), "layer": 1}]
    for fields in ({"router": "simple"}, {"adapter": "bottleneck"}):
        extras = [{"kind": "foreign", "experts": experts, **fields}]
        child = Blueprint.model_validate({**root.to_json(), "blocks": [{**blocks[0], "id": "b0", "extras": extras}]})
        state, _ = inherit(child, [(root, initial_state(root, 0))])
        model = assemble(child, state).train()
        ids_BT = torch.arange(100)[None]
        with torch.no_grad():
            before_BTV = model(ids_BT)
            read = model.get_parameter("blocks.0.extras.0.read.1.weight").clone()
            fits = calibrate(model, ByteTokenizer(), TEXT, tokens=300)
            assert torch.equal(model(ids_BT), before_BTV)
        assert [Path(fit.model).name for fit in fits] == ["b", "a"]
        assert fits[0].r2 < 1.0  # its stream has a mean that no map without a constant gives
        assert 0.0 < fits[1].r2 < 1.0
        assert not torch.equal(model.get_parameter("blocks.0.extras.0.read.1.weight"), read)
        assert model.training


def test_without_text_or_layers_there_is_nothing_to_fit(place: Path) -> None:
    fused = FusionModel([str(place / "a")], [("a", 0)])
    with pytest.raises(InputError, match="got no text"):
        fused.calibrate([])
    root = Blueprint.model_validate(
        {"emb": {"dim": 8, "vocab": 257}, "blocks": [{"ffn": {"kind": "dense", "hidden": 8}}]}
    )
    with pytest.raises(InputError, match="no layers of other models"):
        calibrate(assemble(root, initial_state(root, 0)), ByteTokenizer(), TEXT)


def test_what_cannot_be_fitted_is_told_or_stays(place: Path) -> None:
    fused = FusionModel([str(place / "a")], [("a", 0)])
    for given, said in (
        ({"tokens": 0}, "got 0 tokens"),
        ({"ridge": -1.0}, "got ridge -1"),
        ({"ridge": math.nan}, "nan"),
    ):
        with pytest.raises(InputError, match=said):
            calibrate(fused.model, fused.tokenizer, TEXT, **given)  # type: ignore[arg-type]
    start_ED, zeros_ND = torch.eye(3, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64)
    assert torch.equal(calibrating._ridge(start_ED, zeros_ND, zeros_ND + 1, 1e-3), start_ED)
    same_ND = torch.arange(5, dtype=torch.float64)[:, None].expand(5, 3)
    assert torch.allclose(same_ND @ calibrating._ridge(start_ED, same_ND, 2 * same_ND, 0.0).T, 2 * same_ND)
    assert calibrating._explained(zeros_ND, zeros_ND) == 1.0
    assert calibrating._explained(zeros_ND + 1, zeros_ND) == 0.0


def test_text_for_which_a_model_has_no_places_is_taken_in_parts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = FusionModel([str(place / "a")], [("a", 1)])
    whole = fused.calibrate(TEXT, tokens=300)[0]
    stream = calibrating._stream
    monkeypatch.setattr(calibrating, "_stream", lambda e, b, ids: None if len(ids) > 9 else stream(e, b, ids))
    fit = fused.calibrate(TEXT, tokens=300)[0]
    assert abs(fit.tokens - whole.tokens) < 20
    monkeypatch.setattr(calibrating, "_stream", lambda e, b, ids: None)
    with pytest.raises(InputError, match="has no places for 1 tokens"):
        fused.calibrate(TEXT)


def test_text_of_no_token_is_passed_over(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = FusionModel([str(place / "a")], [("a", 0)])
    spelled, none = calibrating._spelled, ([], np.zeros(0, dtype=np.int64))
    monkeypatch.setattr(calibrating, "_spelled", lambda by, text: none if text[0] == "p" else spelled(by, text))
    assert calibrate(fused.model, fused.tokenizer, ["plain", *TEXT[:1]])[0].r2 > 0.99
    monkeypatch.setattr(calibrating, "_spelled", lambda by, text: none)
    with pytest.raises(InputError, match="got text of 0 tokens"):
        calibrate(fused.model, fused.tokenizer, TEXT)
