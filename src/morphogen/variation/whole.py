"""A whole blueprint in the place of another, as one edit on record. Called by `search.outside`."""

from morphogen.blueprint.diff import apply, changes
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Edit
from morphogen.errors import InputError
from morphogen.inherit.plan import plan

#: The operator that the edit names.
WHOLE = "proposed"


def replaced(before: Blueprint, child: Blueprint) -> tuple[Blueprint, Edit]:
    """The child under its parent's name and with its vocabulary, and the edit that leads to it.

    InputError where it has another vocabulary, or differs in what no edit can say.
    """
    vocab = before.context().vocab
    if child.emb.vocab not in (None, vocab):
        raise InputError(f"blueprint.emb.vocab: got {child.emb.vocab}, but the tokenizer has {vocab}")
    child = child.with_vocab(vocab).model_copy(update={"name": before.name})
    found = changes(before, child)
    try:
        reached = apply(before, found) == child
    except ValueError:
        reached = False
    if not reached:
        raise InputError("blueprint: cannot be recorded as changes of its parent")
    exact = plan(child, [before]).exact
    return child, Edit(operator=WHOLE, target="model", preserves=exact, changes=found)
