"""What installed packages offer under a name: rules of selection, corpora and tokenizers, chosen by an experiment."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from morphogen import plugins
from morphogen.blueprint.yaml import loads
from morphogen.candidate import Report, Status
from morphogen.data.corpora import documents, fingerprint
from morphogen.data.mixture import Mixture
from morphogen.data.prepare import prepare
from morphogen.data.tokenizers import named
from morphogen.errors import InputError
from morphogen.experiment import Data, Evolution, Experiment
from morphogen.plugins import looking
from morphogen.reading import read_experiment
from morphogen.selection.parents import Pool, Rules, select_parent
from morphogen.selection.survival import front, survive
from tiny import Cli, write_corpus

OFFERS = """
from morphogen.data.document import Document
from morphogen.data.probes import Asked, Kind
from morphogen.data.tokenizers import ByteTokenizer
import numpy as np

NUMBER = 3


class Echo(Kind):
    name = "echo"

    def least(self):
        return 2, 4

    def chance(self, vocab):
        return 1 / vocab

    def sequence(self, rng, seq_len, vocab):
        ids = rng.integers(vocab, size=seq_len + 1)
        ids[-self.size:] = ids[0]
        return Asked(ids, np.arange(seq_len - self.size, seq_len), np.full(self.size, seq_len))


def counting(arguments):
    for i in range(int(arguments or 40)):
        yield Document(f"n{i}", f"{i} and {i + 1} are numbers in a row, as are {i * i} and {i * i + 1}. " * 8)


def bare(arguments):
    yield "text"


def plain():
    return ByteTokenizer()


def last(pool, rng):
    return len(pool) - 1


def outside(pool, rng):
    return len(pool)


def oldest(scored, birth_n, best_km, keep, rng):
    return birth_n.argsort()[:keep]


def nobody(scored, birth_n, best_km, keep, rng):
    return birth_n[:0]
"""
POINTS = """
[morphogen.selectors]
last = offers:last
outside = offers:outside
number = offers:NUMBER
broken = no_such_module:x
[morphogen.survival]
oldest = offers:oldest
nobody = offers:nobody
[morphogen.corpora]
counting = offers:counting
bare = offers:bare
[morphogen.probes]
echo = offers:Echo
odd = builtins:dict
[morphogen.tokenizers]
plain = offers:plain
odd = builtins:dict
"""
PLAIN = "model: {emb: {dim: 8, vocab: 11}, blocks: [{ffn: {kind: dense, hidden: 8}}]}\n"


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed distribution with a module `offers`."""
    info = tmp_path / "offers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    (tmp_path / "offers.py").write_text(OFFERS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("offers", None)


def read(text: str) -> Experiment:
    return loads(PLAIN + text).parse(Experiment)


def reports() -> list[Report]:
    return [Report(id=f"c{i}", status=Status.TRAINED, metrics={"bpb": 3.0 - i}) for i in range(3)]


def test_rules_of_installed_packages_are_accepted_by_name_and_used() -> None:
    evolution = read("evolution:\n  parent_selection: last\n  survival: oldest\n").evolution
    pool = Pool.of(reports(), Rules({"bpb": "min"}))
    assert select_parent(evolution.parent_selection, pool, np.random.default_rng(0)) == 2
    best, births = front(reports(), {"bpb": "min"}), {"c0": 2, "c1": 0, "c2": 1}
    kept = survive(evolution.survival, reports(), {"bpb": "min"}, {}, 2, births, np.random.default_rng(0), best)
    assert kept == ("c2", "c1")


def test_a_package_is_imported_only_when_it_is_named() -> None:
    read("evolution: {parent_selection: tournament}\n")
    Evolution.model_json_schema()
    assert "offers" not in sys.modules
    read("evolution: {parent_selection: last}\n")
    assert "offers" in sys.modules


def test_the_schema_lists_ours_and_those_of_packages() -> None:
    names = Evolution.model_json_schema()["properties"]["survival"]["enum"]
    assert names == ["ageing", "nobody", "nsga3", "oldest", "rank_crowding", "smsemoa"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("parent_selection: lastt", "got 'lastt', expected one of .*last, .*; did you mean 'last'"),
        ("survival: oldst", "got 'oldst', expected one of ageing, .*; did you mean 'oldest'"),
        ("survival: 3", "got 3, expected one of ageing"),
        ("parent_selection: broken", "plug-in broken: cannot import no_such_module:x"),
        ("parent_selection: number", "plug-in number: got 3, expected a function"),
        ("parent_selection: offers:last", "got 'offers:last', expected one of"),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused_with_its_line(line: str, message: str) -> None:
    field = line.partition(":")[0]
    with pytest.raises(InputError, match=rf"^<text>:3:3 evolution\.{field}: {message}"):
        read(f"evolution:\n  {line}\n")


def test_a_file_that_is_only_looked_at_may_name_rules_that_are_gone() -> None:
    with looking():
        assert read("evolution: {survival: gone}\n").evolution.survival == "gone"


def test_what_a_rule_gives_is_checked() -> None:
    pool, rng = Pool.of(reports(), Rules({"bpb": "min"})), np.random.default_rng(0)
    with pytest.raises(InputError, match="parent_selection: outside gave 3, expected a row number below 3"):
        select_parent("outside", pool, rng)
    best, births = front(reports(), {"bpb": "min"}), {"c0": 2, "c1": 0, "c2": 1}
    with pytest.raises(InputError, match=r"survival: nobody gave the rows \[\], expected 1 to 2 of the 3 there are"):
        survive("nobody", reports(), {"bpb": "min"}, {}, 2, births, rng, best)


def test_a_corpus_and_a_tokenizer_of_a_package_are_prepared_like_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "plain").mkdir()  # a folder of that name, where the file lies, is not what it names
    file = tmp_path / "experiment.yaml"
    file.write_text(PLAIN + "data: {tokenizer: plain, seq_len: 16, shards: [{source: 'counting:60'}]}\n")
    data = read_experiment(file).data
    (shard,) = data.shards
    assert (shard.name, shard.corpus, shard.is_local, data.tokenizer) == (
        "counting_60",
        ("counting", "60"),
        False,
        "plain",
    )
    prepared = prepare(data)
    assert prepared.shards[0].corpus.documents == 60
    assert prepared.vocab_size == 257
    assert fingerprint(shard) != fingerprint(shard.model_copy(update={"source": "counting:61"}))


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("source: cuonting", "no such file or folder.*did you mean 'counting'"),
        ("source: 'counting:x'", "data source 'counting:x': plug-in counting: ValueError: invalid literal"),
        ("source: bare", "data source 'bare': plug-in bare: TypeError: it yields str, expected Document"),
        ("source: counting, text_field: x", "text_field is 'x', but the source is 'counting' and only files"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_refused(shard: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(documents(read(f"data: {{shards: [{{{shard}}}]}}\n").data.shards[0]))


def test_a_probe_of_a_package_is_asked_like_our_own(tmp_path: Path) -> None:
    corpus = str(write_corpus(tmp_path / "corpus"))
    split, text = {"train": 0.6, "eval": 0.2}, {"source": corpus}
    plain = {"tokenizer": "bytes", "seq_len": 32, "batch_size": 4, "split": split}
    prepared = prepare(Data.model_validate({**plain, "shards": [text, {"source": "probe:echo:3"}]}))
    (probe,) = prepared.probes
    assert (probe.label, probe.size, probe.chance) == ("echo", 3, 1 / 257)
    scored = (np.concatenate([Mixture(prepared, 0).batch(step) for step in range(20)]) >= 0).sum(axis=1)
    assert set(scored.tolist()) == {3, 33}
    with pytest.raises(InputError, match="expected a class that inherits from"):
        prepare(Data.model_validate({**plain, "shards": [text, {"source": "probe:odd"}]}))


@pytest.fixture
def _broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution of which nothing can be imported."""
    info = tmp_path / "more" / "lost-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lost\nVersion: 1.0\n")
    groups = ("figures", "operators", "parts")
    (info / "entry_points.txt").write_text("".join(f"[morphogen.{group}]\nlost = lost.{group}\n" for group in groups))
    monkeypatch.syspath_prepend(info.parent)


@pytest.mark.usefixtures("_broken")
def test_what_cannot_be_imported_is_told_where_it_is_missed(cli: Cli, tmp_path: Path) -> None:
    why = "plug-in lost: cannot import lost.{} (No module named 'lost')"
    for command, groups in (("figures", ["figures"]), ("operators", ["parts", "operators"])):
        code, out, err = cli(command, "--json")
        assert (code, out[0]) == (0, "[")
        assert err.splitlines() == [f"note: left out: {why.format(group)}" for group in groups]
    for setting, groups in (("objectives: {lost: min}", ["figures"]), ("mutation_weights: {lost: 1}", ["operators"])):
        file = tmp_path / "experiment.yaml"
        file.write_text(f"{PLAIN.replace(', vocab: 11', '')}evolution: {{{setting}}}\n")
        code, _, err = cli("validate", file)
        assert code == 2
        assert "got 'lost', expected one of" in err
        assert all(why.format(group) in err for group in groups)


CLASHING = """
from morphogen.figures import Figure, declare
from morphogen.parts.contract.operator import model_operator

if __name__ == "clashing":
    declare(Figure("bpb", unit="1", better="min", sort="metric", summary="Another."))


@model_operator(preserves=False)
def insert_block(blueprint, rng):
    "Another."
"""


def test_a_name_that_is_ours_is_refused_to_a_package_whichever_is_imported_first(tmp_path: Path) -> None:
    info = tmp_path / "clashing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clashing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[morphogen.parts]\nmine = clashing\n[morphogen.operators]\nop = other\n")
    for name in ("clashing", "other"):
        (tmp_path / f"{name}.py").write_text(CLASHING)
    source = str(Path(plugins.__file__).parents[1])
    path = os.pathsep.join((str(tmp_path), source))
    done = subprocess.run(
        [sys.executable, "-m", "morphogen", "operators", "--json"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    first, second = done.stderr.splitlines()
    assert first.startswith(
        "note: left out: plug-in mine: cannot import clashing (RuntimeError: two figures are called"
    )
    assert "two operators are called insert_block, that of morphogen.variation.structure and that of other" in second
    assert json.loads(done.stdout)


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match=r"data.tokenizer 'odd': got {}, expected a tokenizer"):
        named("odd")
