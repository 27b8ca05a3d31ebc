"""The contract that every kind keeps, the operators' promises, and the fast average against a loop."""

import pytest
import torch
from gated_ema.layer import ema
from gated_ema.part import GatedEMA
from torch import Tensor

from morphogen.testing import assert_agree, contract_tests, operator_tests, outcome

test_contract = contract_tests(GatedEMA)
test_operators = operator_tests("widen_gated_ema", on=GatedEMA)


def loop(u_BTW: Tensor, logit_W: Tensor, past_BW: Tensor) -> tuple[Tensor, Tensor]:
    """`ema`, token by token."""
    a_W, y_BW, rows = torch.sigmoid(logit_W), past_BW, []
    for t in range(u_BTW.shape[1]):
        y_BW = a_W * y_BW + (1.0 - a_W) * u_BTW[:, t]
        rows.append(y_BW)
    return torch.stack(rows, 1), y_BW


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("tokens", [1, 7, 63])
def test_the_average_equals_its_loop_in_outputs_and_all_gradients(
    tokens: int, dtype: torch.dtype, bound: float
) -> None:
    draw = torch.Generator().manual_seed(tokens)
    inputs = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((2, tokens, 5), (5,), (2, 5))]
    want, got = outcome(loop, inputs), outcome(ema, [x.to(dtype) for x in inputs])
    assert_agree(want, got, bound, names=("y", "last", "du", "dlogit", "dpast"))
