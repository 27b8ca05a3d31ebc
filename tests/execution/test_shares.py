"""Shares of GPUs by predicted memory."""

from morphogen.candidate import Report, Status
from morphogen.execution.placement import CONTEXT_BYTES
from morphogen.execution.shares import Shares

GIB = 2**30


def seen(bytes: int, parts: int = 1) -> Report:
    return Report(id="a", status=Status.TRAINED, timed={"peak_memory_bytes": float(bytes)}, micro_batches=parts)


def test_a_share_is_what_is_needed_of_the_smallest_gpu_and_a_whole_one_at_most() -> None:
    shares = Shares()
    shares.gpu_bytes = {"a": 80 * GIB, "b": 16 * GIB}
    taken = [shares.take(k, bytes) for k, bytes in enumerate((1.0, 4.0 * GIB, 40.0 * GIB))]
    assert taken[0] == 0.04
    assert 4.0 * GIB + CONTEXT_BYTES < taken[1] * 16 * GIB < 7.0 * GIB
    assert taken[2] == 1.0
    shares.gpu_bytes = {"a": 80 * GIB}
    assert shares.take(3, 4.0 * GIB) < taken[1] / 4


def test_shares_follow_what_candidates_took_whole_but_not_in_parts_nor_lost() -> None:
    shares = Shares()
    shares.gpu_bytes = {"a": 16 * GIB}
    before = [shares.take(k, 2.0 * GIB) for k in range(4)]
    for k, report in enumerate((seen(2 * GIB, parts=4), None, seen(2 * GIB), seen(2 * GIB))):
        shares.done(k, report)
    assert shares.take(4, 2.0 * GIB) == before[0]
    for k in (5, 6):
        shares.take(k, 2.0 * GIB)
        shares.done(k, seen(4 * GIB))
    assert shares.take(7, 2.0 * GIB) > 1.5 * before[0]
