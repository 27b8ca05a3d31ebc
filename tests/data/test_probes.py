"""Multi-query associative recall: what its sequences hold, their law, and how they mix with text."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from examples import up_to
from morphogen.data.mixture import BLOCK, Mixture, Trained, unique_tokens
from morphogen.data.prepare import prepare
from morphogen.data.probes import Probe, scored_only
from morphogen.data.probes.mqar import POWER, slot_law
from morphogen.errors import InputError
from morphogen.experiment import Data


@settings(max_examples=up_to(60))
@given(pairs=st.integers(1, 12), spare=st.integers(0, 40), vocab=st.integers(30, 300), seed=st.integers(0, 2**63))
def test_a_sequence_holds_pairs_then_every_key_once_again_with_its_value(
    pairs: int, spare: int, vocab: int, seed: int
) -> None:
    length = 4 * pairs - 1 + spare
    ids, asked, distance = Probe(pairs, 1.0, length, vocab).sequence(seed)
    assert ids.shape == (length + 1,)
    keys, values = ids[0 : 2 * pairs : 2], ids[1 : 2 * pairs : 2]
    assert len(set(keys)) == len(set(values)) == len(set(asked)) == pairs
    assert keys.min() >= 0
    assert keys.max() < vocab // 2 <= values.min()
    assert values.max() < vocab
    assert np.array_equal(ids[asked], keys)
    assert np.array_equal(ids[asked + 1], values)
    assert asked.min() >= 2 * pairs
    assert not (asked % 2).any()
    assert np.array_equal(asked - distance, 2 * np.arange(pairs))
    # no key or value anywhere else
    assert np.isin(ids, np.concatenate([keys, values])).sum() == 4 * pairs
    assert ids.min() >= 0
    assert ids.max() < vocab


def test_tokens_are_drawn_evenly_and_slots_by_the_power_law() -> None:
    probe = Probe(size=1, weight=1.0, seq_len=33, vocab_size=20)
    drawn = [probe.sequence(seed) for seed in range(4000)]
    keys, values = (np.bincount([one.ids[i] for one in drawn], minlength=20) / 4000 for i in (0, 1))
    assert np.abs(keys[:10] - 0.1).max() < 0.015
    assert np.abs(values[10:] - 0.1).max() < 0.015
    others = np.concatenate([np.delete(one.ids, [0, 1, one.asked[0], one.asked[0] + 1]) for one in drawn])
    shares = np.bincount(others, minlength=20) / len(others)
    assert np.abs(shares - 0.05).max() < 0.002
    slots = np.bincount([(one.asked[0] - 2) // 2 for one in drawn], minlength=16) / 4000
    law = np.array([POWER * i ** (POWER - 1) for i in range(1, 17)])
    assert np.abs(slots - law / law.sum()).max() < 0.02
    assert slot_law(16)[0] / slot_law(16)[9] == pytest.approx(10 ** (1 - POWER))


def test_a_sequence_is_a_pure_function_of_its_stream() -> None:
    probe = Probe(8, 1.0, 64, 256)
    assert np.array_equal(probe.sequence(1, 2).ids, probe.sequence(1, 2).ids)
    assert not np.array_equal(probe.sequence(1, 2).ids, probe.sequence(2, 1).ids)
    script = "from morphogen.data.probes import Probe; print(Probe(8, 1.0, 64, 256).sequence(1, 2).ids.tolist())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(probe.sequence(1, 2).ids.tolist())


def test_training_scores_values_only() -> None:
    one = Probe(4, 1.0, 31, 50).sequence(7)
    marked = scored_only(one)
    assert np.array_equal(np.flatnonzero(marked >= 0), np.sort(one.asked + 1))
    assert np.array_equal(np.where(marked < 0, -1 - marked, marked), one.ids)


def test_chance_is_one_of_the_upper_half() -> None:
    assert Probe(8, 1.0, 64, 256).chance == 1 / 128
    assert Probe(8, 1.0, 64, 257).chance == 1 / 129


def test_a_probe_mixes_into_training_at_its_weight(data: Callable[..., Data], folder: Callable[..., str]) -> None:
    text = {"source": folder(), "weight": 3.0}
    prepared = prepare(data(seq_len=32, shards=[text, {"source": "probe:mqar:4", "weight": 1.0}]))
    mixture, again = Mixture(prepared, 5), Mixture(prepared, 5)
    rows = np.concatenate([mixture.batch(step) for step in range(100)])
    probed = (rows < 0).any(axis=1)
    assert probed.mean() == pytest.approx(0.25, abs=0.01)
    assert ((rows[probed] >= 0).sum(axis=1) == 4).all()
    assert len({tuple(row) for row in rows[probed].tolist()}) == probed.sum()
    assert np.array_equal(again.batch(77), mixture.batch(77))
    assert not np.array_equal(Mixture(prepared, 6).batch(77), mixture.batch(77))
    places = mixture.windows(0, 100)
    assert np.array_equal(places[:, 0] == 1, probed)
    assert np.array_equal(places[probed, 1], np.arange(probed.sum()))
    assert [shard.name for shard in prepared.eval_shards] == [prepared.shards[0].name]


def test_unique_tokens_count_what_a_probe_made(data: Callable[..., Data], folder: Callable[..., str]) -> None:
    text = {"source": folder(), "weight": 1.0}
    prepared = prepare(data(seq_len=32, shards=[text, {"source": "probe:mqar:4", "weight": 1.0}]))
    whole = prepared.shards[0].windows("train", 32)
    steps = BLOCK // 4  # one block of sequences, half of them made; the text comes round many times
    one, other = Trained(1, steps), Trained(2, steps)
    assert unique_tokens(prepared, [one]) == 32 * (BLOCK // 2 + whole)
    assert unique_tokens(prepared, [one, Trained(1, 8)]) == unique_tokens(prepared, [one])
    half = [Trained(1, steps // 2), Trained(1, steps - steps // 2, first=steps // 2)]
    assert unique_tokens(prepared, half) == unique_tokens(prepared, [one]) == unique_tokens(prepared, [*half, one])
    assert unique_tokens(prepared, [one, other]) == 32 * (BLOCK + whole)


def test_a_probe_that_is_only_measured_is_not_trained_on(data: Callable[..., Data], folder: Callable[..., str]) -> None:
    text = {"source": folder()}
    prepared = prepare(data(seq_len=32, shards=[text], eval_shards=[text, {"source": "probe:mqar"}]))
    plain = prepare(data(seq_len=32, shards=[text]))
    (probe,) = prepared.probes
    assert (probe.name, probe.size, probe.weight) == ("mqar", 8, 0.0)
    assert np.array_equal(Mixture(prepared, 0).batch(3), Mixture(plain, 0).batch(3))
    assert plain.probes == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": [{"source": "probe:mqar"}]}, "there are only probes"),
        (
            {"shards": [{"source": "x"}, {"source": "probe:mqr"}]},
            "got 'probe:mqr', expected probe:NAME .* did you mean 'probe:mqar'",
        ),
        ({"shards": [{"source": "x"}, {"source": "probe:mqar:0"}]}, "got 'probe:mqar:0'"),
        (
            {"shards": [{"source": "x"}, {"source": "probe:mqar:4"}], "eval_shards": [{"source": "probe:mqar"}]},
            "got 'probe:mqar:4' and 'probe:mqar' for the probe 'mqar', expected one probe of a name",
        ),
        ({"healing_shards": [{"source": "probe:mqar"}], "healing_tokens": 1}, "a probe does not heal"),
    ],
)
def test_probes_that_make_no_sense_are_refused(
    data: Callable[..., Data], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        data(**changes)


def test_a_probe_must_fit(data: Callable[..., Data], folder: Callable[..., str]) -> None:
    with pytest.raises(InputError, match="seq_len of at least 31"):
        prepare(data(seq_len=30, shards=[{"source": folder()}, {"source": "probe:mqar"}]))
    with pytest.raises(InputError, match="at least 18 tokens"):
        Probe(8, 1.0, 64, 17)
    assert Probe(8, 1.0, 31, 18).sequence(0).ids.shape == (32,)
