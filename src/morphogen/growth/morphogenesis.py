"""The experts of every mixture while a model trains: how much each is used, since when it is there, and which are to
split, to go, to merge or to be crossed. What becomes of their weights is in `blending`.

Nothing here depends on the clock or on chance, so that books that were saved go on as if nothing had been.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, Protocol, Self

import numpy as np

from morphogen.blueprint.growth import CrossExperts, GrowthRule, MergeExperts, PruneExperts, SplitExperts
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.triggers import AllTrigger, AnyTrigger, ExpertUsageTrigger, MajorityTrigger, Trigger
from morphogen.inherit import memory
from morphogen.parts.contract.alignment import AxisMap
from morphogen.parts.ffn.moe import MoE

#: Steps that usage is averaged over where no rule says.
WINDOW = ExpertUsageTrigger().window
#: Loads of so many steps are read at once, so that an accelerator need not be waited for at each.
READ_AT = 32


class Counts(Protocol):
    """A tensor or an array of numbers."""

    def tolist(self) -> Any:
        """As a list."""


#: Actions on the experts that there are.
Action = SplitExperts | PruneExperts | MergeExperts | CrossExperts
#: What each expert writes: block id -> mean of gate weight × norm of the output, by expert (`blending.written`).
Written = Callable[[], Mapping[str, Sequence[float]]]
Pair = tuple[int, int]
#: (block id, expert) to the expert and the one of its mixture that is nearest to it in weights; without an expert the
#: two that are nearest to each other (`blending`).
Nearest = Callable[[str, int | None], Pair]


def usage_trigger(trigger: Trigger) -> ExpertUsageTrigger | None:
    """The `expert_usage` among what is combined in a trigger; the first where there are several."""
    if isinstance(trigger, ExpertUsageTrigger):
        return trigger
    parts = trigger.of if isinstance(trigger, AnyTrigger | AllTrigger | MajorityTrigger) else ()
    return next((found for part in parts if (found := usage_trigger(part)) is not None), None)


@dataclass
class Book:
    """What is known of the experts of one mixture, in the order of their numbers.

    usage: window -> each expert's share of the mixture's assignments, those that an expert then refused included and
    shared experts left out: the plain mean over the steps observed of it while these are fewer than the window W, then
    u ← u + (s − u)/W. observed: steps that its usage is of. born: the step at which it came to be; None for what was
    there from the start, which is old. below: trigger -> steps in a row that its usage has been below what it may be.
    changed: the step at which the mixture last grew or shrank.
    """

    usage: dict[int, list[float]]
    observed: list[int]
    born: list[int | None]
    below: dict[str, list[int]]
    changed: int | None = None

    @classmethod
    def new(cls, experts: int, windows: Sequence[int], triggers: Sequence[str], born: int | None) -> Self:
        """Of experts that nothing is known of yet."""
        return cls(
            {window: [1.0 / experts] * experts for window in windows},
            [0] * experts,
            [born] * experts,
            {name: [0] * experts for name in triggers},
        )

    @classmethod
    def recalled(cls, kept: memory.Experts) -> Self:
        """As it was kept."""
        usage = {window: list(shares) for window, shares in kept.usage.items()}
        below = {name: list(steps) for name, steps in kept.below.items()}
        return cls(usage, list(kept.observed), list(kept.born), below, kept.changed)

    @property
    def measures(self) -> tuple[dict[int, int], int, int, dict[str, int]]:
        """Of how many experts there is what; alike for books of the same mixture under the same rules."""
        usage = {window: len(shares) for window, shares in self.usage.items()}
        below = {name: len(steps) for name, steps in self.below.items()}
        return usage, len(self.observed), len(self.born), below

    @property
    def size(self) -> int:
        """How many experts there are."""
        return len(self.observed)

    def take(self, counts: Sequence[float], watched: Mapping[str, ExpertUsageTrigger]) -> None:
        """One step's assignments."""
        total = float(sum(counts))
        if total <= 0.0:
            return
        for e, count in enumerate(counts):
            self.observed[e] += 1
            for window, usage in self.usage.items():
                usage[e] += (count / total - usage[e]) / min(self.observed[e], window)
        for name, trigger in watched.items():
            least, usage, below = trigger.prune_at(self.size), self.usage[trigger.window], self.below[name]
            below[:] = [steps + 1 if used < least else 0 for steps, used in zip(below, usage, strict=True)]

    def settled(self, trigger: ExpertUsageTrigger, step: int) -> Iterator[int]:
        """Experts that are old enough, and whose usage has been observed for long enough, to be judged."""
        for e, (born, observed) in enumerate(zip(self.born, self.observed, strict=True)):
            old = born is None or step - born >= trigger.min_age
            if old and observed >= min(trigger.window, trigger.interval):
                yield e

    def follow(self, sources: Sequence[int], step: int) -> None:
        """After a growth: each expert with the number of the one that it was, or a copy of, or −1 where it is new.

        An expert and its copies share its usage, and all that is observed of these begins anew; the usages of all add
        up to 1 again where some are gone. Of two the first is the older one, the others came to be just now.
        """
        copies = [sources.count(source) if source >= 0 else 1 for source in sources]
        for window, usage in self.usage.items():
            shares = [usage[s] / n if s >= 0 else 0.0 for s, n in zip(sources, copies, strict=True)]
            whole = sum(shares)
            self.usage[window] = [share / whole if whole else 1.0 / len(shares) for share in shares]
        self.observed = [self.observed[s] if s >= 0 and n == 1 else 0 for s, n in zip(sources, copies, strict=True)]
        first = [s >= 0 and s not in sources[:e] for e, s in enumerate(sources)]
        self.born = [self.born[s] if is_first else step for s, is_first in zip(sources, first, strict=True)]
        for name, below in self.below.items():
            self.below[name] = [below[s] if s >= 0 and n == 1 else 0 for s, n in zip(sources, copies, strict=True)]
        self.changed = step


@dataclass
class Experts:
    """The books of all mixtures of a model, by the id of their block.

    watched: the `expert_usage` triggers of the rules, by what they say. step: the last one observed.
    """

    books: dict[str, Book]
    watched: dict[str, ExpertUsageTrigger]
    step: int = 0
    _unread: list[tuple[int, Mapping[str, Counts]]] = field(default_factory=list)

    @classmethod
    def of(cls, blueprint: Blueprint, rules: Iterable[GrowthRule], step: int = 0) -> Self:
        """Of a model that begins, under rules: its experts are old, and nothing is known of their usage."""
        found = [usage_trigger(rule.when) for rule in rules]
        watched = {_name(trigger): trigger for trigger in found if trigger is not None}
        experts = cls({}, watched, step)
        for block, moe in mixtures(blueprint).items():
            experts.books[block] = experts._new(moe, None)
        return experts

    def _new(self, moe: MoE, born: int | None) -> Book:
        windows = sorted({trigger.window for trigger in self.watched.values()} or {WINDOW})
        return Book.new(moe.n_experts, windows, list(self.watched), born)

    # -------------------------------------------------------------------------------------------- observing

    def observe(self, loads: Mapping[str, Counts], step: int) -> None:
        """The assignments of each expert in a step, by block id (`blending.loads`); one call a step."""
        if len(self._unread) >= READ_AT:
            self._read()
        self._unread.append((step, loads))

    def _read(self) -> None:
        for step, loads in self._unread:
            self.step = step
            for block, load in loads.items():
                self.books[block].take(load.tolist(), self.watched)
        self._unread = []

    def usage(self, block: str, window: int | None = None) -> tuple[float, ...]:
        """Each expert's usage, over the shortest window of the rules where none is given."""
        self._read()
        usage = self.books[block].usage
        return tuple(usage[min(usage) if window is None else window])

    def fitness(self, block: str, written: Sequence[float]) -> tuple[float, ...]:
        """Each expert's share of what the mixture writes: f_e = u_e·g_e / Σ_j u_j·g_j.

        u is its usage; g = `written`, the mean over its recent assignments of gate weight times the norm of its output.
        All are equally fit where nothing is written.
        """
        products = [u * g for u, g in zip(self.usage(block), written, strict=True)]
        whole = sum(products)
        return tuple(product / whole if whole > 0.0 else 1.0 / len(products) for product in products)

    # ------------------------------------------------------------------------------------------- what is to be done

    def to_split(
        self, trigger: Trigger, action: SplitExperts, blueprint: Blueprint, step: int
    ) -> dict[str, tuple[int, ...]]:
        """Experts that are to split, by block, the most used first.

        With an `expert_usage` in the trigger: the old enough ones that are used more than its threshold; else the most
        used of each mixture. At most `max_experts` there are afterwards. Experts of other kinds do not split, and a
        mixture that has changed in this step waits for the next one.
        """
        self._read()
        found = {}
        for block, moe, book in self._open(action, blueprint, step):
            usage = self.usage(block)
            candidates = list(range(moe.stacked))
            if (judge := usage_trigger(trigger)) is not None:
                usage, most = self.usage(block, judge.window), judge.split_at(moe.n_experts)
                candidates = [e for e in book.settled(judge, step) if e < moe.stacked and usage[e] > most]
            room = moe.n_experts if action.max_experts is None else action.max_experts - moe.n_experts
            ranked = sorted(candidates, key=lambda e: (-usage[e], e))
            found[block] = tuple(ranked[: max(0, room if judge is not None else min(room, 1))])
        return {block: chosen for block, chosen in found.items() if chosen}

    def to_prune(
        self, trigger: Trigger, action: PruneExperts, blueprint: Blueprint, step: int, written: Written
    ) -> dict[str, tuple[int, ...]]:
        """Experts that are to go, by block, those first that the action's chooser would have go first.

        With an `expert_usage` in the trigger: the old enough ones whose usage has been below its threshold for
        `probation` steps; else one of each mixture. At least `min_experts` stay, and as many places as the router
        chooses. Experts of other kinds stay, and a mixture that has changed in this step waits for the next one.
        """
        self._read()
        found, measured = {}, cache(written)
        for block, moe, book in self._open(action, blueprint, step):
            judge = usage_trigger(trigger)
            usage, candidates = self._spare(trigger, block, moe, book, step)
            by = measured()[block] if action.chooser == "gate_norm" and candidates else usage
            ranked = sorted(candidates, key=lambda e: (by[e], e))
            most = moe.n_experts - action.min_experts
            if action.chooser == "merge":
                most = min(most, moe.stacked - 1)
            found[block] = _dispensable(moe, ranked, most if judge is not None else min(most, 1))
        return {block: chosen for block, chosen in found.items() if chosen}

    def _spare(
        self, trigger: Trigger, block: str, moe: MoE, book: Book, step: int
    ) -> tuple[tuple[float, ...], list[int]]:
        """The usage of a mixture's experts, and which of them may go or change: with an `expert_usage` in the trigger
        the old enough ones whose usage has been below its threshold for `probation` steps, else all of the stack."""
        judge = usage_trigger(trigger)
        if judge is None:
            return self.usage(block), list(range(moe.stacked))
        usage, least, below = self.usage(block, judge.window), judge.prune_at(moe.n_experts), book.below[_name(judge)]
        settled = [e for e in book.settled(judge, step) if e < moe.stacked]
        return usage, [e for e in settled if usage[e] < least and below[e] >= judge.probation]

    def _open(self, action: Action, blueprint: Blueprint, step: int) -> Iterator[tuple[str, MoE, Book]]:
        """The mixtures that an action may act in now."""
        for block, moe in mixtures(blueprint, action).items():
            book = self.books[block]
            if book.changed != step:
                yield block, moe, book

    def to_merge(
        self, trigger: Trigger, action: MergeExperts, blueprint: Blueprint, step: int, nearest: Nearest
    ) -> dict[str, Pair]:
        """Of each mixture the two experts whose weights are nearest, by block, the more used one first: that stays,
        unless the other one cannot go.

        With an `expert_usage` in the trigger: of those that `to_prune` would have go, the least used one that can, and
        the expert that is nearest to it, which stays.
        """
        self._read()
        found = {}
        for block, moe, book in self._open(action, blueprint, step):
            usage, spare = self._spare(trigger, block, moe, book, step)
            if moe.n_experts <= action.min_experts or moe.stacked < 2 or not spare:
                continue
            pair = nearest(block, None) if usage_trigger(trigger) is None else None
            least = sorted(spare if pair is None else pair, key=lambda e: (usage[e], -e if pair else e))
            for goes in _dispensable(moe, least, 1):
                stays = nearest(block, goes)[1] if pair is None else next(e for e in pair if e != goes)
                found[block] = stays, goes
        return found

    def to_cross(
        self, trigger: Trigger, action: CrossExperts, blueprint: Blueprint, step: int, written: Written
    ) -> dict[str, Pair]:
        """Of each mixture the least fit and the fittest of the usual experts, by block. With an `expert_usage` in the
        trigger: the least fit of those that `to_prune` would have go."""
        self._read()
        found, measured = {}, cache(written)
        for block, moe, book in self._open(action, blueprint, step):
            _, spare = self._spare(trigger, block, moe, book, step)
            if moe.stacked > 1 and spare:
                fitness = self.fitness(block, measured()[block])
                fittest = max(range(moe.stacked), key=lambda e: (fitness[e], e))
                least = min(spare, key=lambda e: (fitness[e], e))
                if least != fittest:
                    found[block] = least, fittest
        return found

    # -------------------------------------------------------------------------------------------- bookkeeping

    def follow(
        self, before: Blueprint, after: Blueprint, step: int, takes: Mapping[str, AxisMap] | None = None
    ) -> None:
        """After a growth from `before` to `after`. takes: as in `Grown`, which experts went where.

        What is known of an expert goes with it. A mixture that is new begins with nothing known.
        """
        self._read()
        earlier = mixtures(before)
        books = {}
        for block, moe in mixtures(after).items():
            if block not in earlier:
                books[block] = self._new(moe, step)
                continue
            book = books[block] = self.books[block]
            sources = _sources(earlier[block], moe, before, after, f"{block}.ffn", takes or {})
            if sources != list(range(book.size)):
                book.follow(sources, step)
        self.books = books

    def touched(self, blocks: Sequence[str], step: int) -> None:
        """Mixtures whose experts changed without growing or shrinking: nothing else becomes of them in this step."""
        for block in blocks:
            self.books[block].changed = step

    def state(self) -> dict[str, Any]:
        """All of it, for JSON."""
        self._read()
        return {"step": self.step, "books": {block: asdict(book) for block, book in self.books.items()}}

    @classmethod
    def from_state(cls, blueprint: Blueprint, rules: Iterable[GrowthRule], state: memory.Books) -> Self:
        """As it was when `state` was taken of the same model under the same rules; ValueError where of others."""
        experts = cls.of(blueprint, rules, state.step)
        books = {block: Book.recalled(kept) for block, kept in state.books.items()}
        fresh = {block: book.measures for block, book in experts.books.items()}
        if {block: book.measures for block, book in books.items()} != fresh:
            raise ValueError("it is of other mixtures of experts than the architecture has")
        experts.books = books
        return experts


def mixtures(blueprint: Blueprint, action: Action | None = None) -> dict[str, MoE]:
    """The mixtures of a model, or those that an action is for, by the id of their block."""
    named = () if action is None else action.blocks
    return {
        block.id: block.ffn
        for block in blueprint.blocks
        if isinstance(block.ffn, MoE) and (not named or block.id in named)
    }


def experts_of(blueprint: Blueprint) -> dict[str, int]:
    """Block id -> experts of its mixture, of those that have one."""
    return {block: moe.n_experts for block, moe in mixtures(blueprint).items()}


def entropy(usage: Sequence[float]) -> float:
    """How evenly experts are used: −Σ u·ln u in nats, ln N where all N are used alike."""
    shares = np.asarray([share for share in usage if share > 0.0])
    return float(-(shares * np.log(shares)).sum())


def _dispensable(moe: MoE, experts: Sequence[int], most: int) -> tuple[int, ...]:
    """The first of these that may all go, so that as many places are left as the router chooses, and two."""
    sharing, gone = moe.sharing, list[int]()
    for expert in experts:
        fewer = sharing.without(expert)
        if len(gone) < most and moe.shared_by(fewer) is not None:
            sharing = fewer
            gone.append(expert)
    return tuple(gone)


def _name(trigger: ExpertUsageTrigger) -> str:
    """What a trigger says, as a key."""
    return trigger.model_dump_json()


def _sources(
    before: MoE, after: MoE, parent: Blueprint, child: Blueprint, key: str, takes: Mapping[str, AxisMap]
) -> list[int]:
    """For every expert of the child its number in the parent, −1 for new ones."""
    aligned = after.align(before, child.context(), parent.context())
    maps = {} if aligned is None else aligned.maps
    stacked = _index(takes.get(f"{key}/expert", maps.get("expert")), before.stacked, after.stacked)
    others = _index(takes.get(f"{key}/other", maps.get("other")), len(before.experts), len(after.experts))
    return stacked + [before.stacked + i if i >= 0 else -1 for i in others]


def _index(take: AxisMap | None, before: int, after: int) -> list[int]:
    if take is not None and take.how == "index":
        return list(take.index)
    return [i if i < before else -1 for i in range(after)]
