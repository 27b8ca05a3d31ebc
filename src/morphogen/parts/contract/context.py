"""What a part may know of the model around it. `contract.part` has these names too, for those who write a kind."""

import math
from dataclasses import dataclass
from typing import Literal

NormKind = Literal["rmsnorm", "layernorm"]


@dataclass(frozen=True)
class Context:
    """What a part may know of the model around it.

    Attributes:
        dim: Residual width.
        norm: The kind of norm before each branch.
        vocab: Tokens in the embedding.
        init_std: Of the embedding at the start.
        branches: Residual branches in the whole model.
        seq_len: Tokens of a sequence, for costs, edits, and what a part comes to at that length.
        donors: Models of others whose layers operators may put in: folders, or names on the hub.
    """

    dim: int
    norm: NormKind
    vocab: int
    init_std: float
    branches: int
    seq_len: int = 256
    donors: tuple[str, ...] = ()

    @property
    def output_gain(self) -> float:
        """The gain of fresh output projections: init_std / √(2·branches), the root as in GPT-2.

        What branches add is then of the embedding's size at most. Were it larger, tokens would drown in what the first
        branch writes, and training would take that much longer to begin.
        """
        return self.init_std / math.sqrt(2 * max(1, self.branches))
