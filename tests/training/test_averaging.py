"""Averages of weights: what they are, and that measuring them leaves the training as it was."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from morphogen.training.averaging import MOST, Averaging, window


def fed(values: list[float], earlier: int = 0) -> float:
    parameter = nn.Parameter(torch.tensor(100.0))
    averaging = Averaging([parameter], earlier)
    for value in values:
        parameter.data.fill_(value)
        averaging.update()
    return float(averaging.averages[0])


def test_a_few_steps_have_their_plain_mean_whatever_was_before() -> None:
    assert fed([1.0, 2.0, 6.0], earlier=100) == pytest.approx(3.0)
    assert fed([float(x) for x in range(20)], earlier=160) == pytest.approx(9.5)
    assert fed([1.0, 2.0, 6.0]) == 6.0  # where nothing was before, weights have only begun to move


def test_many_steps_have_an_exponential_average_whose_reach_grows_with_the_lineage() -> None:
    assert [window(steps) for steps in (0, 200, 10**6)] == [1.0, 25.0, MOST]
    reaches = [window(steps) for steps in range(400)]
    assert reaches == sorted(reaches)
    late = [0.0] * 100 + [1.0] * 10
    young, old = fed(late), fed(late, earlier=1000)
    assert old == pytest.approx(1 - (1 - 1 / MOST) ** 10, abs=1e-4)
    assert young > old


@pytest.mark.parametrize("fail", [False, True])
def test_measuring_the_average_leaves_the_weights(fail: bool) -> None:
    layer = nn.Linear(3, 2)
    averaging = Averaging(list(layer.parameters()), earlier=1000)
    with torch.no_grad():
        layer.weight.add_(1.0)
    averaging.update()
    with torch.no_grad():
        layer.weight.add_(1.0)
    averaging.update()
    before, average = layer.weight.detach().clone(), averaging.averages[0].clone()
    assert torch.allclose(average, before - 0.5)

    def measure(raise_it: Callable[[], None]) -> None:
        with averaging.in_place():
            assert torch.equal(layer.weight, average)
            raise_it()

    if fail:
        with pytest.raises(ZeroDivisionError):
            measure(lambda: print(1 / 0))
    else:
        measure(lambda: None)
    assert torch.equal(layer.weight, before)
    assert torch.equal(averaging.averages[0], average)
