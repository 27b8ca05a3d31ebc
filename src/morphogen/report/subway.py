"""The lineage as a subway map, drawn by our own layout: one coloured line per candidate of the frontier, a station per
edit.

SVG text that needs nothing outside itself, follows the reader's light or dark theme, and is the same for the same data.
"""

from collections.abc import Iterable, Mapping
from colorsys import hls_to_rgb
from itertools import pairwise
from typing import Literal, NamedTuple

from morphogen.candidate import Candidate, Report, Status
from morphogen.escape import xml
from morphogen.report.layout import LABEL_SIZE, Layout, Place, lay_out
from morphogen.report.shown import RunShown
from morphogen.report.wording import edit_lines, edits_short, number, shorten, story

Objectives = Mapping[str, Literal["min", "max"]]

PALETTE = (
    "#1f78d1", "#e4453a", "#22a155", "#f0a202", "#8e4ec6", "#00a0b0",
    "#e26bb0", "#a0683a", "#7f9a1a", "#5366d6", "#ff7a33", "#667788",
)  # fmt: skip

STYLE = """
.subway{font-family:"Helvetica Neue",Helvetica,Arial,"DejaVu Sans",sans-serif}
.subway .bg{fill:#fcfcfa}.subway .stripe{fill:#f2f3f0}
.subway text{fill:#22272e}.subway .dim{fill:#6a737d}.subway .title{font-size:21px;font-weight:700}
.subway .head{font-size:11px;font-weight:600;fill:#6a737d}.subway .name{font-size:11px}
.subway .end{font-size:12px;font-weight:600}.subway .value{font-size:12px}.subway .best{font-weight:700}
.subway text.halo{fill:none;stroke:#fcfcfa;stroke-width:3.5px;stroke-linejoin:round}
.subway .route{fill:none;stroke-linecap:round;stroke-linejoin:round}
.subway .casing{fill:none;stroke:#fcfcfa;stroke-linecap:round;stroke-linejoin:round}
.subway .twig{fill:none;stroke:#c4cad0;stroke-width:1.1px}.subway .giver{stroke:#8b949e;stroke-width:1.8px}
.subway .stop{fill:#fff;stroke:#22272e}.subway .lossy{fill:#22272e}.subway .crossing{fill:#ffd43b;stroke:#22272e}
.subway .dead{fill:#c4cad0}.subway .dead-giver{fill:#8b949e;stroke:#fcfcfa;stroke-width:1.4px}
.subway .gated{fill:none;stroke:#b4bbc2;stroke-width:1.4px}
.subway .cross{fill:none;stroke:#b4bbc2;stroke-width:1.6px;stroke-linecap:round}
.subway .faint{font-size:9.5px;fill:#98a1aa}
@media (prefers-color-scheme:dark){
.subway .bg{fill:#14181d}.subway .stripe{fill:#1a1f26}
.subway text{fill:#e6edf3}.subway .dim,.subway .head{fill:#9aa4af}
.subway text.halo{stroke:#14181d;fill:none}.subway .casing{stroke:#14181d}
.subway .twig{stroke:#39414b}.subway .giver{stroke:#77818c}
.subway .stop{fill:#14181d;stroke:#f0f6fc}.subway .lossy{fill:#f0f6fc}.subway .crossing{fill:#b88a00;stroke:#f0f6fc}
.subway .dead{fill:#48515c}.subway .dead-giver{fill:#77818c;stroke:#14181d}.subway .gated,.subway .cross{stroke:#56606b}
.subway .faint{fill:#727c87}}
"""

LEFT, TOP, PAD = 34.0, 112.0, 30.0


def color(lane: int) -> str:
    """The colour of a line: the palette first, then hues a golden angle apart."""
    if lane < len(PALETTE):
        return PALETTE[lane]
    red, green, blue = hls_to_rgb(lane * 137.508 % 360 / 360, 0.5, 0.62)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


class Panes(NamedTuple):
    """A map in parts, as a page sets them: the lines; their ends with names and values, which stay in view however far
    the lines reach; what the marks mean."""

    lines: str
    ends: str
    legend: str


def lineage_svg(
    title: str,
    candidates: Mapping[str, Candidate],
    reports: Mapping[str, Report],
    finalists: Iterable[str],
    objectives: Objectives,
) -> str:
    """The subway map of a run.

    `finalists` get a line each; their `objectives` stand at its end. Hovering a station tells its operator with what
    it changed. Ids that are not among the candidates are left out.
    """
    layout = lay_out(candidates, finalists)
    ends = _Ends(layout, objectives)
    width = max(LEFT + layout.end + ends.width, 760.0)
    legend, legend_height = _legend(width)
    below = TOP + _shift(layout) + layout.bottom + PAD
    height = below + 24 + legend_height
    parts = [
        _opened(0.0, width, height, f"{title}: lineage"),
        f"<style>{STYLE}</style>",
        f'<rect class="bg" width="{width:.0f}" height="{height:.0f}" rx="10"/>',
        f'<text class="title" x="{LEFT:.0f}" y="40">{xml(title)}</text>',
        f'<text class="dim" font-size="12.5" x="{LEFT:.0f}" y="61">{xml(_summary(candidates, reports, layout))}</text>',
        *_map(layout, candidates, reports, below),
        f'<g transform="translate({LEFT:.0f},{TOP + _shift(layout):.1f})">',
        *_terminals(layout, reports, objectives, ends),
        "</g>",
        f'<g transform="translate(0,{below + 34:.1f})">',
        *legend,
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def lineage_panes(run: RunShown) -> Panes:
    """The same map in parts for a page."""
    layout = lay_out(run.candidates, run.frontier)
    ends = _Ends(layout, run.objectives)
    above = TOP - 44.0  # the page has said the title
    below = TOP + _shift(layout) + layout.bottom + PAD
    split = LEFT + layout.end - (10.0 if layout.finalists else -PAD)
    lines = [
        _opened(0.0, split, below - above, f"{run.run}: lineage", above),
        f"<style>{STYLE}</style>",
        f'<rect class="bg" y="{above:.0f}" width="{split:.0f}" height="{below - above:.0f}"/>',
        *_map(layout, run.candidates, run.reports, below),
        "</svg>",
    ]
    room = ends.width + 10.0
    right = [
        _opened(split, room, below - above, f"{run.run}: frontier", above),
        f'<rect class="bg" x="{split:.1f}" y="{above:.0f}" width="{room:.0f}" height="{below - above:.0f}"/>',
        f'<g transform="translate({LEFT:.0f},{TOP + _shift(layout):.1f})">',
        *_terminals(layout, run.reports, run.objectives, ends),
        "</g></svg>",
    ]
    keys = [
        '<span class="key"><svg class="subway" width="26" height="22" viewBox="-13 -11 26 22" aria-hidden="true">'
        f"{shape}</svg>{xml(text)}</span>"
        for shape, text in _KEYS
    ]
    return Panes("\n".join(lines), "\n".join(right) if layout.finalists else "", "\n".join(keys))


def _opened(left: float, width: float, height: float, name: str, top: float = 0.0) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" class="subway" '
        f'viewBox="{left:.1f} {top:.0f} {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{xml(name)}">'
    )


def _shift(layout: Layout) -> float:
    """From the top of the drawing down to where the layout's rows begin."""
    return max(PAD, layout.scale.label_height + 6.0) - layout.top


def _map(layout: Layout, candidates: Mapping[str, Candidate], reports: Mapping[str, Report], below: float) -> list[str]:
    return [
        *_stripes(layout, below),
        f'<g transform="translate({LEFT:.0f},{TOP + _shift(layout):.1f})">',
        *_background(layout),
        *_lines(layout),
        *_dead_ends(layout, candidates, reports),
        *_stations(layout, candidates, reports),
        "</g>",
    ]


class _Ends:
    """Room for what stands at the ends of lines."""

    def __init__(self, layout: Layout, objectives: Objectives) -> None:
        self.ids = 24 + max((len(id) for id in layout.finalists), default=0) * 6.9
        self.values = [max(70.0, 8.0 * len(f"{name} ↓") + 14) for name in objectives]
        self.width = 18 + self.ids + sum(self.values) + 24 if layout.finalists else PAD


def _status(reports: Mapping[str, Report], id: str) -> Status:
    return reports[id].status if id in reports else Status.PROPOSED


def _summary(candidates: Mapping[str, Candidate], reports: Mapping[str, Report], layout: Layout) -> str:
    counts = dict.fromkeys(Status, 0)
    for id in candidates:
        counts[_status(reports, id)] += 1
    facts = [
        f"{len(candidates)} candidates",
        f"{max(0, len(layout.columns) - 1)} generations",
        f"{len(layout.finalists)} on the frontier",
    ]
    facts += [f"{counts[status]} {status}" for status in Status if counts[status] and status is not Status.TRAINED]
    return " · ".join(facts)


def _stripes(layout: Layout, bottom: float) -> list[str]:
    parts = []
    room = min((right.x - left.x for left, right in pairwise(layout.columns)), default=100.0)
    longest = max((len(f"gen {column.generation}") for column in layout.columns), default=0)
    for number_, column in enumerate(layout.columns):
        left = 0.0 if number_ == 0 else LEFT + (layout.columns[number_ - 1].after + column.before) / 2
        after = layout.columns[number_ + 1].before if number_ + 1 < len(layout.columns) else layout.end
        right = LEFT + (column.after + after) / 2
        if number_ % 2:
            parts.append(
                f'<rect class="stripe" x="{left:.1f}" y="{TOP - 34:.0f}" width="{right - left:.1f}"'
                f' height="{bottom - TOP + 34:.1f}"/>'
            )
        generation = "…" if column.generation is None else str(column.generation)
        name = ("seed" if generation == "0" else f"gen {generation}") if longest * 7.0 < room else generation
        parts.append(
            f'<text class="head" x="{LEFT + column.x:.1f}" y="{TOP - 14:.0f}" text-anchor="middle">{name}</text>'
        )
    return parts


def _background(layout: Layout) -> list[str]:
    return [f'<path class="twig{" giver" if giver else ""}" d="{path}"/>' for _, giver, path in layout.twigs]


def _dead_ends(layout: Layout, candidates: Mapping[str, Candidate], reports: Mapping[str, Report]) -> list[str]:
    """Those that led to no finalist of their own: small marks, with a tooltip each."""
    parts = []
    givers = {child for child, giver, _ in layout.twigs if giver}
    for id, place in layout.places.items():
        if place.on_line:
            continue
        x, y, status = place.x, place.y, _status(reports, id)
        own = f' data-id="{xml(id)}"'
        if status in (Status.FAILED, Status.REJECTED):
            shape = f'path class="cross"{own} d="M{x - 2.6:.1f} {y - 2.6:.1f}l5.2 5.2m0 -5.2l-5.2 5.2"'
        elif id in givers:
            shape = f'circle class="dead-giver"{own} cx="{x:.1f}" cy="{y:.1f}" r="4.2"'
        else:
            shape = (
                f'circle class="{"gated" if status is Status.GATED else "dead"}"{own} cx="{x:.1f}" cy="{y:.1f}" r="3"'
            )
        tip = xml(story(candidates[id], reports.get(id)))
        parts.append(f"<{shape}><title>{tip}</title></{shape.split()[0]}>")
        if layout.scale.faint_labels:
            parts += _text("faint", x + 7, y + 3.2, shorten(edits_short(candidates[id]), 17), "start")
    return parts


def _lines(layout: Layout) -> list[str]:
    thick = layout.gap * 0.84
    parts = []
    for parent, child, lane, path in layout.transfers:
        stroke = f'stroke="{color(lane)}"' if lane is not None else 'stroke="#8b949e"'
        tip = f"<title>{xml(f'genes of {parent} enter {child}')}</title>"
        parts.append(f'<path class="casing" stroke-width="{thick * 0.7 + 2:.2f}" d="{path}"/>')
        parts.append(f'<path fill="none" {stroke} stroke-width="{thick * 0.7:.2f}" d="{path}">{tip}</path>')
    for lane, (path, tail) in enumerate(layout.routes):
        tip = f"<title>{xml(layout.finalists[lane])}</title>"
        dots = f'stroke-dasharray="0.1 {thick * 1.9:.2f}" stroke-opacity="0.75"'
        parts.append(f'<path class="casing" stroke-width="{thick + 1.6:.2f}" d="{path}"/>')
        parts.append(f'<path class="route" stroke="{color(lane)}" stroke-width="{thick:.2f}" d="{path}">{tip}</path>')
        parts.append(
            f'<path class="route" stroke="{color(lane)}" stroke-width="{thick:.2f}" {dots} d="{tail}">{tip}</path>'
        )
    return parts


def _stations(layout: Layout, candidates: Mapping[str, Candidate], reports: Mapping[str, Report]) -> list[str]:
    parts, texts = [], []
    sides = {child: (1.0 if layout.places[parent].y > layout.places[child].y else -1.0)
             for parent, child, _, _ in layout.transfers if layout.places[child].on_line}  # fmt: skip
    for id, place in layout.places.items():
        if not place.on_line:
            continue
        candidate = candidates[id]
        reach = sides.get(id, 0.0) * layout.gap
        xs = (*place.stops, place.x)
        for k, x in enumerate(xs):
            last, edit = k + 1 == len(xs), candidate.edits[k] if candidate.edits else None
            tip = xml(story(candidate, reports.get(id)) if last or edit is None else "\n".join(edit_lines(edit)))
            size = (5.2 if layout.scale.labels else 3.6) if last else 3.2
            if id in sides and x == place.enters:
                parts.append(_crossing(id, place, x, size, tip, reach))
            else:
                parts.append(_station(id, place, x, size, edit is not None and not edit.preserves, tip))
            if layout.scale.labels:
                name = edits_short(candidate) if edit is None else edit.operator
                texts += _name(layout, place, x, name, reach if x == place.enters else 0.0, low=(len(xs) - k) % 2 == 0)
    return parts + texts


def _name(layout: Layout, place: Place, x: float, name: str, reach: float, *, low: bool) -> list[str]:
    """An edit's name beside its station, above or below; all are above where they stand aslant."""
    top, slant, text = place.y - place.half + min(0.0, reach) - 11, layout.scale.slant, layout.scale.label(name)
    if slant:
        turned = f' transform="rotate({-slant:.0f} {x + 1:.1f} {top:.1f})"'
        return _text("name", x + 1, top, text, "start", turned)
    return _text("name", x, place.y + place.half + max(0.0, reach) + 18 if low else top, text, "middle")


def _text(look: str, x: float, y: float, text: str, anchor: str, more: str = "") -> list[str]:
    """A name with a halo of the background's colour, so that it reads over lines."""
    rest = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{xml(text)}</text>'
    return [f'<text class="{look} halo" aria-hidden="true" {rest}', f'<text class="{look}" {rest}']


def _station(id: str, place: Place, x: float, size: float, lossy: bool, tip: str) -> str:
    """A round station, or a capsule across the bundle that shares the edit. A filled one is lossy."""
    top, tall = place.y - place.half - size, 2 * (place.half + size)
    return (
        f'<rect class="stop{" lossy" if lossy else ""}" data-id="{xml(id)}" x="{x - size:.1f}" y="{top:.1f}"'
        f' width="{2 * size:.1f}" height="{tall:.1f}" rx="{size:.1f}" stroke-width="1.8"><title>{tip}</title></rect>'
    )


def _crossing(id: str, place: Place, x: float, size: float, tip: str, reach: float) -> str:
    """A crossover: pointed and in a colour of its own, so that it is no edit of several lines; it reaches over to where
    the other parent's genes arrive."""
    top, bottom = place.y - place.half + min(0.0, reach) - 2, place.y + place.half + max(0.0, reach) + 2
    return (
        f'<path class="crossing" data-id="{xml(id)}" d="{_lozenge(x, top, bottom, size + 1.6)}" stroke-width="1.8"'
        f' stroke-linejoin="round"><title>{tip}</title></path>'
    )


def _lozenge(x: float, top: float, bottom: float, size: float) -> str:
    return (
        f"M{x:.1f} {top - 1.3 * size:.1f}L{x + size:.1f} {top:.1f}V{bottom:.1f}L{x:.1f} {bottom + 1.3 * size:.1f}"
        f"L{x - size:.1f} {bottom:.1f}V{top:.1f}Z"
    )


def _terminals(layout: Layout, reports: Mapping[str, Report], objectives: Objectives, ends: _Ends) -> list[str]:
    """Line ends with the finalist's id and its objectives, as a table; the best value of a column is bold."""
    parts, best = [], {}
    known = {id: reports[id] for id in layout.finalists if id in reports}
    for name, direction in objectives.items():
        values = [value for report in known.values() if (value := report.value(name)) is not None and value == value]
        best[name] = (min(values) if direction == "min" else max(values)) if values else None
    left = layout.end + 18
    if layout.finalists:
        edge = left + ends.ids
        for (name, direction), width in zip(objectives.items(), ends.values, strict=True):
            edge += width
            arrow = "↓" if direction == "min" else "↑"
            y = layout.top - 44
            parts.append(f'<text class="head" x="{edge:.1f}" y="{y:.1f}" text-anchor="end">{xml(name)} {arrow}</text>')
    for lane, (id, y) in enumerate(zip(layout.finalists, layout.lanes, strict=True)):
        size = min(6.5, layout.scale.pitch / 3)
        parts.append(
            f'<circle class="stop" cx="{layout.end:.1f}" cy="{y:.1f}" r="{size:.1f}" style="stroke:{color(lane)}"'
            ' stroke-width="3.4"/>'
            f'<text class="end" data-id="{xml(id)}" x="{left:.1f}" y="{y + 4:.1f}">{xml(id)}</text>'
        )
        edge = left + ends.ids
        for name, width in zip(objectives, ends.values, strict=True):
            edge += width
            value = known[id].value(name) if id in known else None
            look = "value best" if value is not None and value == best[name] else "value"
            parts.append(
                f'<text class="{look}" x="{edge:.1f}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>'
            )
    return parts


#: Marks and what they mean.
_KEYS = (
    ('<circle class="stop" r="5" stroke-width="2"/>', "edit that keeps the function"),
    ('<circle class="stop lossy" r="5" stroke-width="2"/>', "lossy edit"),
    (
        '<rect class="stop" x="-4" y="-9" width="8" height="18" rx="4" stroke-width="2"/>',
        "edit that several lines share",
    ),
    (f'<path class="crossing" d="{_lozenge(0.0, -1.0, 1.0, 5.0)}" stroke-width="1.8"/>', "crossover"),
    (
        '<path class="route" stroke="#667788" stroke-width="4.6" stroke-dasharray="0.1 8" d="M-9 0H8"/>',
        "stays unchanged",
    ),
    ('<circle class="dead" r="3"/>', "led nowhere"),
    ('<circle class="dead-giver" r="4.2"/>', "gave genes to the frontier"),
    ('<circle class="gated" r="3"/>', "gated"),
    ('<path class="cross" d="M-2.6 -2.6l5.2 5.2m0 -5.2l-5.2 5.2"/>', "failed or rejected"),
)


def _legend(width: float) -> tuple[list[str], float]:
    """The marks' meanings in as many rows as they need, and how high these are together."""
    parts, x, y = [], LEFT + 8, 0.0
    for shape, text in _KEYS:
        room = 14 + len(text) * LABEL_SIZE * 0.55 + 24
        if x + room > width and x > LEFT + 8:
            x, y = LEFT + 8, y + 24.0
        parts.append(
            f'<g transform="translate({x:.1f},{y:.1f})">{shape}'
            f'<text class="dim" font-size="11" x="14" y="4">{text}</text></g>'
        )
        x += room
    return parts, y + 30.0
