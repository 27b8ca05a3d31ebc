"""Growth rules drawn from the fields of every trigger and action, and so a new one needs no strategy."""

import functools
from typing import Any, get_args

from hypothesis import strategies as st

from morphogen.blueprint.growth import GrowthAction, GrowthLimits, GrowthRule
from morphogen.blueprint.triggers import Trigger
from morphogen.testing.fields import frozen_of

#: Of every class of trigger that combines others, the field that holds them.
COMBINED = "of"


@functools.cache
def triggers() -> st.SearchStrategy[Any]:
    """Any trigger, one level of combined ones among them."""
    (classes, *_) = get_args(Trigger)
    single = st.one_of([frozen_of(cls) for cls in get_args(classes) if COMBINED not in cls.model_fields])
    several = st.lists(single, min_size=2, max_size=3).map(tuple)
    combining = [st.builds(cls, of=several) for cls in get_args(classes) if COMBINED in cls.model_fields]
    return st.one_of(single, *combining)


@functools.cache
def actions() -> st.SearchStrategy[Any]:
    """Any action, in all blocks."""
    (classes, *_) = get_args(GrowthAction)
    return st.one_of([frozen_of(cls) for cls in get_args(classes)])


@st.composite
def growth_rules(draw: st.DrawFn, blocks: tuple[str, ...]) -> tuple[GrowthRule, ...]:
    """Up to two rules for a model with these blocks, mostly none; some name one of them."""
    made = list[GrowthRule]()
    for i in range(max(0, draw(st.integers(-4, 2)))):
        action = draw(actions())
        if "blocks" in type(action).model_fields and draw(st.booleans()):
            action = action.model_copy(update={"blocks": (draw(st.sampled_from(blocks)),)})
        made.append(GrowthRule(id=f"rule{i}", when=draw(triggers()), do=action, limits=draw(frozen_of(GrowthLimits))))
    return tuple(made)
