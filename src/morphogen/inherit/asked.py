"""What `inherit` is asked, looked at before any tensor is."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from morphogen.arguments import expected, whole
from morphogen.blueprint.schema import EXPERIMENTS, Blueprint
from morphogen.candidate import Edit
from morphogen.errors import InputError, unknown
from morphogen.inherit.splice import main_dtype
from morphogen.network import check_state

#: A parent.
Parent = tuple[Blueprint, Mapping[str, Tensor]]


def check_asked(
    child: Blueprint,
    parents: Sequence[Parent],
    edits: Sequence[Edit],
    names: Sequence[str],
    sources: Mapping[str, int],
) -> None:
    """InputError for arguments of `inherit` that are not what they can be, weights aside."""
    expected("child", child, Blueprint, EXPERIMENTS)
    for place, given in (("parents", parents), ("edits", edits), ("names", names)):
        expected(place, given, (list, tuple), "one alone is put into [...]")
    for i, edit in enumerate(edits):
        expected(f"edits[{i}]", edit, Edit)
    if not (least := 1 if edits else 0) <= len(parents) <= 2:
        raise InputError(f"parents: got {len(parents)}, expected {'one' if least else 'none, one'} or two")
    if len(names) < len(parents):
        raise InputError(f"names: got {len(names)}, expected one for each of {len(parents)} parents")
    ids = [block.id for block in child.blocks]
    for block, position in sources.items():
        if block not in ids:
            raise InputError(unknown("sources: block", block, ids))
        if whole(f"sources.{block}", position) >= len(parents):
            raise InputError(f"sources.{block}: got {position}, expected the position of one of {len(parents)} parents")


def read_parents(parents: Sequence[Parent]) -> list[Parent]:
    """The parents with their vocabularies; a second one in the precision of the first. InputError where weights are not
    those of their blueprints."""
    found = [_read(f"parents[{i}]", parent) for i, parent in enumerate(parents)]
    precisions = [main_dtype(state) for _, state in found]
    return [
        (blueprint, state if own == precisions[0] else {name: x.to(precisions[0]) for name, x in state.items()})
        for (blueprint, state), own in zip(found, precisions, strict=True)
    ]


def _read(place: str, parent: Parent) -> Parent:
    if not isinstance(parent, list | tuple) or len(parent) != 2:
        raise InputError(f"{place}: expected a pair of a blueprint and its state dict")
    blueprint, state = parent
    expected(f"{place}: blueprint", blueprint, Blueprint, EXPERIMENTS)
    expected(f"{place}: state dict", state, Mapping, "that of a model is `model.state_dict()`")
    for name, tensor in state.items():
        expected(f"{place}: {name}", tensor, Tensor)
        if tensor.is_meta or not tensor.is_floating_point():
            found = "on the meta device" if tensor.is_meta else f"of {tensor.dtype}"
            raise InputError(f"{place}: {name}: got a tensor {found}, expected one of floating-point numbers")
    if blueprint.emb.vocab is None and "emb.weight" in state:
        blueprint = blueprint.with_vocab(state["emb.weight"].shape[0])
    check_state(blueprint, state)
    return blueprint, state
