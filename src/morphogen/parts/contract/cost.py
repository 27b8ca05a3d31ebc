"""What running a part costs. `contract.part` has the name too, for those who write a kind."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Costs of one part, per token of a sequence of `ctx.seq_len`, forward only.

    Attributes:
        flops: Floating-point operations, a multiply-add counting 2, of what is computed: whole chunks where it works in
            chunks. Norms, activations, biases and sums of branches count nothing.
        kv_bytes: Cache that grows with the sequence, in bytes per token at 2 bytes an entry.
        state_bytes: Cache of fixed size, in bytes per sequence, each entry at the bytes it is held in: 4 in fp32.
        elementwise: Of the FLOPs those that are no matrix product and that no counter of these sees: taps of
            convolutions, products channel by channel.
    """

    flops: float = 0.0
    kv_bytes: float = 0.0
    state_bytes: float = 0.0
    elementwise: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.kv_bytes + other.kv_bytes,
            self.state_bytes + other.state_bytes,
            self.elementwise + other.elementwise,
        )

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.flops * times, self.kv_bytes * times, self.state_bytes * times, self.elementwise * times)
