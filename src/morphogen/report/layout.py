"""Where everything of a lineage picture goes: lanes, columns and routes, without a graph library.

x is the generation. Each finalist has a lane of its own on the right; the tree of first parents is drawn over those
lanes, so that lines never cross one another, and lines that share ancestors run side by side in a bundle. Candidates
that led to no finalist take the free places nearest to their parent. Lengths are SVG user units (pixels).
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from morphogen.candidate import Candidate
from morphogen.report.wording import shorten

#: So many generations in a row without candidates are drawn as such, more than that as so many.
GAP = 8
LABEL_SIZE = 11.0
#: A map that would be wider than this names its stations aslant, so that they can stand closer together.
WIDE = 900.0
#: So many lines at most are so far apart that no name reaches from one to the next.
ROOMY = 14
#: So many stations on lines are named at most.
NAMED = 400


@dataclass(frozen=True)
class Scale:
    """Sizes for one density of drawing."""

    pitch: float  # between lanes
    slot: float  # between dead ends
    fan: float  # least width in which routes change rows
    labels: bool  # names beside the stations of lines
    faint_labels: bool  # names beside dead ends
    slant: float = 0.0  # of those names, in degrees
    label_chars: int = 20  # of a name that are drawn at most

    def label(self, text: str) -> str:
        """A station's name as it is drawn."""
        return shorten(text, self.label_chars)

    def label_width(self, texts: Iterable[str]) -> float:
        """Room that the widest of some names takes from left to right."""
        if not self.labels:
            return 14.0
        return 26.0 if self.slant else max(len(self.label(text)) for text in texts) * LABEL_SIZE * 0.56

    @property
    def label_height(self) -> float:
        """How far a name reaches above its station."""
        return self.label_chars * LABEL_SIZE * 0.56 * math.sin(math.radians(self.slant)) if self.labels else 0.0


@dataclass
class Place:
    """A candidate's station. `half`: half the height of the bundle through it. `stops`: x of its edits but the last.
    `enters`: x of the edit by which another parent's genes come in."""

    x: float
    y: float
    column: int
    half: float = 0.0
    stops: tuple[float, ...] = ()
    on_line: bool = False
    enters: float = 0.0


@dataclass
class Column:
    """One generation: `before` is where routes into it have arrived, `x` its stations, `after` where routes leave.

    generation: its number; None where it stands for a long stretch without candidates.
    """

    generation: int | None = None
    before: float = 0.0
    x: float = 0.0
    after: float = 0.0


@dataclass
class Layout:
    """The finished drawing layout. Paths are SVG path data; `lanes` is the y of each finalist's end."""

    scale: Scale
    finalists: tuple[str, ...]
    places: dict[str, Place] = field(default_factory=dict)
    columns: list[Column] = field(default_factory=list)
    lanes: list[float] = field(default_factory=list)
    gap: float = 5.5
    end: float = 0.0
    top: float = 0.0
    bottom: float = 0.0
    routes: list[tuple[str, str]] = field(default_factory=list)  # per finalist: with edits, and on to the end
    transfers: list[tuple[str, str, int | None, str]] = field(
        default_factory=list
    )  # parent, child, parent's lane, path
    twigs: list[tuple[str, bool, str]] = field(default_factory=list)  # child, gave genes to a finalist, path


def lay_out(candidates: Mapping[str, Candidate], finalists: Iterable[str]) -> Layout:
    """Places all `candidates` and routes one line to each finalist. Parents that are not given are left out."""
    family = _Family(candidates, finalists)
    roomy = Scale(54.0, 15.0, 44.0, True, len(candidates) <= 60)
    pitch = 80.0 if len(family.finalists) <= ROOMY else 62.0
    slanted = Scale(pitch, 12.0, 20.0, True, False, slant=38.0, label_chars=16)
    if len(family.on_line) > NAMED:
        return _laid_out(family, Scale(22.0, 9.0, 26.0, False, False))
    layout = _laid_out(family, roomy)
    return layout if layout.end <= WIDE else _laid_out(family, slanted)


def _laid_out(family: "_Family", scale: Scale) -> Layout:
    layout = Layout(scale, family.finalists)
    layout.gap = min(5.5, 150.0 / max(1, len(family.finalists)))
    layout.lanes = [scale.pitch * lane for lane in range(len(family.finalists))]
    rows = _rows(family, layout)
    dead = [id for id in family.order if id not in family.on_line]
    sub = _sub_columns(family, layout, dead)
    _set_columns(family, layout, rows, sub)
    for id, (y, half) in rows.items():
        column = layout.columns[family.column[id]]
        count = len(family.candidates[id].edits)
        step = (column.x - column.before) / count if count else 0.0
        stops = tuple(column.x - step * back for back in range(count - 1, 0, -1))
        crossing = next((k for k, edit in enumerate(family.candidates[id].edits) if edit.sources), 0)
        enters = [*stops, column.x][crossing]
        layout.places[id] = Place(column.x, y, family.column[id], half, stops, True, enters)
    _place_dead(family, layout, dead, sub)
    _route(family, layout)
    ys = [place.y for place in layout.places.values()] + layout.lanes
    layout.top, layout.bottom = min(ys, default=0.0), max(ys, default=0.0)
    return layout


def _columns(generations: Iterable[int]) -> dict[int, int]:
    """Generation -> column, for every one that occurs: its number, but that long stretches without any are shortened,
    as a file may claim that they are millions."""
    columns: dict[int, int] = {}
    last, column = 0, 0
    for generation in sorted(set(generations)):
        column += min(max(generation - last, 0), GAP)
        columns[generation], last = column, generation
    return columns


class _Family:
    """The candidates' relations: columns, first parents, and who is on a line."""

    def __init__(self, candidates: Mapping[str, Candidate], finalists: Iterable[str]) -> None:
        self.candidates = candidates
        self.order = sorted(candidates, key=lambda id: candidates[id].index)
        self.parents = {id: [parent for parent in candidates[id].parents if parent in candidates] for id in self.order}
        self.column: dict[str, int] = {}
        drawn_at = _columns(candidate.generation for candidate in candidates.values())
        for id in self.order:  # parents are older, so they are known by now
            least = 1 + max((self.column[parent] for parent in self.parents[id]), default=-1)
            self.column[id] = max(drawn_at[candidates[id].generation], least)
        self.depth = 1 + max(self.column.values(), default=0)
        self.generations: list[int | None] = [None] * self.depth
        for (left, first), (right, last) in pairwise([(0, 0), *sorted(drawn_at.items())]):
            self.generations[last] = right
            if right - left == last - first:
                self.generations[first:last] = range(left, right)
        wanted = sorted({id for id in finalists if id in candidates}, key=lambda id: candidates[id].index)
        paths = {id: self.path(id) for id in wanted}
        self.on_line = {id for path in paths.values() for id in path}
        self.children: dict[str, list[str]] = {id: [] for id in self.on_line}
        roots = []
        for id in (id for id in self.order if id in self.on_line):
            if self.parents[id]:
                self.children[self.parents[id][0]].append(id)
            else:
                roots.append(id)
        self.finalists = tuple(self._lanes(roots, set(wanted)))
        self.lane = {id: lane for lane, id in enumerate(self.finalists)}
        self.paths = [paths[id] for id in self.finalists]
        self.span: dict[str, tuple[int, int]] = {}
        for lane, path in enumerate(self.paths):
            for id in path:
                low, high = self.span.get(id, (lane, lane))
                self.span[id] = min(low, lane), max(high, lane)
        self.givers = self._givers()

    def path(self, id: str) -> list[str]:
        """From the root to `id` along first parents."""
        path = [id]
        while self.parents[path[-1]]:
            path.append(self.parents[path[-1]][0])
        return path[::-1]

    def _lanes(self, roots: Sequence[str], wanted: set[str]) -> list[str]:
        """Finalists from top to bottom: depth first, so that every subtree holds neighbouring lanes."""
        lanes, stack = [], list(reversed(roots))
        while stack:
            id = stack.pop()
            if id in wanted:
                lanes.append(id)
            stack += reversed(self.children[id])
        return lanes

    def _givers(self) -> set[str]:
        """Candidates beside the lines that gave genes to a finalist through a crossover."""
        found: set[str] = set()
        stack = list(self.on_line)
        while stack:
            for parent in self.parents[stack.pop()]:
                if parent not in self.on_line and parent not in found:
                    found.add(parent)
                    stack.append(parent)
        return found


def _rows(family: _Family, layout: Layout) -> dict[str, tuple[float, float]]:
    """(y, half height) of each candidate on a line: in the row of its middle child, if its bundle fits there."""
    rows: dict[str, tuple[float, float]] = {}
    for id in reversed([id for id in family.order if id in family.on_line]):
        low, high = family.span[id]
        half = (high - low) / 2 * layout.gap
        middle = (low + high) // 2
        y = layout.lanes[middle]
        for child in family.children[id]:
            if family.span[child][0] <= middle <= family.span[child][1]:
                y = rows[child][0]
        room = layout.scale.pitch / 2
        if y - half < layout.lanes[low] - room or y + half > layout.lanes[high] + room:
            y = (layout.lanes[low] + layout.lanes[high]) / 2
        rows[id] = y, half
    return rows


def _sub_columns(family: _Family, layout: Layout, dead: Sequence[str]) -> list[int]:
    """Per column, how many stacks its dead ends need."""
    counts = [0] * family.depth
    for id in dead:
        counts[family.column[id]] += 1
    height = max(40, int(len(layout.lanes) * layout.scale.pitch / layout.scale.slot * 0.7))
    return [math.ceil(count / height) for count in counts]


def _set_columns(family: _Family, layout: Layout, rows: Mapping[str, tuple[float, float]], sub: Sequence[int]) -> None:
    """Widths: room for names on both sides of a station, for its further edits, and for the change of rows after it."""
    scale = layout.scale
    wing, stops, climb = [8.0] * family.depth, [0.0] * family.depth, [0.0] * family.depth
    for id, (y, _) in rows.items():
        candidate, column = family.candidates[id], family.column[id]
        width = scale.label_width([edit.operator for edit in candidate.edits] or ["copy"])
        wing[column] = max(wing[column], width / 2 + 4)
        stops[column] = max(stops[column], (len(candidate.edits) - 1) * (width / 2 + 12))
        if family.parents[id]:
            before = family.column[family.parents[id][0]]
            climb[before] = max(climb[before], abs(y - rows[family.parents[id][0]][0]))
        for giver in family.parents[id][1:]:
            if giver in rows:
                climb[column - 1] = max(climb[column - 1], abs(y - rows[giver][0]) * 0.7)
    x = 0.0
    for number in range(family.depth):
        here = Column(before=x, generation=family.generations[number])
        here.x = x + wing[number] + stops[number]
        side = max(0, sub[number] - 1) * scale.slot + (90.0 if scale.faint_labels and sub[number] else 10.0)
        here.after = here.x + max(wing[number], side) + layout.gap * len(layout.lanes) / 2
        layout.columns.append(here)
        x = here.after + min(max(scale.fan, climb[number] * 0.7), 3.2 * scale.fan)
    layout.end = x + (scale.label_height if scale.slant else 0.0)


def _place_dead(family: _Family, layout: Layout, dead: Sequence[str], sub: Sequence[int]) -> None:
    """Each dead end goes to the free slot nearest to its parent's row, clear of lines and names."""
    slot = layout.scale.slot
    blocked: list[list[tuple[float, float]]] = [[] for _ in range(family.depth)]
    for id in family.on_line:
        place = layout.places[id]
        name = 24.0 if layout.scale.labels and not layout.scale.slant else 8.0
        blocked[place.column].append((place.y, place.half + name))
        first = family.column[family.parents[id][0]] + 1 if family.parents[id] else place.column
        for column in range(first, place.column):
            blocked[column].append((place.y, place.half + 7.0))
    for lane, id in enumerate(family.finalists):
        for column in range(family.column[id] + 1, family.depth):
            blocked[column].append((layout.lanes[lane], 7.0))
    members: dict[int, list[str]] = {}
    for id in dead:
        members.setdefault(family.column[id], []).append(id)
    for column in sorted(members):
        reach = len(members[column]) + int((len(layout.lanes) + 1) * layout.scale.pitch / slot) + 4
        taken: set[int] = set()
        for y, clear in blocked[column]:
            taken.update(range(math.ceil((y - clear) / slot), math.floor((y + clear) / slot) + 1))
        free = [row for row in range(-len(members[column]) - 4, reach) if row not in taken]
        stacks = [list(free) for _ in range(sub[column])]
        for count, id in enumerate(members[column]):
            number = count % sub[column]
            parent = family.parents[id]
            wish = layout.places[parent[0]].y if parent else (layout.lanes[-1] / 2 if layout.lanes else 0.0)
            row = _nearest(stacks[number], wish / slot)
            x = layout.columns[column].x + number * slot
            layout.places[id] = Place(x, row * slot, column, enters=x)


def _nearest(free: list[int], wish: float) -> int:
    """Takes the number closest to `wish` out of the sorted list."""
    right = bisect_left(free, wish)
    take = right if right < len(free) and (right == 0 or free[right] - wish < wish - free[right - 1]) else right - 1
    return free.pop(take)


def _route(family: _Family, layout: Layout) -> None:
    for lane, path in enumerate(family.paths):
        start = layout.places[path[0]]
        points = [(start.x, start.y + _offset(family, layout, path[0], lane))]
        for parent, child in pairwise(path):
            there = layout.places[child]
            y = there.y + _offset(family, layout, child, lane)
            points = [*_bend(layout, points, family.column[parent], y, layout.places[parent].y, there.y), (there.x, y)]
        here = layout.places[path[-1]]
        rest = _bend(layout, points[-1:], here.column, layout.lanes[lane], here.y, layout.lanes[lane])
        layout.routes.append((_rounded(points), _rounded([*rest, (layout.end, layout.lanes[lane])])))
    for id in family.order:
        place, parents = layout.places[id], family.parents[id]
        if parents and not place.on_line:
            first = layout.places[parents[0]]
            layout.twigs.append((id, id in family.givers, _curve(layout, first, place, first.y, place.y)))
        if place.on_line or id in family.givers:
            layout.transfers += [_transfer(family, layout, other, id) for other in parents[1:]]


def _transfer(family: _Family, layout: Layout, giver: str, child: str) -> tuple[str, str, int | None, str]:
    """The route by which another parent's genes reach a crossover: from its nearest line to the child's edge."""
    there, here = layout.places[giver], layout.places[child]
    side = 1.0 if there.y > here.y else -1.0
    lane = family.span[giver][0 if side > 0 else 1] if there.on_line else None
    to = here.y + side * (here.half + layout.gap) if here.on_line else here.y
    return giver, child, lane, _curve(layout, there, here, there.y - side * there.half, to)


def _offset(family: _Family, layout: Layout, id: str, lane: int) -> float:
    low, high = family.span[id]
    return (lane - (low + high) / 2) * layout.gap


def _bend(
    layout: Layout, points: list[tuple[float, float]], column: int, y: float, base: float, target: float
) -> list[tuple[float, float]]:
    """Carries a line past `column` and over to row `y`, at 45 degrees or as steep as the room there asks for.

    base, target: the rows of the bundle's middle before and after; they keep the lines of a bundle parallel.
    """
    from_y = points[-1][1]
    if abs(y - from_y) < 0.01:
        return points
    leave = layout.columns[column].after
    room = (layout.columns[column + 1].before if column + 1 < len(layout.columns) else layout.end) - leave
    climb = abs(target - base)
    angle = math.atan2(climb, min(climb, room)) if climb else math.pi / 4
    shift = (from_y - base) * math.tan(angle / 2) * (1.0 if target > base else -1.0 if target < base else 0.0)
    return [*points, (leave - shift, from_y), (leave - shift + abs(y - from_y) / math.tan(angle), y)]


def _rounded(points: Sequence[tuple[float, float]], radius: float = 14.0) -> str:
    """Path data through `points` with rounded corners."""
    parts = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (ax, ay), (bx, by), (cx, cy) in zip(points, points[1:], points[2:], strict=False):
        before, after = math.hypot(bx - ax, by - ay), math.hypot(cx - bx, cy - by)
        r = min(radius, before / 2, after / 2)
        if r < 0.5:
            parts.append(f"L{bx:.1f} {by:.1f}")
            continue
        parts.append(f"L{bx - (bx - ax) * r / before:.1f} {by - (by - ay) * r / before:.1f}")
        parts.append(f"Q{bx:.1f} {by:.1f} {bx + (cx - bx) * r / after:.1f} {by + (cy - by) * r / after:.1f}")
    return " ".join([*parts, f"L{points[-1][0]:.1f} {points[-1][1]:.1f}"])


def _curve(layout: Layout, parent: Place, child: Place, y0: float, y1: float) -> str:
    """Along the parent's row to the gap before the child's column, over in one S, and on to the child."""
    left = layout.columns[child.column - 1].after
    right = layout.columns[child.column].before
    middle = (left + right) / 2
    start = f"M{parent.x:.1f} {y0:.1f} H{max(left, parent.x):.1f}"
    return f"{start} C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {right:.1f} {y1:.1f} H{child.enters:.1f}"
