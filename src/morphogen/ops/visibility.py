"""Which keys a query sees, as tensors: i and j broadcast."""

from torch import Tensor

from morphogen.ops.patterns import Pattern


def visible(pattern: Pattern, i: Tensor, j: Tensor) -> Tensor:
    """Whether query i sees key j; i and j broadcast."""
    near = i - j <= pattern.window
    match pattern.kind:
        case "none":
            return j <= i
        case "sliding":
            seen = near
        case "local_global":
            seen = near | (j % pattern.global_stride == 0)
        case "dilated":
            seen = (i - j) % pattern.dilation == 0
        case "block":
            seen = _blocks_apart(pattern, i, j) == 0 if pattern.block_stride == 0 else _at_station(pattern, i, j)
        case "local_block":
            seen = near | (_at_station(pattern, i, j) & (_blocks_apart(pattern, i, j) > 0))
    return seen & (j <= i)


def _blocks_apart(pattern: Pattern, i: Tensor, j: Tensor) -> Tensor:
    return i // pattern.block_size - j // pattern.block_size


def _at_station(pattern: Pattern, i: Tensor, j: Tensor) -> Tensor:
    return _blocks_apart(pattern, i, j) % pattern.block_stride == 0
