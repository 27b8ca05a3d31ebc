"""The `train.anchoring` section: what keeps a model from forgetting while it grows, or learns from other text."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from morphogen.parts.contract.frozen import Frozen

OpenShare = Annotated[float, Field(gt=0.0, lt=1.0)]


class Rehearsal(Frozen):
    """Old text among the new: some of each batch's sequences give way to earlier ones."""

    share: OpenShare = 0.1
    """Share of the sequences of text that are rehearsed ones, on average over steps."""
    buffer_tokens: PositiveInt = 65_536
    """Tokens that are kept to rehearse from, at least one sequence; none is kept twice."""
    source: Literal["data", "generations"] = "data"
    """data: sequences that were trained on before, by the ancestors too, each as likely to be kept as another.
    generations: sequences that the model samples itself, as it is then: before its first step where training lies
    behind it, and `every` so many steps."""
    every: PositiveInt | None = None
    """Steps after which the model samples again, for generations; null: only before its first step."""
    temperature: PositiveFloat = 1.0
    """Of the sampling, for generations."""


class SelfDistillation(Frozen):
    """The model stays near its teacher, an average of its own earlier weights that grows along with it: to the loss is
    added weight · temperature² · KL, the mean over tokens, of the distributions at that temperature."""

    weight: PositiveFloat = 0.5
    """Of the divergence in the loss."""
    decay: OpenShare = 0.99
    """Share of the teacher that stays at each step; it begins as a copy of the model."""
    temperature: PositiveFloat = 1.0
    """What both sides' logits are divided by."""
    direction: Literal["forward", "reverse"] = "forward"
    """forward: KL(teacher ‖ student), which covers all that the teacher does. reverse: KL(student ‖ teacher), which
    leaves out what the teacher does not do."""


class FreezeExpandTune(Frozen):
    """After something new came to be, in a growth or in a child's edit, it trains alone at first; then all does.

    Where nothing is new, or nothing old, nothing is frozen. A further growth begins it anew, and ends it where it adds
    nothing.
    """

    freeze_steps: PositiveInt = 100
    """Steps in which what is old stays as it is, bit for bit."""
    tune_steps: NonNegativeInt = 0
    """Steps after these over which what is old comes back to its full rate."""


class AnchoringSection(Frozen):
    """What keeps a model from forgetting; each alone or together with others."""

    rehearsal: Rehearsal | None = None
    """Old text among the new; null: none."""
    self_distillation: SelfDistillation | None = None
    """Nearness to an average of its earlier weights; null: none."""
    freeze_expand_tune: FreezeExpandTune | None = None
    """Training what is new alone at first; null: all at once."""

    @property
    def asks(self) -> bool:
        """Whether it asks for anything."""
        return any(means is not None for _, means in self)
