import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from examples import up_to
from morphogen.data.mixture import BLOCK, Mixture, Trained, _table, unique_tokens
from morphogen.data.prepare import PreparedData, prepare
from morphogen.errors import InputError
from morphogen.experiment import BPE, Data


@pytest.fixture
def prepared(data: Callable[..., Data], folder: Callable[..., str]) -> PreparedData:
    """Two training shards, 3:1, and one to heal with."""
    shards = [{"source": folder("big"), "weight": 3.0}, {"source": folder("small", documents=30)}]
    return prepare(data(shards=shards, healing_shards=[{"source": folder("heal")}], healing_tokens=1))


def rows(array: np.ndarray[Any, Any]) -> set[tuple[int, ...]]:
    return {tuple(row) for row in array.tolist()}


def test_a_batch_is_a_pure_function_of_seed_and_step(prepared: PreparedData) -> None:
    forward, backward = Mixture(prepared, 7), Mixture(prepared, 7)
    wanted = [forward.batch(step) for step in range(100)]
    for step in reversed(range(100)):
        assert np.array_equal(backward.batch(step), wanted[step])
    assert wanted[0].shape == (4, 17)
    assert wanted[0].dtype == np.int64
    assert not np.array_equal(Mixture(prepared, 8).batch(0), wanted[0])
    assert not np.array_equal(wanted[0], wanted[1])


def test_batches_are_the_same_in_another_process(prepared: PreparedData, data: Callable[..., Data]) -> None:
    script = (
        "import pickle, sys; from morphogen.data.mixture import Mixture; "
        "m = Mixture(pickle.loads(bytes.fromhex(sys.argv[1])), 3); print(int((m.batch(11) * 31 % 997).sum()))"
    )
    import pickle

    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "5"}
    arguments = [sys.executable, "-c", script, pickle.dumps(prepared).hex()]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) == int((Mixture(prepared, 3).batch(11) * 31 % 997).sum())


def test_data_seed_changes_the_order_too(data: Callable[..., Data]) -> None:
    first, second = (Mixture(prepare(data(seed=seed)), 0) for seed in (0, 1))
    assert not np.array_equal(first.batch(0), second.batch(0))


def test_batches_hold_the_windows_they_say(prepared: PreparedData) -> None:
    mixture = Mixture(prepared, 0)
    for step in (0, 3, 5000):
        for ids_T1, (shard, window) in zip(mixture.batch(step), mixture.windows(step, step + 1), strict=True):
            tokens = prepared.shards[shard].files["train"].open()
            assert np.array_equal(ids_T1, tokens[window * 16 : window * 16 + 17])


def test_every_epoch_covers_every_window_once(prepared: PreparedData) -> None:
    windows = Mixture(prepared, 1).windows(0, 2000)
    for shard in (0, 1):
        n_windows = prepared.shards[shard].windows("train", 16)
        order = windows[windows[:, 0] == shard, 1]
        assert len(order) > 3 * n_windows
        epochs = order[: len(order) // n_windows * n_windows].reshape(-1, n_windows)
        assert all(sorted(epoch.tolist()) == list(range(n_windows)) for epoch in epochs)
        assert not np.array_equal(epochs[0], epochs[1])


def test_weights_hold_for_every_prefix(prepared: PreparedData) -> None:
    shard_S = Mixture(prepared, 0).windows(0, 3000)[:, 0]
    from_small = np.cumsum(shard_S)
    n_seen = np.arange(1, len(shard_S) + 1)
    assert np.abs(from_small - n_seen / 4).max() <= 1.0


@given(weights=st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=12))
@settings(max_examples=up_to(60), deadline=None)
def test_the_block_table_is_a_fair_allocation(weights: list[float]) -> None:
    shard_K, rank_K, per_block = _table(weights)
    assert len(shard_K) == BLOCK == per_block.sum()
    assert per_block.min() >= 1
    share = np.array(weights) / sum(weights) * BLOCK
    assert np.abs(per_block - share).max() <= len(weights)
    for shard, count in enumerate(per_block):
        assert rank_K[shard_K == shard].tolist() == list(range(count))
        ideal = np.arange(1, BLOCK + 1) * (count / BLOCK)
        assert np.abs(np.cumsum(shard_K == shard) - ideal).max() <= len(weights)


@given(smallest=st.floats(1e-9, 1.0), others=st.integers(1, 5000), field=st.sampled_from(["shards", "healing_shards"]))
@settings(max_examples=up_to(20), deadline=None)
def test_a_share_is_kept_or_refused(smallest: float, others: int, field: str) -> None:
    weights = [smallest, *[1.0] * others]
    shards = [{"source": f"s{i}", "weight": weight} for i, weight in enumerate(weights)]
    share = np.array(weights) / sum(weights) * BLOCK
    small = rf"{field}: 's\d+' has the weight .*, less than one of 4,096 sequences"
    if share.min() < 1 - 1e-9:
        with pytest.raises(ValidationError, match=small):
            Data.model_validate({field: shards})
        return
    Data.model_validate({field: shards})
    _, _, per_block = _table(weights)
    assert per_block.sum() == BLOCK
    assert np.abs(per_block - share).max() < 1.0


def test_unique_tokens_are_exact_over_several_runs(prepared: PreparedData) -> None:
    runs = [Trained(0, 40), Trained(1, 25, healing_steps=6), Trained(0, 10)]
    later = [Trained(0, 7, first=3), Trained(0, 30, first=35), Trained(0, 2, 5, first=4), Trained(0, 2, first=900)]
    for chosen in (runs, runs[:1], [Trained(0, 900), Trained(1, 3)], [], later, later[:2]):
        seen: set[tuple[str, int]] = set()
        for run in chosen:
            mixture = Mixture(prepared, run.seed)
            read = mixture.windows(run.first, run.first + run.steps).tolist()
            seen |= {(f"train{shard}", window) for shard, window in read}
            steps = range(run.first, run.first + run.healing_steps)
            healed = np.concatenate([np.empty((0, 17), int), *map(mixture.healing_batch, steps)])
            tokens = prepared.healing_shards[0].files["train"].open()
            for row in healed:
                [window] = [w for w in range(len(tokens) // 16) if np.array_equal(tokens[w * 16 : w * 16 + 17], row)]
                seen.add(("heal", window))
        assert unique_tokens(prepared, chosen) == 16 * len(seen)
    assert unique_tokens(prepared, [(0, 40), (0, 40)]) == unique_tokens(prepared, [(0, 40)])


def test_healing_on_a_training_shard_counts_its_windows_once(
    data: Callable[..., Data], folder: Callable[..., str]
) -> None:
    same = prepare(data(healing_shards=[{"source": folder()}], healing_tokens=1))
    everything = same.shards[0].windows("train", 16) * 16
    assert unique_tokens(same, [Trained(0, 10_000, healing_steps=10_000)]) == everything


def test_healing_batches_come_from_the_healing_shard(prepared: PreparedData, data: Callable[..., Data]) -> None:
    mixture = Mixture(prepared, 0)
    tokens = prepared.healing_shards[0].files["train"].open()
    windows = rows(np.stack([tokens[w * 16 : w * 16 + 17] for w in range((len(tokens) - 1) // 16)]))
    assert rows(mixture.healing_batch(3)) <= windows
    assert np.array_equal(mixture.healing_batch(3), Mixture(prepared, 0).healing_batch(3))
    with pytest.raises(InputError, match=r"data\.healing_shards: got none"):
        Mixture(prepare(data()), 0).healing_batch(0)


def test_evaluation_is_the_same_for_all_runs_and_smaller_ones_are_heads(prepared: PreparedData) -> None:
    name = prepared.eval_shards[0].name
    whole = list(Mixture(prepared, 0).eval_batches(name, 640))
    assert [batch.ids.shape for batch in whole] == [(4, 17)] * 10
    for other in (Mixture(prepared, 9).eval_batches(name, 320), Mixture(prepared, 0).eval_batches(name, 640, 5)):
        for got, wanted in zip(list(other), whole[:5], strict=True):
            assert np.array_equal(got.ids, wanted.ids)
            assert got.n_bytes == wanted.n_bytes
    [single] = Mixture(prepared, 0).eval_batches(name, 1)
    assert single.ids.shape == (1, 17)


@pytest.mark.parametrize("tokenizer", ["bytes", BPE(vocab=300)])
@pytest.mark.parametrize("split", ["eval", "test"])
def test_evaluation_covers_each_target_once_and_its_bytes_add_up(
    tokenizer: str | BPE, split: Any, data: Callable[..., Data]
) -> None:
    prepared = prepare(data(tokenizer=tokenizer))
    shard = prepared.eval_shards[0]
    batches = list(Mixture(prepared, 0).eval_batches(shard.name, 10**9, split=split))
    targets = np.concatenate([batch.ids[:, 1:].ravel() for batch in batches])
    tokens = shard.files[split].open()
    assert len(targets) == (len(tokens) - 1) // 16 * 16
    assert np.array_equal(np.sort(targets), np.sort(tokens[1 : len(targets) + 1]))
    assert sum(batch.n_bytes for batch in batches) == prepared.bytes_per_token()[targets].sum()
    assert 0 < batches[0].n_bytes <= 64 * (1 if tokenizer == "bytes" else 20)


def test_training_never_shows_a_held_out_document(prepared: PreparedData) -> None:
    """Documents begin with their own name, so that a name in both would show."""
    mixture = Mixture(prepared, 0)
    trained = " ".join(bytes(i for i in ids if i < 256).decode(errors="replace") for ids in mixture.batch(0)[:, 1:])
    assert trained
    texts = {}
    for split in ("train", "eval"):
        tokens = prepared.shards[0].files[split].open()
        texts[split] = {part[:8] for part in bytes(t if t < 256 else 0 for t in tokens).split(b"\0")[:-1]}
    assert texts["train"]
    assert texts["eval"]
    assert not texts["train"] & texts["eval"]


def test_an_unknown_eval_shard_and_an_empty_test_split(prepared: PreparedData, data: Callable[..., Data]) -> None:
    with pytest.raises(InputError, match="eval shard: got 'bgi', expected one of"):
        next(Mixture(prepared, 0).eval_batches("bgi", 100))
    none = prepare(data(split={"train": 0.5, "eval": 0.5}))
    with pytest.raises(InputError, match="its test split is smaller than one sequence of 16"):
        next(Mixture(none, 0).eval_batches(none.eval_shards[0].name, 100, split="test"))


def test_memory_maps_are_opened_once(prepared: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = Mixture(prepared, 0)
    name = prepared.eval_shards[0].name
    list(mixture.eval_batches(name, 100))

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a memory map was opened again")

    monkeypatch.setattr(np, "memmap", forbidden)
    for step in range(50):
        mixture.batch(step)
        mixture.healing_batch(step)
    assert list(mixture.eval_batches(name, 100))


def test_a_step_of_several_batches_reads_what_one_large_batch_reads(
    data: Callable[..., Data], folder: Callable[..., str]
) -> None:
    shards, healing = [{"source": folder()}], [{"source": folder("heal")}]
    large, several = (
        prepare(data(shards=shards, healing_shards=healing, healing_tokens=1, batch_size=size), accumulate)
        for size, accumulate in ((6, 1), (2, 3))
    )
    assert large.tokens_per_step == several.tokens_per_step
    for step in (0, 7):
        assert (Mixture(large, 3).batch(step) == Mixture(several, 3).batch(step)).all()
        assert (Mixture(large, 3).healing_batch(step) == Mixture(several, 3).healing_batch(step)).all()
    assert unique_tokens(large, [(3, 9)]) == unique_tokens(several, [(3, 9)])
