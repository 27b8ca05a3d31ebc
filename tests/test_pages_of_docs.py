"""README, docs and comments of configs: commands are taken as they stand, files exist, fields and flags are known."""

import ast
import importlib.util
import itertools
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from morphogen.cli.commands import app_with
from morphogen.experiment import Experiment

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: The log tells of what was; the reference is made from the code.
PAGES = [page for page in PAGES if page.name not in ("log.md", "reference.md")]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SECTIONS = {name: field.annotation for name, field in Experiment.model_fields.items()}
#: Commands of `morphogen` as programs of their own.
SCRIPTS = [f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py") if "Typer(" in path.read_text()]
#: Words in capitals that stand for a number.
NUMBERS = {"N": "1", "SECONDS": "1"}


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """Fenced blocks of a page in one of the languages."""
    text = page.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        if language in languages:
            yield block


def commands(text: str) -> Iterator[list[str]]:
    """What a shell would start of `morphogen` and of the scripts, word by word."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|(?<!`);", line.removeprefix("$ ")):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # the quotes of prose
                continue
            words = list(itertools.takewhile(lambda word: word not in (">", "|"), words))
            words = list(itertools.dropwhile(lambda word: re.fullmatch(r"[A-Z_]+=.*", word), words))
            if words[:1] == ["python"] and words[1:] and words[1] in SCRIPTS:
                yield words[1:]
            elif words[:1] == ["morphogen"] and len(words) > 1:
                yield words


def told() -> list[tuple[str, list[str], bool]]:
    """Of all pages and of the comments at the head of configs: where it stands, a command, and whether all of it."""
    found = [
        (page.name, words, True) for page in PAGES for block in blocks(page, "sh", "bash") for words in commands(block)
    ]
    for path in (*PAGES, *CONFIGS):
        text = path.read_text(encoding="utf-8")
        if path in CONFIGS:
            text = "\n".join(line.strip("# ") for line in text.splitlines() if line.startswith("#"))
            found += [(path.name, words, True) for words in commands(text)]
        text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        inline = [one for one in re.findall(r"`([^`\n]+)`", text) if not re.search(r"[…\[{]|\.\.\.", one)]
        found += [(path.name, words, False) for one in inline for words in commands(one)]
    return found


@cache
def program(name: str) -> Any:
    """What takes the words of `morphogen`, or of a script."""
    if name == "morphogen":
        return typer.main.get_command(app_with(None))
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return typer.main.get_command(script.app)


def taken(words: list[str], *, whole: bool = True) -> str:
    """What is wrong with the words of a command; empty where it would start. whole: prose leaves out what it need not
    say."""
    command, given = program(words[0]), [NUMBERS.get(word, word) for word in words[1:]]
    if words[0] == "morphogen" and not given[0].startswith("-"):
        if given[0] not in command.commands:
            return f"no command {given[0]!r}"
        command, given = command.commands[given[0]], given[1:]
    try:
        command.make_context(words[0], given)
    except typer.Exit:  # --help
        return ""
    except typer.BadParameter.__mro__[1] as error:  # usage errors of any kind
        left_out = re.match("Missing|Option .* requires an argument", str(error))
        return "" if left_out and not whole else str(error)
    return ""


def test_commands_are_taken_as_they_stand() -> None:
    wrong = [
        f"{page}: {shlex.join(words)}: {why}" for page, words, whole in told() if (why := taken(words, whole=whole))
    ]
    assert len(told()) > 130
    assert wrong == []


def test_a_command_that_is_not_taken_is_found() -> None:
    for words in (["morphogen", "rnu", "x"], ["morphogen", "run", "x", "--outt", "y"], ["morphogen", "diff", "x"]):
        assert taken(words)
    assert not taken(["morphogen", "diff"], whole=False)
    assert list(commands("X=1 morphogen run a.yaml \\\n  --out b  # so\ncd x && morphogen status b > c")) == [
        ["morphogen", "run", "a.yaml", "--out", "b"],
        ["morphogen", "status", "b"],
    ]


def test_what_python_in_pages_imports_is_there() -> None:
    found = 0
    for page in PAGES:
        for block in blocks(page, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("morphogen"):
                    there = vars(importlib.import_module(str(node.module)))
                    gone = [one.name for one in node.names if one.name not in there]
                    assert gone == [], f"{page.name}: {node.module}"
                    found += 1
    assert found > 5


def places(text: str) -> set[str]:
    """Files of the project that a page names, and pages that it leads to."""
    named = set(re.findall(r"(?<![\w/.])((?:configs|scripts|benchmarks|tests|examples|docs|src)/[\w./*-]*\w)", text))
    return {
        one
        for one in named
        if not re.search(r"seed\.yaml|mine\.yaml|root\.(yaml|safetensors)|new\.yaml|seed_HYBRID", one)
    }


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [one for one in sorted(places(text)) if not list(ROOT.glob(one))] == []
    if page.suffix == ".md":
        links = {one.partition("#")[0] for one in re.findall(r"\]\(([^)\s]+)\)", text)}
        assert [one for one in sorted(links) if one and "://" not in one and not (page.parent / one).exists()] == []
        modules = set(re.findall(r"`((?!runs/)(?:\w+/)+\w+\.(?:py|js|html))`", text))
        assert [
            one
            for one in sorted(modules)
            if not any((ROOT / place / one).exists() for place in ("", "src", "src/morphogen"))
        ] == []


def unknown_fields(section: type[BaseModel], data: Any) -> list[str]:
    """Fields that a part of an experiment has not got."""
    try:
        section.model_validate(data)
    except ValidationError as error:
        return [".".join(map(str, one["loc"])) for one in error.errors() if one["type"] == "extra_forbidden"]
    return []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fields_that_are_named_are_known(page: Path) -> None:
    wrong: list[str] = []
    for block in blocks(page, "yaml"):
        data = YAML(typ="safe").load(block)
        if isinstance(data, dict) and set(data) <= set(SECTIONS):
            wrong += unknown_fields(Experiment, data)
    text = page.read_text(encoding="utf-8")
    for section, name in re.findall(
        r"`(model|train|data|evolution|priors)\.(?!safetensors)(\w+)[\w.\[\]]*(?::[^`]*)?`", text
    ):
        if name not in SECTIONS[section].model_fields:
            wrong.append(f"{section}.{name}")
    assert wrong == []


def test_flags_that_are_named_are_some_command_s() -> None:
    commands_ = [*program("morphogen").commands.values()]
    commands_ += map(program, SCRIPTS)
    known = {flag for command in commands_ for one in command.params for flag in (*one.opts, *one.secondary_opts)}
    for path in (*(ROOT / "benchmarks").glob("*.py"), ROOT / "scripts" / "write_reference.py"):
        known |= set(re.findall(r"\"(--[a-z][\w-]*)\"", path.read_text()))
    known |= {"--help", "--version", "--install-completion", "--show-completion"}
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        flags = set(re.findall(r"`(--[a-z][a-z-]*[a-z])(?![\w*-])", text))
        assert sorted(flags - known) == [], page.name


def test_every_config_is_in_the_list_of_what_to_begin_from() -> None:
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    table = text[text.index("## What there is to begin from") : text.index("## model")]
    assert set(re.findall(r"`([\w/]+\.yaml)`", table)) == {str(path.relative_to(ROOT / "configs")) for path in CONFIGS}
