"""`instability` against hand-worked traces."""

import pytest

from morphogen.metrics.stability import instability


def test_a_falling_loss_under_steady_gradients_is_exactly_smooth() -> None:
    assert instability([5.0 - 0.01 * k for k in range(100)], [1.0] * 100) == 0.0


def test_one_rise_counts_by_its_height_over_all_steps() -> None:
    losses = [2.0] * 11
    losses[5] = 3.0
    assert instability(losses, [1.0] * 11) == pytest.approx(0.5 / 10)


def test_one_jump_of_the_gradient_counts_one_step() -> None:
    norms = [1.0] * 11
    norms[5] = 2.5
    assert instability([2.0] * 11, norms) == pytest.approx(1 / 10)


def test_rougher_is_more() -> None:
    smooth, rough = [2.0 + 0.1 * (k % 2) for k in range(50)], [2.0 + 0.5 * (k % 2) for k in range(50)]
    assert 0 < instability(smooth, [1.0] * 50) < instability(rough, [1.0] * 50)


@pytest.mark.parametrize("steps", [0, 1])
def test_too_short_a_trace_is_smooth(steps: int) -> None:
    assert instability([3.0] * steps, [1.0] * steps) == 0.0


def test_traces_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="3 losses and 2 gradient norms"):
        instability([1.0] * 3, [1.0] * 2)
