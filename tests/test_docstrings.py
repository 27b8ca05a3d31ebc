"""What others call says of every parameter and field what it is. Read from the source: nothing is imported."""

import ast
import re
from pathlib import Path

import pytest

import morphogen

SRC = Path(morphogen.__file__).parent

#: Module -> what of it is meant to be called or read from outside, besides what `morphogen` and its `testing` give.
MORE = {
    "morphogen.execution": ["open_executor"],
    "morphogen.execution.base": ["Execution", "Limits", "Executor.map"],
    "morphogen.figures": ["Figure", "declare", "find", "direction"],
    "morphogen.parts.contract.operator": [
        *("Operator", "operator", "block_operator", "model_operator", "train_operator", "pick"),
    ],
    "morphogen.parts.contract.context": ["Context"],
    "morphogen.parts.contract.cost": ["Cost"],
    "morphogen.parts.contract.part": [
        f"Part.{name}"
        for name in ("anew", "tensors", "norms", "sizes", "build", "cost", "kept", "specs", "align", "resized")
    ],
    "morphogen.run": ["Run.resume"],
    "morphogen.search.engine": ["Engine.replay", "Engine.job", "Engine.job_in"],
    "morphogen.search.machine": ["Search.apply", "Search.ask", "Search.tell"],
    "morphogen.winners": ["Winners.of"],
}


def parsed(module: str) -> ast.Module:
    path = SRC.parent / module.replace(".", "/")
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8"))


def public() -> list[tuple[str, str]]:
    """(module, name) of all that is public."""
    found = [home for home in vars(morphogen)["_HOMES"].values() if home[1] != "MorphogenError"]
    for node in parsed("morphogen.testing").body:
        if isinstance(node, ast.ImportFrom):
            found += [(str(node.module), alias.name) for alias in node.names if alias.name != "Vectors"]
    return found + [(module, name) for module, names in MORE.items() for name in names]


@pytest.mark.parametrize(("module", "name"), public())
def test_every_parameter_and_field_of_what_is_public_is_explained(module: str, name: str) -> None:
    body, node = parsed(module).body, None
    for step in name.split("."):
        (node,) = (each for each in body if isinstance(each, ast.FunctionDef | ast.ClassDef) and each.name == step)
        body = node.body
    assert node is not None
    text = ast.get_docstring(node) or ""
    if isinstance(node, ast.ClassDef):
        wanted = [ast.unparse(each.target) for each in body if isinstance(each, ast.AnnAssign)]
        section = "Attributes:"
    else:
        several = [node.args.vararg] if node.args.vararg else []
        given = [*node.args.posonlyargs, *node.args.args, *several, *node.args.kwonlyargs]
        wanted, section = [each.arg for each in given if each.arg not in ("self", "cls")], "Args:"
    explained = re.findall(r"^    (\w+): \S", text.partition(f"\n{section}\n")[2].partition("\n\n")[0], re.MULTILINE)
    assert explained == wanted
