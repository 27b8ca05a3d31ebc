"""Growth on a run's page, and the picture of a training."""

import re

import plotly.graph_objects as go
import pytest
from made_runs import make_run, shown

from morphogen.candidate import Edit, GrowthEvent, Size
from morphogen.errors import RunError
from morphogen.report.grown import growth_charts, growth_rows
from morphogen.report.growth import picture, read
from morphogen.report.html import report_html
from morphogen.training.tables import StepTable

OBJECTIVES = {"bpb": "min", "flops_per_token": "min"}


def event(step: int, before: int, after: int, **fields: object) -> GrowthEvent:
    """Layers from one number to another."""
    sizes = (Size(params=1000 * n, layers=n, dim=16, flops_per_token=1.0) for n in (before, after))
    old, new = sizes
    plain = {
        "steps": step,
        "tokens": 100 * step,
        "own_steps": step,
        "rule": "rule0",
        "trigger": "plateau",
        "action": "deepen",
        "reason": "<flat> & long",
        "before": old,
        "after": new,
        "loss": 2.0,
        "loss_after": 2.0,
        "max_delta": 0.0,
        "max_logit": 3.0,
        "exact": True,
        "edit": Edit(operator="deepen", target="model", preserves=True),
    }
    return GrowthEvent.model_validate({**plain, **fields})


def test_a_run_that_grew_has_a_table_of_it_and_charts_that_plotly_knows() -> None:
    candidates, reports, finalists = make_run(2, 3, 2)
    grown = finalists[0]
    reports[grown] = reports[grown].replace(growth=(event(10, 2, 4), event(20, 4, 6, exact=False, loss_after=2.4)))
    rows = growth_rows(reports)
    assert [(row["candidate"], row["step"], row["layers"], row["exact"]) for row in rows] == [
        (grown, 10, "2 → 4", "yes"),
        (grown, 20, "4 → 6", "no"),
    ]
    charts = growth_charts(reports)
    assert list(charts) == [
        "parameters of those that grew",
        "layers of those that grew",
        "loss on a held batch when they grew",
    ]
    for chart in charts.values():
        go.Figure(chart)
    assert charts["layers of those that grew"]["data"][0]["y"] == [2, 4, 6, 6]
    page = report_html([shown((candidates, reports, finalists), OBJECTIVES, hypervolumes=[0.1])])
    assert "<h2>Growth</h2>" in page
    assert "&lt;flat&gt; &amp; long" in page
    assert "<flat>" not in page


def test_a_run_that_did_not_grow_says_nothing_of_it() -> None:
    candidates, reports, finalists = make_run(2, 3, 2)
    assert growth_charts(reports) == {}
    page = report_html([shown((candidates, reports, finalists), OBJECTIVES, hypervolumes=[0.1])])
    assert "<h2>Growth</h2>" not in page


def tables(folder) -> None:
    rows = [
        f"{n},{100 * n},{4 / n},0.1,0.001,1.0,{1000 if n < 6 else 2000},{2 if n < 6 else 4},16,4" for n in range(1, 12)
    ]
    (folder / "steps.csv").write_text(
        "step,tokens,loss,balance,lr,grad_norm,params,layers,dim,experts\n" + "\n".join(rows)
    )
    (folder / "evals.csv").write_text("step,tokens,bpb\n5,500,2.5\n10,1000,2.0\n")
    (folder / "growth.csv").write_text("step,action,before,after\n5,deepen,2,4\n5,split,2,3\n")
    (folder / "usage.csv").write_text("step,layer,block,expert,usage\n5,0,b0,0,0.7\n5,0,b0,1,0.3\n9,0,b0,0,0.5\n")


def test_a_picture_shows_what_the_tables_of_a_training_say(tmp_path) -> None:
    tables(tmp_path)
    told = read(tmp_path)
    assert told.steps["layers"] == [2.0] * 5 + [4.0] * 6
    assert told.usage[0, 0] == [(5.0, 0.7), (9.0, 0.5)]
    whole = picture(tmp_path)
    assert whole.startswith(b"\x89PNG")
    assert picture(tmp_path) == whole
    (tmp_path / "steps.csv").write_text("step,loss\n")
    with pytest.raises(RunError, match="holds no step"):
        picture(tmp_path)
    (tmp_path / "growth.csv").unlink()
    with pytest.raises(RunError, match="cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("steps.csv", "step,loss\n1,2\n", "has no column 'params'"),
        ("steps.csv", "step,loss,params,layers,experts\n1,2.0,9,1,0\n2,2.0,9,1\n", "steps.csv:3: cannot be read"),
        ("steps.csv", "step,loss,params,layers,experts\n1,2.0,9,1,0,7\n", "steps.csv:2: cannot be read"),
        ("steps.csv", "step,loss,params,layers,experts\n1,two,9,1,0\n", "steps.csv:2: cannot be read"),
        ("steps.csv", "step,loss,params,layers,experts\n1,,9,1,0\n", "steps.csv:2: cannot be read"),
        ("evals.csv", "step\n1\n", "has no column 'bpb'"),
        ("evals.csv", "step,tokens,bpb\n1,2,x\n", "evals.csv:2: cannot be read"),
        ("usage.csv", "step,layer,block,expert,usage\n5,first,b0,0,0.7\n", "usage.csv:2: cannot be read"),
        ("usage.csv", "step,layer,block,expert,usage\n5,0,b0\n", "usage.csv:2: cannot be read"),
        ("growth.csv", "step,action\n5,deepen\n", "has no column 'before'"),
        ("growth.csv", "step,action,before,after\nx,deepen,2,4\n", "growth.csv:2: cannot be read"),
        ("growth.csv", "step,action,before,after\n5,deepen\n", "growth.csv:2: cannot be read"),
        ("growth.csv", '"' + "x" * 200_000, "growth.csv: cannot be read"),
    ],
)
def test_a_damaged_table_is_told_in_one_message_with_its_line(tmp_path, name: str, content: str, said: str) -> None:
    tables(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(RunError, match=re.escape(str(tmp_path / name))) as error:
        picture(tmp_path)
    assert said in str(error.value)


def test_lines_that_lack_a_cell_go_when_a_training_goes_on(tmp_path) -> None:
    path = tmp_path / "steps.csv"
    path.write_text('step,loss\n1,2.0\n2\n2,1.5,7\n3,"1,0"\nx,1\n\n4,1.0\n5,0')
    StepTable(path, ("step", "loss"), 3).close()
    assert path.read_text() == 'step,loss\n1,2.0\n3,"1,0"\n'
