"""The model card of an export: what the model is, where it comes from, what was measured of it, how to load it."""

from pathlib import Path

from pydantic import ValidationError

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.errors import MorphogenError
from morphogen.figures import known
from morphogen.inherit.excerpts import layers_taken
from morphogen.inherit.provenance import Provenance
from morphogen.store.lineage import Lineage, Node


def told(checkpoint: Path, blueprint: Blueprint, provenance: Provenance, kind: str, candidate: str) -> str:
    """The card in Markdown.

    Args:
        checkpoint: What is exported; the run that it lies in is asked for its lineage.
        blueprint: Of the model.
        provenance: What the checkpoint says of its text.
        kind: The architecture it is exported as.
        candidate: Its id; empty where it is none of a run.
    """
    lineage = _lineage(checkpoint)
    node = next((each for each in lineage.nodes if each.id == candidate), None) if lineage else None
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {blueprint.name}{f' / {candidate}' if candidate else ''}",
        "",
        f"A language model of {parameter_count(blueprint):,} parameters whose architecture was evolved by morphogen"
        if node
        else f"A language model of {parameter_count(blueprint):,} parameters, written by morphogen",
        f"({len(blueprint.blocks)} blocks, width {blueprint.emb.dim}; `blueprint.yaml` says all of it).",
        "",
        *_loading(kind),
        *_borrowing(blueprint),
        "",
        *_training(provenance),
    ]
    if lineage and node:
        lines += ["", *_figures(node), "", *_ancestry(lineage, node)]
    return "\n".join(lines) + "\n"


def _lineage(checkpoint: Path) -> Lineage | None:
    path = checkpoint.parent.parent / "lineage.json"
    if not path.is_file():
        return None
    try:
        return Lineage.read(path)
    except (MorphogenError, ValidationError):
        return None


def _loading(kind: str) -> list[str]:
    lines = ["```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if kind == "morphogen":
        return [
            "No class of transformers computes this architecture. Its class lies in this folder and **needs the",
            "package `morphogen` installed**, whose layers it runs; it reads no other code.",
            "",
            *lines,
            'model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)',
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=True)',
            "```",
        ]
    return [
        f"It is of transformers' own class `{kind}`.",
        "",
        *lines,
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        "```",
    ]


def _borrowing(blueprint: Blueprint) -> list[str]:
    """Of layers of other models all is here that they need; whose they are is said."""
    if not (taken := layers_taken([blueprint])):
        return []
    return [
        "",
        "**It runs layers of other models.** Their weights lie in this folder, and their configs in `config.json`; the",
        "terms of those models hold for them:",
        "",
        *(f"- `{model}`: layers {', '.join(map(str, sorted(layers)))}" for model, layers in taken.items()),
    ]


def _training(provenance: Provenance) -> list[str]:
    tokens = provenance.tokens
    return [
        "## Training",
        "",
        f"- tokenizer: {provenance.name or 'not on record'}",
        f"- tokens that these weights and their ancestors' have seen: {tokens.lineage:,}",
        f"- tokens of its own training: {tokens.own:,}",
    ]


def _figures(node: Node) -> list[str]:
    registry = known()
    lines = ["## Figures", "", "Metrics are measured on held-out text; costs follow from the architecture.", ""]
    lines += ["| figure | value | unit |", "|---|---|---|"]
    for name, value in sorted({**node.costs, **node.metrics}.items()):
        error = f" ± {node.errors[name]:.2g}" if name in node.errors else ""
        lines.append(f"| {name} | {value:.6g}{error} | {registry[name].unit if name in registry else ''} |")
    return lines


def _ancestry(lineage: Lineage, node: Node) -> list[str]:
    """The edits from the root, along first parents."""
    lines, here = list[str](), node.id
    while edges := [edge for edge in lineage.edges if edge.child == here]:
        done = " + ".join(edit.operator for edit in edges[0].edits) or "trained further"
        others = f" with {edges[1].parent}" if len(edges) > 1 else ""
        lines.append(f"- `{here}`: {done} of `{edges[0].parent}`{others}")
        here = edges[0].parent
    return ["## Lineage", "", *reversed(lines), *(["It is the root."] if not lines else [])]
