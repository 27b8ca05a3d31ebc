"""A hub that does not answer is told of soon, by the name that it was asked for."""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from morphogen import reach
from morphogen.data.prepare import prepare
from morphogen.data.tokenizers import from_hugging_face
from morphogen.errors import InputError
from morphogen.experiment import Data, Shard
from tiny import Cli, write_config


@pytest.fixture(params=["silent", "closed", "no such host", "not an address"])
def endpoint(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Where a hub should be."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if request.param == "silent":
            listening.listen()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        address = {"no such host": "http://no-such-host.invalid", "not an address": "no address"}.get(
            request.param, address
        )
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(reach, "ANSWER_SECONDS", 0.2)
        monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
        yield address


def test_a_data_set_that_cannot_be_reached_is_told_of_with_its_place(endpoint: str) -> None:
    before, libraries = time.monotonic(), "datasets" in sys.modules
    with pytest.raises(InputError) as raised:
        prepare(Data(shards=(Shard(source="stdlib-code", max_documents=50), Shard(source="hf:owner/set"))))
    said = f"data.shards[1].source: data source 'hf:owner/set': {endpoint} cannot be reached ("
    assert str(raised.value).startswith(said)
    assert time.monotonic() - before < 10
    assert ("datasets" in sys.modules) == libraries  # which would have tried for minutes


def test_a_tokenizer_that_cannot_be_reached_is_told_of(endpoint: str) -> None:
    with pytest.raises(InputError, match=f"data.tokenizer 'owner/name': {endpoint} cannot be reached .*not fetched"):
        from_hugging_face("owner/name")


def test_a_run_asks_before_it_imports_what_takes_long(endpoint: str, cli: Cli, tmp_path: Path) -> None:
    for change in ({"source: CORPUS": "source: hf:owner/set"}, {"tokenizer: bytes": "tokenizer: owner/name"}):
        ((old, new),) = change.items()
        path = write_config(tmp_path)
        text = path.read_text().replace(f"source: {tmp_path / 'corpus'}", "source: CORPUS")
        assert old in text
        path.write_text(text.replace(old, new).replace("CORPUS", str(tmp_path / "corpus")))
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "morphogen.cli.options", None)
            patch.setitem(sys.modules, "morphogen.run", None)
            code, _, err = cli("run", path, "--out", tmp_path / "run")
        assert (code, f"{endpoint} cannot be reached (" in err, err.count("\n")) == (2, True, 1)
        assert f"{path}:" in err


@pytest.mark.parametrize("named", ["in the experiment", "in other text", "in another experiment"])
def test_a_training_asks_before_it_imports_what_takes_long(endpoint: str, named: str, cli: Cli, tmp_path: Path) -> None:
    here = write_config(tmp_path)
    elsewhere = tmp_path / "hub.yaml"
    elsewhere.write_text(here.read_text().replace(f"source: {tmp_path / 'corpus'}", "source: hf:owner/set"))
    asked = {
        "in the experiment": [elsewhere],
        "in other text": [here, "--data", "hf:owner/set"],
        "in another experiment": [here, "--data", elsewhere],
    }[named]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "morphogen.cli.training", None)
        patch.setitem(sys.modules, "morphogen.beginnings", None)
        code, _, err = cli("train", *asked, "--steps", 1, "--output-dir", tmp_path / "run")
    assert (code, f"{endpoint} cannot be reached (" in err, err.count("\n")) == (2, True, 1)
    assert (f"{elsewhere}:" in err) == (named != "in other text")


def test_whoever_answers_is_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"401 Unauthorized": None, "404 Not Found": None, "200 OK": None, "503 Unavailable": "HTTP Error 503"}
    for status, said in answers.items():
        with socket.create_server(("127.0.0.1", 0)) as server:

            def answer(server: socket.socket = server, status: str = status) -> None:
                connection, _ = server.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(f"HTTP/1.0 {status}\r\n\r\n".encode())

            threading.Thread(target=answer, daemon=True).start()
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
            found = reach._asked(url)
        assert (found is None) if said is None else (found or "").startswith(said)


def test_who_asks_for_no_network_is_not_asked_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert reach.unreachable("datasets", "owner/set") is None
