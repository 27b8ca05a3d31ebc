"""Proposals from outside: who may be a parent, what becomes of good and bad ones, and that replay asks nobody."""

import simulated

from morphogen.blueprint.diff import apply
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Status
from morphogen.search.engine import Engine
from morphogen.store.ledger import Ledger, Retry, Told
from morphogen.store.proposals import Proposal, Proposed, Refused


def proposed(**proposal):
    return Proposed(proposer="me", proposal=Proposal.model_validate(proposal))


def edit(parent, operator="widen_ffn", **more):
    return proposed(parent=parent, edits=[{"operator": operator, **more}])


def begun(generations=1, **evolution):
    search = simulated.engine(**evolution)
    return search, simulated.run(search, generations)


def test_proposals_come_first_and_the_rest_is_bred():
    search, _ = begun()
    root = search.survivors[0]
    asked = search.ask([edit(root, target="blocks[b1].ffn"), edit(root, "add_heads", seed=3)])
    assert len(asked.candidates) == search.evolution.population
    assert [c.proposer for c in asked.candidates] == ["me", "me", "", "", "", ""]
    first = asked.candidates[0]
    assert first.parents == (root,)
    assert [(e.operator, e.target) for e in first.edits] == [("widen_ffn", "blocks[b1].ffn")]
    assert first.id.startswith("widen_ffn-1-")
    assert asked.refused == ()
    assert search.job(first).parents[0].id == root


def test_fields_of_the_part_can_be_set():
    search, _ = begun()
    asked = search.ask([edit(search.survivors[0], target="blocks[b0].ffn", set={"hidden": 40})])
    assert asked.candidates[0].blueprint["blocks"][0]["ffn"]["hidden"] == 40


def test_a_whole_blueprint_inherits_from_the_most_similar_survivor_by_one_edit_on_record():
    search, _ = begun(2)
    near = search.survivors[-1]
    there = search._genome(near).blueprint
    plain = there.to_json()
    plain["blocks"][0]["ffn"]["hidden"] = 77
    plain["emb"]["vocab"] = None
    del plain["name"]
    asked = search.ask([proposed(blueprint=plain)])
    child = asked.candidates[0]
    assert asked.refused == ()
    assert child.parents == (near,)
    (one,) = child.edits
    assert one.operator == "proposed"
    assert apply(there, one.changes) == Blueprint.model_validate(child.blueprint)
    assert child.blueprint["emb"]["vocab"] == 37


def test_what_cannot_be_a_candidate_costs_its_place_and_says_why():
    search, events = begun()
    root = search.survivors[0]
    big = search._genome(root).blueprint.to_json()
    big["blocks"][0]["ffn"]["hidden"] = 2**40
    vocab = search._genome(root).blueprint.to_json()
    vocab["emb"]["vocab"] = 50
    bad = {
        "did you mean": edit("root-0"),
        "did you mean 'widen_ffn'": edit(root, "widen_fnn"),
        "expected one of blocks[b0].ffn, blocks[b1].ffn": edit(root, target="blocks[b9].ffn"),
        "set: ": edit(root, "template_mutation", set={"hidden": 4}),
        "edits[0]: widen_ffn: set: hidden: got -4, expected greater than 0": edit(root, set={"hidden": -4}),
        "edits[0]: widen_ffn: set: hidden: got 'x', expected a whole number": edit(root, set={"hidden": "x"}),
        "edits[0]: widen_ffn: set.hiden: got 'hiden', expected one of ": edit(root, set={"hiden": 4}),
        "does not apply anywhere with hidden 16: that is the parent again": edit(root, set={"hidden": 16}),
        "edits[0]: change_norm: set: 0 parts are put in or changed": edit(root, "change_norm", set={"hidden": 4}),
        "has weight 0": edit(root, "toggle_precision"),
        "blueprint: blocks": proposed(blueprint={"emb": {"dim": 16}, "blocks": []}),
        "this machine has": proposed(blueprint=big),
        "the tokenizer has 37": proposed(blueprint=vocab),
        "the same candidate": proposed(blueprint=search._genome(root).blueprint.to_json()),
    }
    for said, answer in bad.items():
        again = Engine.replay([simulated.start(search), *events], run_dir="run", device="cpu")
        asked = again.ask([answer])
        assert len(asked.candidates) == again.evolution.population - 1, said
        assert [one.proposer for one in asked.refused] == ["me"]
        assert said in asked.refused[0].reason
        assert asked.refused[0].proposal is not None


def test_equal_proposals_are_one_candidate_and_all_places_may_be_lost():
    search, _ = begun()
    root = search.survivors[0]
    lost = [Refused(proposer="me", reason="so it is")] * 4
    asked = search.ask([edit(root), edit(root), *lost])
    assert len(asked.candidates) == 1
    assert [one.reason for one in asked.refused] == ["the same candidate as another of this run", *["so it is"] * 4]


def test_rung_0_turns_proposals_away_as_it_does_others():
    search, _ = begun(rung0_thresholds={"params": 4000})
    asked = search.ask([edit(search.survivors[0], set={"hidden": 400})])
    assert asked.rejected[0] == asked.candidates[0].id
    assert search.reports[asked.candidates[0].id].status is Status.REJECTED
    trained = [c for c in asked.candidates if c.id not in asked.rejected]
    assert len(trained) == search.evolution.population - 1


def test_what_was_told_waits_for_the_next_generation_and_is_there_once():
    search, events = begun()
    root = search.survivors[0]
    told = Told(proposed=(edit(root), edit(root, "add_heads")))
    search.apply(told)
    asked = search.ask()
    assert [c.proposer for c in asked.candidates[:3]] == ["me", "me", ""]
    assert search.told == ()
    rest = [asked, *simulated.run_on(search)]
    again = Engine.replay([simulated.start(search), *events, told, *rest], run_dir="run", device="cpu")
    assert again.candidates == search.candidates
    assert again.survivors == search.survivors
    assert again.told == ()


def test_more_than_there_are_places_waits_on():
    search, _ = begun(population=2)
    root = search.survivors[0]
    search.apply(Told(proposed=tuple(edit(root, seed=i, target=f"blocks[b{i}].ffn") for i in (0, 1))))
    search.apply(Told(proposed=(edit(root, "add_heads"),)))
    asked = search.ask([edit(root, "add_heads", seed=9)])
    assert [c.edits[0].operator for c in asked.candidates] == ["widen_ffn", "widen_ffn"]
    assert [one.proposal.edits[0].operator for one in search.told] == ["add_heads"]


def test_a_retry_keeps_what_was_told(tmp_path):
    """A run that goes back loses what it trained in vain, but nothing that somebody else put in."""
    search, events = begun()
    root = search.survivors[0]
    told = Told(proposed=(edit(root),))
    with Ledger.open(tmp_path, create=True) as ledger:
        for event in (simulated.start(search), *events, told):
            ledger.append(event)
        search.apply(told)
        asked = search.ask()
        ledger.append(asked)
        ledger.append(Retry(generation=0, candidates=(root,)))
        kept = list(ledger.events())
    assert [event.kind for event in kept] == ["start", "asked", "told"]
    assert Engine.replay(kept, run_dir="run", device="cpu").told == told.proposed


def test_what_is_refused_is_kept_short():
    wide = {"blueprint": {"name": "x" * 10**6}}
    found = Refused.of("me", ValueError("so" * 10**6), wide)
    assert found.proposal is None
    assert len(found.reason) < 3000
    assert Refused.of("me", ValueError("so"), {"edits": []}) == Refused(
        proposer="me", reason="so", proposal={"edits": []}
    )


def test_nothing_from_outside_changes_nothing():
    assert simulated.run_digest(3) == simulated.run_digest(3)
    search, _ = begun()
    other, _ = begun()
    assert search.ask(()) == other.ask()
