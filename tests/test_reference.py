"""docs/reference.md: every field has a meaning, and the page is what the code says."""

import subprocess
import sys
from pathlib import Path

import pytest

from morphogen.documented import meanings
from morphogen.parts.attention.latent_attention import LatentAttention
from morphogen.parts.contract.part import REGISTRY

SCRIPT = Path(__file__).parent.parent / "scripts" / "write_reference.py"


def test_every_field_has_a_meaning_and_the_page_is_up_to_date() -> None:
    """In a process of its own, where no test has registered kinds."""
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_editors_are_shown_the_meaning_of_inherited_and_overridden_fields() -> None:
    fields = LatentAttention.model_json_schema()["properties"]
    assert fields["sliding_window"]["description"].startswith("Tokens before its own")
    assert "the rotated key" in fields["kv_policy"]["description"]


def test_a_class_without_its_source_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, ("attn", "MLA"), LatentAttention)  # the class made here registers in its place
    assert meanings(type("Made", (LatentAttention,), {"__module__": "nowhere"})) == meanings(LatentAttention)
