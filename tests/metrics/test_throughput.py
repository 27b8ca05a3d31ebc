"""Speed from step times, and peak memory against known allocations."""

import pytest
import torch

from morphogen.metrics.throughput import tokens_per_second
from morphogen.training.memory import LiveBytes, PeakMemory

KIB = 1024


def kib(n: int) -> torch.Tensor:
    """An uninitialised tensor of n KiB."""
    return torch.empty(n * KIB, dtype=torch.uint8)


def test_the_first_step_is_left_out_and_the_median_taken() -> None:
    assert tokens_per_second(100, [9.0, 1.0, 2.0, 50.0]) == 50.0
    assert tokens_per_second(100, [4.0]) == 25.0


def test_no_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="no step was timed"):
        tokens_per_second(100, [])


def test_live_bytes_counts_what_lives_at_once() -> None:
    with LiveBytes([]) as live:
        a = kib(100)
        del a
        b = kib(30)
        view = b[:5].view(5, 1)
        assert live.now == 30 * KIB
        del b
        assert live.now == 30 * KIB  # the view keeps the storage
        del view
    assert live.now == 0
    assert live.peak == 100 * KIB


def test_live_bytes_counts_what_is_held_once() -> None:
    weight = torch.zeros(10 * KIB, dtype=torch.uint8)
    with LiveBytes([weight, weight[:7]]) as live:
        kib(1)
    assert live.peak == 11 * KIB


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_sparse_matrix_counts_by_its_three_tensors() -> None:
    with LiveBytes([]) as live:
        starts, column = torch.arange(0, 41, 4), torch.zeros(40, dtype=torch.long)
        matrix = torch.sparse_csr_tensor(starts, column, torch.zeros(40), (10, 50))
        assert live.now == 11 * 8 + 40 * 8 + 40 * 4
        del starts, column
        assert matrix.shape == (10, 50)
        assert live.now == 11 * 8 + 40 * 8 + 40 * 4
        del matrix
    assert live.now == 0


def test_the_backward_pass_is_seen() -> None:
    """y = exp(exp(x)): x, both saved outputs, and the gradients on the way back."""
    x = torch.zeros(256, requires_grad=True)
    with LiveBytes([x]) as live:
        x.exp().exp().sum().backward()
    assert live.now == 2 * KIB  # x and its gradient
    assert live.peak >= 4 * KIB


def test_peak_memory_of_a_step_grows_with_its_activations() -> None:
    def peak(rows: int) -> int:
        layer = torch.nn.Linear(64, 64)
        memory = PeakMemory(torch.device("cpu"))
        with memory.measure(layer.parameters()):
            layer(torch.zeros(rows, 64)).exp().sum().backward()
        return memory.bytes

    assert peak(10) == peak(10)
    assert peak(1000) - peak(10) >= 2 * 990 * 64 * 4
