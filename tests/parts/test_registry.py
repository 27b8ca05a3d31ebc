"""Kinds are found by where their files are."""

import shutil
import subprocess
import sys
from pathlib import Path

import morphogen

KIND = """
from typing import ClassVar, Literal
from morphogen.parts.contract.part import Cost, Part

class Echo(Part):
    slot: ClassVar = "extra"
    kind: Literal["echo"] = "echo"
    delay: int = 1

    def tensors(self, ctx):
        return {}

    def sizes(self, ctx):
        return {}

    def build(self, ctx):
        from morphogen.parts.memory import echo_layer

    def cost(self, ctx):
        return Cost()
"""
ASKED = """
import sys
from morphogen.blueprint.schema import Blueprint
block = {"extras": [{"kind": "echo", "delay": 3}]}
blueprint = Blueprint.model_validate({"emb": {"dim": 8}, "blocks": [block]})
print(blueprint.blocks[0].extras[0].delay, "torch" in sys.modules)
"""


def test_a_new_file_in_a_slots_folder_is_a_new_kind_with_no_other_line_changed(tmp_path: Path) -> None:
    copy = tmp_path / "morphogen"
    shutil.copytree(Path(morphogen.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "parts" / "memory" / "echo.py").write_text(KIND)
    (copy / "parts" / "memory" / "echo_layer.py").write_text("raise AssertionError('only building needs it')")
    asked = [sys.executable, "-c", ASKED]
    done = subprocess.run(asked, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.stdout == "3 False\n", done.stderr
