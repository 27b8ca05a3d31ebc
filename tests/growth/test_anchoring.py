"""A buffer of old text, sequences that a model samples, and a teacher that it stays near.

B sequences, T tokens, V vocabulary
"""

import numpy as np
import pytest
import torch

from morphogen.blueprint.schema import Blueprint
from morphogen.growth.anchoring import Buffer, Rehearsal, Teacher, divergence, sampled
from morphogen.network import LanguageModel, build

BLUEPRINT = Blueprint.model_validate(
    {
        "emb": {"dim": 8, "vocab": 17},
        "blocks": [
            {
                "attn": {"kind": "MHA", "heads": 2, "head_dim": 4},
                "ffn": {"kind": "moe", "hidden": 8, "n_experts": 3, "router_bias": "aux_free"},
            }
        ],
    }
)


def rows(first: int, count: int, length: int = 9) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.arange(first, first + count)[:, None] * np.ones(length, dtype=np.int64)


def test_each_sequence_is_as_likely_to_be_kept_as_another() -> None:
    kept = np.zeros(40)
    for seed in range(400):
        buffer = Buffer(10)
        rng = np.random.default_rng(seed)
        for step in range(10):
            buffer.offer(rows(4 * step, 4), rng)
        assert len(buffer.rows) == 10
        kept[[row[0] for row in buffer.rows]] += 1
    assert abs(kept - 100).max() < 4 * np.sqrt(400 * 0.25 * 0.75)


def test_none_is_kept_twice() -> None:
    buffer, rng = Buffer(100), np.random.default_rng(0)
    for _ in range(3):
        buffer.offer(rows(0, 20), rng)
    assert sorted(row[0] for row in buffer.rows) == list(range(20))
    assert buffer.seen == 20
    small = Buffer(5)
    for _ in range(50):
        small.offer(rows(0, 8), rng)
        held = [int(row[0]) for row in small.rows]
        assert len(set(held)) == len(held)


def test_what_is_drawn_are_different_ones() -> None:
    buffer, rng = Buffer(10), np.random.default_rng(0)
    assert buffer.draw(3, rng) == []
    buffer.offer(rows(0, 10), rng)
    assert len({int(row[0]) for row in buffer.draw(10, rng)}) == 10
    assert len(buffer.draw(99, rng)) == 10


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_the_share_holds_on_average_whatever_the_batch_s_size(share: float) -> None:
    rehearsal = Rehearsal(share, Buffer(50), 0, takes_in=False)
    rehearsal.buffer.offer(rows(1000, 50), np.random.default_rng(0))
    old = [int((rehearsal.mixed(step, rows(8 * step, 8))[:, 0] >= 1000).sum()) for step in range(40)]
    assert abs(sum(old) - share * 320) <= 1
    assert max(old) - min(old) <= 1


def test_a_probe_s_sequences_are_neither_given_up_nor_kept() -> None:
    rehearsal = Rehearsal(0.9, Buffer(50), 0, takes_in=True)
    for step in range(20):
        fresh = rows(8 * step, 8)
        fresh[::2, 3] = -5
        mixed = rehearsal.mixed(step, fresh)
        np.testing.assert_array_equal(mixed[::2], fresh[::2])
    assert all((row >= 0).all() for row in rehearsal.buffer.rows)


def test_what_is_given_up_is_not_kept_and_what_stays_is() -> None:
    rehearsal, there = Rehearsal(0.5, Buffer(1000), 0, takes_in=True), set()
    for step in range(20):
        mixed = rehearsal.mixed(step, rows(8 * step, 8))
        there |= {int(row[0]) for row in mixed}
    assert {int(row[0]) for row in rehearsal.buffer.rows} == there


def test_a_batch_derives_from_its_step_and_the_buffer() -> None:
    one, other = (Rehearsal(0.5, Buffer(10), 3, takes_in=True) for _ in range(2))
    for step in range(20):
        one.mixed(step, rows(8 * step, 8))
    other.buffer.restore(one.buffer.rows, one.buffer.seen)
    for step in range(20, 40):
        np.testing.assert_array_equal(one.mixed(step, rows(8 * step, 8)), other.mixed(step, rows(8 * step, 8)))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_divergence_is_the_analytic_one(direction: str, temperature: float) -> None:
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 3, 5, 11)) * 4.0

    p, q = (np.exp(logits / temperature) for logits in (teacher, student))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    if direction == "reverse":
        p, q = q, p
    analytic = (p * np.log(p / q)).sum(-1).mean()
    for dtype in (torch.float32, torch.float64):
        found = divergence(
            torch.tensor(teacher, dtype=dtype),
            torch.tensor(student, dtype=dtype),
            temperature,
            "forward" if direction == "forward" else "reverse",
        )
        assert abs(float(found) - analytic) <= 1e-6 * max(1.0, analytic)


def test_the_divergence_of_bernoullis_is_the_textbook_s_at_every_length() -> None:
    p, q = 0.3, 0.6
    analytic = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    for batch, length in ((1, 1), (1, 64), (4, 7), (2, 300)):
        teacher = torch.tensor([np.log(p), np.log(1 - p)]).expand(batch, length, 2)
        student = torch.tensor([np.log(q), np.log(1 - q)]).expand(batch, length, 2)
        assert abs(float(divergence(teacher.float(), student.float(), 1.0, "forward")) - analytic) <= 1e-6
        assert float(divergence(student, student, 1.0, "reverse")) == 0.0


def model(seed: int = 0) -> LanguageModel:
    return build(BLUEPRINT, seed)


def test_a_teacher_is_the_moving_average_and_never_trains() -> None:
    student = model()
    teacher = Teacher(student, 0.9)
    expected = {name: p.detach().clone() for name, p in student.named_parameters()}
    for seed in (1, 2):
        student.load_state_dict(model(seed).state_dict())
        teacher.follow(student)
        for name, parameter in student.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * parameter.detach()
    for name, parameter in teacher.model.named_parameters():
        assert torch.allclose(parameter, expected[name], atol=1e-7)
        assert not parameter.requires_grad
    logits = teacher.logits(torch.zeros(1, 4, dtype=torch.long))
    assert not logits.requires_grad
    assert not teacher.model.training
    bias = "blocks.0.ffn.router.bias"
    assert torch.equal(teacher.state()[bias], student.state_dict()[bias])


def test_sampled_sequences_begin_at_the_end_of_text_and_repeat_by_seed() -> None:
    one = sampled(model(), 16, 12, 5, 1.0, 7, at_once=2)
    assert len(one) == 5
    assert all(row.shape == (12,) and row[0] == 16 and row.min() >= 0 and row.max() < 17 for row in one)
    np.testing.assert_array_equal(one, sampled(model(), 16, 12, 5, 1.0, 7, at_once=2))
    assert not np.array_equal(one, sampled(model(), 16, 12, 5, 1.0, 8, at_once=2))
    buffer = Buffer(5)
    buffer.offer(sampled(model(), 16, 12, 5, 1e-6, 7), np.random.default_rng(0))
    assert len(buffer.rows) < 5  # the coldest sampling says the same again
