"""Triton's kernels on a CPU, by its interpreter: prints the worst relative error of each. Run by test_backends.

The interpreter cannot time, so that of each kernel's configurations the first is taken; and it counts loops in plain
integers, which kernels take for Triton's.
"""

import builtins
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch

warnings.simplefilter("ignore")


class Count(int):
    """A loop's counter, as Triton has it."""

    def to(self, dtype: object) -> "Count":
        return self


def counted(*bounds: Any) -> Iterator[Count]:
    whole = (int(bound.handle.data.item()) if hasattr(bound, "handle") else int(bound) for bound in bounds)
    return (Count(i) for i in builtins.range(*whole))


def main() -> None:
    from triton.runtime.autotuner import Autotuner

    begin = Autotuner.__init__

    def first_only(self: Any, fn: Any, arg_names: Any, configs: Any, *more: Any, **named: Any) -> None:
        begin(self, fn, arg_names, configs[:1], *more, **named)

    Autotuner.__init__ = first_only

    import fla.modules.fused_cross_entropy
    import fla.ops.gated_delta_rule
    import fla.ops.simple_gla  # noqa: F401

    for name, module in list(sys.modules.items()):
        if name.startswith(("fla.ops", "fla.modules")):
            vars(module).setdefault("range", counted)

    from morphogen.ops import backends, cross_entropy
    from morphogen.ops import recurrent_kernels as kernels

    for op, backend, sizes in (
        ("linear_attention", kernels.LINEAR, (1, 2, 16, 17)),
        ("gated_delta", kernels.DELTA, (1, 2, 16, 16)),
        ("ssd", kernels.SSD, (2, 16, 16)),
        ("cross_entropy", cross_entropy.FUSED, (37,)),
    ):
        print(op, backends._tried(backend.trial(sizes), torch.device("cpu"), torch.float32))


main()
