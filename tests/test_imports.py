"""The import rule: downwards only, heavy libraries only where they belong, and a package that is cheap to import. Files
and functions of a size that one reads."""

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"
FILES = sorted((SRC / "morphogen").rglob("*.py"))
MODULES = {".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}

#: Unit (module or sub-package) -> the units it may import; those of OPEN are open to all.
OPEN = {
    "against_root",
    "arguments",
    "candidate",
    "plain",
    "continued",
    "documented",
    "edits",
    "errors",
    "escape",
    "estimates",
    "figures",
    "offered",
    "paths",
    "plugins",
    "reach",
}
ARCHITECTURE = {"blueprint", "parts", "ops", "network", "cost", "experiment"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "arguments": set(),
    "estimates": set(),
    "escape": set(),
    "documented": set(),
    "candidate": set(),
    "plain": set(),
    "edits": set(),
    "continued": set(),
    "against_root": set(),
    "paths": set(),
    "figures": set(),
    "plugins": set(),
    "reach": set(),
    "offered": set(),
    "ops": set(),
    "parts": {"ops"},
    "blueprint": {"parts"},
    "selection": set(),
    "starters": set(),
    "sections": {"blueprint", "parts", "selection"},
    "experiment": {"blueprint", "parts", "sections"},
    "knobs": {"experiment", "sections", "blueprint", "parts", "selection"},
    "reading": {"experiment", "blueprint", "parts", "store", "knobs"},
    "differences": set(),
    "network": {"blueprint", "parts", "ops"},
    "cost": {"experiment", "network", "blueprint", "parts"},
    "inherit": ARCHITECTURE | {"store"},
    "variation": ARCHITECTURE | {"inherit"},
    "growth": ARCHITECTURE | {"inherit", "variation", "knobs", "sections"},
    "data": {"experiment", "sections", "store"},
    "metrics": ARCHITECTURE | {"data"},
    "training": ARCHITECTURE | {"data", "metrics", "inherit", "growth", "store"},
    "store": set(),
    "report": set(),
    "beside": {"data", "inherit", "reading", "store"},
    "fusion": ARCHITECTURE | {"beside", "data", "inherit", "reading", "report", "store"},
    "search": ARCHITECTURE | {"variation", "selection", "store"},
    "execution": ARCHITECTURE | {"training", "metrics", "inherit", "data", "store"},
    "testing": ARCHITECTURE | {"inherit", "search", "selection", "variation"},
    "analysis": ARCHITECTURE
    | {"data", "execution", "training", "search", "selection", "store", "variation", "reading"},
}
#: The joining layer: may import anything below, and from each other only downwards in this order.
JOINING = [
    "winners",
    "runfolder",
    "seeds",
    "scaling_up",
    "resuming",
    "pages",
    "foresight",
    "availability",
    "checks",
    "older",
    "notices",
    "retrain",
    "proposers",
    "keeping",
    "session",
    "run",
    "beginnings",
    "trainingfolder",
    "trainingstart",
    "trainings",
    "finetuning",
    "cli",
    "__main__",
]
for position, name in enumerate(JOINING):
    ALLOWED[name] = {unit for unit in list(ALLOWED) if unit not in JOINING} | set(JOINING[:position])

#: Library -> the only modules that may import it, at any depth of their code.
HOMES = {
    "transformers": {
        "parts/foreign/donors/attention.py",
        "parts/foreign/donors/donor.py",
        "parts/foreign/donors/layers.py",
        "parts/foreign/donors/names.py",
        "data/tokenizers.py",
        "fusion/importing.py",
        "fusion/exporting.py",
        "fusion/modeling_morphogen.py",
    },
    "ray": {"execution/ray.py"},
    "fsspec": {"store/exchange.py"},
    "rich": {"cli/console.py", "cli/launch.py", "cli/live.py", "cli/training.py", "report/tables.py"},
    "datasets": {"data/hub.py"},
    "jinja2": {"report/html.py"},
    "plotly": {"report/html.py"},
    "graphviz": {"report/outlines.py"},
    "matplotlib": {"report/growth.py", "report/pictures.py", "report/routing.py"},
    "resvg_py": {"report/png.py"},
    "tensorboard": set(),
    "scipy": {"analysis/statistics.py", "growth/blending.py"},
    "sklearn": {"search/screening.py"},
    "pytest": {"testing/contract.py", "testing/operators.py"},
    "hypothesis": {
        f"testing/{name}.py" for name in ("attending", "contract", "fields", "operators", "rules", "strategies")
    },
}
NO_TORCH = {
    "errors",
    "reach",
    "estimates",
    "candidate",
    "plain",
    "edits",
    "continued",
    "against_root",
    "documented",
    "escape",
    "figures",
    "paths",
    "plugins",
    "selection",
    "store",
    "report",
}


#: Lines that a file and a function may have.
MOST_LINES, MOST_OF_A_FUNCTION = 400, 60


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def unit(path: Path) -> str:
    first = path.relative_to(SRC / "morphogen").parts[0]
    return first.removesuffix(".py")


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Absolute names of all that a file imports, wherever in the file, type-checking blocks included."""
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names.add(node.module)
            if node.module == "morphogen":
                names |= {f"morphogen.{alias.name}" for alias in node.names if alias.name != "__version__"}
    return frozenset(names)


def top_level(path: Path) -> Iterator[str]:
    """Absolute names of what importing the file imports, and of what it takes out of that."""
    pending: list[ast.stmt] = list(parsed(path).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif isinstance(node, ast.If | ast.Try | ast.With):
            pending += node.body


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Functions and methods of a file, with their lines."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{path.relative_to(SRC)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def internal(names: frozenset[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("morphogen.")}


def violations(path: Path, names: set[str]) -> set[str]:
    here = unit(path)
    return {name for name in names if name not in ALLOWED[here] | OPEN | {here}}


def test_a_file_imports_only_what_lies_below_it() -> None:
    found = {str(path.relative_to(SRC)): path for path in FILES if unit(path) != "__init__"}
    unknown = [name for name, path in found.items() if unit(path) not in ALLOWED]
    assert unknown == [], "units the import rule does not know; say where they stand"
    assert {name: wrong for name, path in found.items() if (wrong := violations(path, internal(imports(path))))} == {}


def test_a_module_says_in_its_first_line_what_it_is_for() -> None:
    said = {str(path.relative_to(SRC)): ast.get_docstring(parsed(path)) or "" for path in FILES}
    assert [name for name, words in said.items() if not words.split("\n")[0]] == []


def test_no_file_and_no_function_is_too_long_to_be_read() -> None:
    """Whatever grows beyond is two things: the second one has a name, and a file or a function of its own."""
    lengths = {str(path.relative_to(SRC)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}
    assert {name: lines for path in FILES for name, lines in functions(path) if lines > MOST_OF_A_FUNCTION} == {}


def test_the_rule_notices_an_upward_import() -> None:
    assert violations(SRC / "morphogen/parts/ffn/mlp.py", {"network", "ops", "errors"}) == {"network"}
    assert violations(SRC / "morphogen/store/ledger.py", {"experiment", "candidate"}) == {"experiment"}
    assert violations(SRC / "morphogen/run.py", {"cli", "search"}) == {"cli"}


def test_no_file_imports_itself_by_way_of_others() -> None:
    waits = {name: MODULES.keys() & set(top_level(path)) - {name} for name, path in MODULES.items()}
    while ready := {name for name, needs in waits.items() if not needs & waits.keys()}:
        waits = {name: needs for name, needs in waits.items() if name not in ready}
    assert waits == {}


def test_the_rule_has_no_cycle() -> None:
    done: set[str] = set()
    while ready := {name for name, below in ALLOWED.items() if name not in done and below - {name} <= done}:
        done |= ready
    assert set(ALLOWED) - done == set()


@pytest.mark.parametrize("library", HOMES)
def test_heavy_libraries_are_imported_only_at_home(library: str) -> None:
    users = {
        path.relative_to(SRC / "morphogen").as_posix()
        for path in FILES
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert users <= HOMES[library]


def test_only_the_command_line_knows_typer() -> None:
    users = {unit(path) for path in FILES if any(name.split(".")[0] == "typer" for name in imports(path))}
    assert users == {"cli"}


def test_records_files_and_pictures_know_no_torch() -> None:
    users = {
        str(path)
        for path in FILES
        if (unit(path) in NO_TORCH or path.name == "console.py")
        and any(name.split(".")[0] == "torch" for name in imports(path))
    }
    assert users == set()


def test_the_command_line_imports_nothing_heavy_at_its_top() -> None:
    front = SRC / "morphogen" / "cli"
    light = {SRC / "morphogen" / "__init__.py", *(front / "commands").glob("*.py")}
    light |= {front / f"{name}.py" for name in ("__init__", "app", "flags", "launch")}
    names = {name for path in light for name in top_level(path)}
    below = {path for name, path in MODULES.items() if name in names}
    light |= {SRC / "morphogen" / f"{name}.py" for name in ("errors", "escape", "candidate", "paths", "plugins")}
    assert below <= light


LIBRARIES = {"torch", "transformers", "datasets", "ray", "numpy", "scipy", "sklearn", "pymoo", "tokenizers"}
STORING = """
import morphogen.store.ledger
import morphogen.store.lineage
import morphogen.selection.survival
"""
DESCRIBING = """
import numpy as np
import morphogen.search.engine
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.yaml import read
from morphogen.cost import costs
from morphogen.experiment import Experiment
from morphogen.inherit.plan import plan
from morphogen.variation.operator import mutate

model = read("configs/live_smoke.yaml").parse(Experiment).model.with_vocab(256)
child, edits = mutate(Blueprint.model_validate(model.to_json()), np.random.default_rng(0), 3, {})
assert edits and costs(child, 64)["params"] > 0
assert plan(child, [model]).tensors
"""
CONFIG = "configs/live_smoke.yaml"


def command(*words: str) -> str:
    return f"try: morphogen.cli.main({list(words)})\nexcept SystemExit as end: assert not end.code"


#: Lightest first, since what one of them loads stays: code, and the libraries that it may leave loaded.
STEPS = {
    "import morphogen": ("import morphogen; morphogen.MorphogenError", []),
    "--help": (f"import morphogen.cli\n{command('--help')}", []),
    "schema": (command("schema"), ["numpy"]),
    "schema verification": (command("schema", "verification"), ["numpy"]),
    "validate": (command("validate", CONFIG), ["numpy"]),
    "diff": (command("diff", CONFIG, CONFIG), ["numpy"]),
    "describing, changing and planning": (DESCRIBING, ["numpy"]),
    "storing and selecting": (STORING, ["numpy", "pymoo", "scipy"]),
}


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """Step -> libraries that are loaded after it and all before it."""
    code = f"""
import contextlib, io, json, sys
loaded = {{}}
for name, (code, _) in {STEPS!r}.items():
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code)
    loaded[name] = sorted({LIBRARIES!r} & set(sys.modules))
print(json.dumps(loaded))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("step", STEPS)
def test_what_needs_no_heavy_library_loads_none(step: str, loaded: dict[str, list[str]]) -> None:
    assert set(loaded[step]) <= set(STEPS[step][1])
