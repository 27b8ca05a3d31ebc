"""Every kind of probe: what its sequences hold, its chance, and that it is a pure function of its stream."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from examples import up_to
from morphogen.data.mixture import Mixture
from morphogen.data.prepare import prepare
from morphogen.data.probes import Asked, Probe, scored_only
from morphogen.data.probes.arithmetic import _carries
from morphogen.errors import InputError
from morphogen.experiment import Data, Shard
from morphogen.sections.built_in import PROBES

SIZES = {name: (ours.size or 0) for name, ours in PROBES.items()}


def made(name: str, seed: int, length: int = 96, vocab: int = 256, size: int | None = None) -> Asked:
    return Probe(SIZES[name] if size is None else size, 1.0, length, vocab, name, name).sequence(seed)


@pytest.mark.parametrize("name", PROBES)
@settings(max_examples=up_to(20))
@given(seed=st.integers(0, 2**63), spare=st.integers(0, 40), more=st.integers(0, 30), size=st.integers(1, 9))
def test_sequences_fit_and_score_tokens_that_can_be_answers(
    name: str, seed: int, spare: int, more: int, size: int
) -> None:
    size = size if PROBES[name].size else 0
    length, vocab = (
        least + extra for least, extra in zip(Probe(size, 1, 9999, 9999, name).kind.least(), (spare, more), strict=True)
    )
    probe = Probe(size, 1.0, length, vocab, name, name)
    one = probe.sequence(seed)
    assert one.ids.shape == (length + 1,)
    assert 0 <= one.ids.min() <= one.ids.max() < vocab
    assert one.asked.shape == one.distance.shape
    assert len(one.asked) > 0
    assert (np.diff(np.sort(one.asked)) > 0).all()
    assert 0 <= one.asked.min() <= one.asked.max() < length
    assert (one.distance >= 1).all()
    if probe.kind.deep:
        assert (one.distance <= one.asked + 1).all()
    assert np.array_equal(probe.sequence(seed).ids, one.ids)
    marked = scored_only(one)
    assert np.array_equal(np.flatnonzero(marked >= 0), np.sort(one.asked + 1))


@pytest.mark.parametrize("name", PROBES)
def test_answers_are_spread_over_as_many_tokens_as_chance_says(name: str) -> None:
    probe = Probe(SIZES[name], 1.0, 96, 128, name)
    answers = np.concatenate([(one := probe.sequence(seed)).ids[one.asked + 1] for seed in range(600)])
    kinds = len(set(answers.tolist()))
    if name == "memorize":  # of a value a key, however many tokens there are
        assert kinds <= SIZES[name]
    else:
        assert kinds == pytest.approx(1 / probe.chance, rel=0.02)


def test_a_passkey_stands_evenly_and_is_asked_for_at_the_end() -> None:
    found = [made("passkey", seed) for seed in range(2000)]
    places = np.array([np.flatnonzero(one.ids == 0)[0] for one in found])
    for one, place in zip(found, places, strict=True):
        assert np.array_equal(one.ids[place + 1 : place + 6], one.ids[-5:])
        assert one.ids[-6] == 1
        assert one.ids[one.asked[0] - one.distance[0]] == 0
        assert (one.ids[:place] < 128).all()
    assert np.abs(np.histogram(places, 5, (0, 86))[0] / 2000 - 0.2).max() < 0.03


def test_induction_asks_what_followed() -> None:
    for seed in range(200):
        one = made("induction", seed)
        first, last = np.flatnonzero(one.ids == 0)
        assert last == one.asked[0] == 95
        assert one.ids[first + 1] == one.ids[96]
        assert one.distance[0] == last - first


@pytest.mark.parametrize("name", ["selective_copy", "compress"])
def test_what_is_copied_comes_again_in_order(name: str) -> None:
    for seed in range(100):
        one = made(name, seed)
        (mark,) = np.flatnonzero(one.ids == 1)
        told = one.ids[:mark][one.ids[:mark] > 1]
        assert np.array_equal(told, one.ids[mark + 1 :])
        assert np.array_equal(one.ids[one.asked + 1 - one.distance], told)
        assert len(told) == (16 if name == "selective_copy" else 48)


def test_noise_is_a_fifth_and_only_what_was_told_is_asked() -> None:
    noise = []
    for seed in range(200):
        one = made("noisy_recall", seed, length=95)
        pairs = one.ids.reshape(-1, 2)
        noisy = pairs[:, 0] >= 170
        noise.append(noisy.mean())
        known: dict[int, int] = {}
        asked = []
        for slot, (key, value) in enumerate(pairs.tolist()):
            if not noisy[slot]:
                asked += [2 * slot] if key in known else []
                assert known.setdefault(key, value) == value
        assert one.asked.tolist() == asked
        assert asked[-1] == 94
    assert np.mean(noise) == pytest.approx(0.2 * 46 / 48, abs=0.01)


def test_fuzzy_pairs_come_again_with_the_same_value() -> None:
    lengths = set()
    for seed in range(200):
        one = made("fuzzy_recall", seed)
        again = one.ids[one.asked + 1]
        assert (again >= 128).all()
        assert np.array_equal(again, one.ids[one.asked + 1 - one.distance])
        lengths |= {int(n) for n in np.diff(np.flatnonzero(np.diff(one.ids >= 128)))}
    assert {1, 2, 3} <= lengths


def test_memory_is_of_one_map_for_all_sequences_and_the_context_tells_nothing() -> None:
    known: dict[int, int] = {}
    for seed in range(100):
        one = made("memorize", seed, length=63)
        keys = one.ids[one.asked]
        assert len(set(keys.tolist())) == len(keys) == 32
        for key, value in zip(keys.tolist(), one.ids[one.asked + 1].tolist(), strict=True):
            assert known.setdefault(key, value) == value
    assert len(known) == 64


@pytest.mark.parametrize(("size", "vocab"), [(64, 256), (64, 128), (1, 2)])
@pytest.mark.parametrize("length", [2, 64, 300])
def test_a_token_before_the_pairs_to_memorize_tells_nothing(length: int, size: int, vocab: int) -> None:
    assert len({int(made("memorize", seed, length, vocab, size).ids[0]) for seed in range(30)}) == 1


def test_sums_are_right_and_carries_are_counted() -> None:
    signs = {10: "+", 11: "=", 12: ";"}
    for seed in range(50):
        one = made("math", seed)
        text = "".join(signs.get(token, str(token)) for token in one.ids.tolist())
        sums = [part for part in text.split(";") if part]
        assert sums
        for part in sums:
            left, right = part.split("=")
            a, b = left.split("+")
            assert int(a) + int(b) == int(right)
    carries = {int(d) for seed in range(200) for d in made("math", seed).distance}
    assert carries == {1, 2, 3, 4}
    assert _carries(999, 1) == [3, 2, 1, 0]
    assert _carries(95, 5) == [2, 1, 0]
    assert _carries(55, 55) == [2, 1, 0]
    assert _carries(50, 50) == [1, 0, 0]
    assert _carries(12, 34) == [0, 0]


@pytest.mark.parametrize(("digits", "seeds"), [(18, 40), (19, 40), (40, 80), (5000, 1)])
def test_sums_may_be_of_any_length(digits: int, seeds: int) -> None:
    longest = 0
    for seed in range(seeds):
        told = made("math", seed, length=3 * digits + 3, size=digits).ids
        longest = max(longest, len("".join("+" if token > 9 else "0" for token in told.tolist()).split("+")[-2]))
    assert 0 < longest <= digits + 1
    assert seeds == 1 or longest >= digits


def test_several_probes_mix_each_at_its_weight(data: Callable[..., Data], folder: Callable[..., str]) -> None:
    probes = [{"source": "probe:passkey:2", "weight": 1.0}, {"source": "probe:induction", "weight": 2.0}]
    prepared = prepare(data(seq_len=32, shards=[{"source": folder(), "weight": 1.0}, *probes]))
    rows = np.concatenate([Mixture(prepared, 5).batch(step) for step in range(100)])
    scored = (rows >= 0).sum(axis=1)
    assert [(scored == n).mean() for n in (33, 2, 1)] == pytest.approx([0.25, 0.25, 0.5], abs=0.01)


@pytest.mark.parametrize(
    ("shard", "said"),
    [
        ({"source": "probe:passkye"}, "did you mean 'probe:passkey'"),
        ({"source": "probe:induction:3"}, "expected probe:induction"),
        ({"source": "probe:passkey:0"}, "with a size of at least 1, such as probe:passkey:8"),
        ({"source": "probe:"}, "expected probe:NAME with a name of compress"),
        ({"source": "stdlib-code", "lengths": [64]}, "only probes have one"),
        ({"source": "probe:passkey", "lengths": [4]}, "greater than or equal to 8"),
    ],
)
def test_a_probe_that_there_is_not_is_refused(shard: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Shard.model_validate(shard)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eval_shards": [{"source": "probe:passkey"}, {"source": "probe:passkey:3"}]}, "are called 'passkey'"),
        (
            {"eval_shards": [{"source": "probe:math:2", "name": "a"}, {"source": "probe:math", "name": "b"}]},
            "two probes math, expected one, whose figure is ppl_math",
        ),
        (
            {
                "shards": [{"source": "x"}, {"source": "probe:passkey"}],
                "eval_shards": [{"source": "probe:passkey", "lengths": [64]}],
            },
            "with the same lengths",
        ),
    ],
)
def test_probes_whose_figures_would_share_a_name_are_refused(
    data: Callable[..., Data], changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        data(**changes)


def test_a_length_that_is_too_short_for_a_probe_is_told(data: Callable[..., Data], folder: Callable[..., str]) -> None:
    shard = {"source": "probe:passkey:9", "lengths": [64, 16]}
    with pytest.raises(InputError, match="probe:passkey:9 needs a seq_len of at least 19, got 16"):
        prepare(data(seq_len=32, shards=[{"source": folder()}], eval_shards=[{"source": folder()}, shard]))
