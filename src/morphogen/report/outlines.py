"""A lineage as text that other programs draw: for Graphviz, and for Mermaid, which forges and notebooks show."""

import re
from collections.abc import Iterable, Mapping

from morphogen.candidate import Candidate, Report, Status
from morphogen.escape import harmless, visible
from morphogen.report.layout import lay_out
from morphogen.report.wording import edits_short

#: In Mermaid's text an entity begins with # instead of &; these would end a label, or begin something else.
_MERMAID = re.compile(r"[^\w .,:;+~^=@/()\[\]-]|--|==", re.ASCII)


def lineage_dot(candidates: Mapping[str, Candidate], reports: Mapping[str, Report], finalists: Iterable[str]) -> str:
    """For `dot -Tsvg`: finalists' lines in black, all else in gray; a dashed edge is a crossover's other parent."""
    from graphviz import Digraph, escape

    layout = lay_out(candidates, finalists)
    node = {"shape": "box", "style": "rounded", "fontname": "Helvetica"}
    graph = Digraph("lineage", graph_attr={"rankdir": "LR"}, node_attr=node)
    order = sorted(candidates, key=lambda id: candidates[id].index)
    for id in order:
        look = {} if layout.places[id].on_line else {"color": "gray", "fontcolor": "gray"}
        status = reports[id].status if id in reports else Status.PROPOSED
        graph.node(id, id, tooltip=status.value, **look)
    for id in order:
        for position, parent in enumerate(parent for parent in candidates[id].parents if parent in candidates):
            look = {"style": "dashed"} if position else {}
            graph.edge(parent, id, escape(visible(edits_short(candidates[id]))), **look)
    text: str = graph.source
    return text


def lineage_mermaid(
    candidates: Mapping[str, Candidate], reports: Mapping[str, Report], finalists: Iterable[str]
) -> str:
    """For Mermaid: finalists stand out, what led to none of them is faded, a crossover is a lozenge."""
    layout = lay_out(candidates, finalists)
    order = sorted(candidates, key=lambda id: candidates[id].index)
    names = {id: f"n{position}" for position, id in enumerate(order)}
    ends = set(layout.finalists)
    lines = ["%% a morphogen lineage", "flowchart LR"]
    for id in order:
        known = [parent for parent in candidates[id].parents if parent in candidates]
        left, right = ("{{", "}}") if len(known) > 1 else ("(", ")")
        look = "finalist" if id in ends else "" if layout.places[id].on_line else "faded"
        lines.append(f'  {names[id]}{left}"{_mermaid(id)}"{right}{f":::{look}" if look else ""}')
    for id in order:
        for position, parent in enumerate(parent for parent in candidates[id].parents if parent in candidates):
            arrow = "-.->" if position else "-->"
            lines.append(f'  {names[parent]} {arrow}|"{_mermaid(edits_short(candidates[id]))}"| {names[id]}')
    lines += ["  classDef finalist stroke-width:3px", "  classDef faded opacity:0.45"]
    return "\n".join(lines) + "\n"


def _mermaid(text: str) -> str:
    """Text inside quotes; whatever Mermaid or its HTML could take for something else stands as its number."""
    return _MERMAID.sub(lambda found: "".join(f"#{ord(one)};" for one in found[0]), visible(harmless(text)))
