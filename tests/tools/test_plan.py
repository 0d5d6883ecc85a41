"""What a study costs, before it is run."""

import sys
import time

import pytest

from maskdit.config.base import UserError
from maskdit.config.load import load
from maskdit.model.flops import forward
from maskdit.tools.plan import Plan, Site, affordable, plan
from project import ROOT, run

PARAMS = load(ROOT / "params.yaml")
A100 = Site("a100", 0.4, 8, 24.0)


def test_a_forward_pass_costs_what_the_papers_say():
    dit, maskdit = (28, 1152, 1152, None), (28, 1152, 512, 8)
    for (depth, width, inner, decoder), kept, gmacs in ((dit, 256, 118.64), (maskdit, 256, 125.8), (maskdit, 128, 65.5)):
        assert forward(256, kept, 16, width, [kept] * depth, inner, 16, decoder) / 2e9 == pytest.approx(gmacs, rel=2e-3)


def test_pretraining_costs_about_the_hours_that_the_authors_report():
    found = Plan(PARAMS, "in256")
    hours = {key: A100.hours(found.nodes[f"pretrain/{key}"]) for key in ("in256-maskdit", "in256-dit-control")}
    assert 8 * 260 / 1.5 < hours["in256-maskdit"] < 8 * 260 * 1.5
    assert hours["in256-dit-control"] / hours["in256-maskdit"] == pytest.approx(1.81, abs=0.01)


def test_an_early_milestone_is_paid_for_its_steps_only():
    found = Plan(PARAMS, "in256")
    early, late = (found.behind(f"evaluate/in256-maskdit-{step}") for step in ("0100k", "2000k"))
    assert (early["pretrain/in256-maskdit"], late["pretrain/in256-maskdit"]) == (0.05, 1.0)


def test_a_larger_budget_pays_for_no_less():
    def paid(budget):
        return [line[0] for line in affordable(Plan(PARAMS, "in256"), A100, budget) if line[3] == "yes"]

    small, large = paid(20.0), paid(400.0)
    assert "evaluate/in256-theirs-guided" in small
    assert set(small) < set(large)
    assert "evaluate/in256-dit-control-0100k" in large


def test_a_plan_takes_no_torch_and_less_than_two_seconds():
    began = time.perf_counter()
    code, said = run(ROOT, sys.executable, "-X", "importtime", "-m", "maskdit.cli", "plan", "in512")
    assert code == 0
    assert "pretrain" in said
    assert " torch" not in said
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    ("change", "said"), [({"device": "abacus"}, "choose one of a100"), ({"mfu": 0.0}, "--mfu"), ({"bench": "x"}, "no entry 'x'")]
)
def test_a_plan_that_makes_no_sense_is_refused(change, said):
    words = {"bench": "demo", "device": "cpu", "mfu": 0.5, "devices": 1, "limit": 0.0, "budget": None}
    with pytest.raises(UserError, match=said):
        plan(PARAMS, **{**words, **change})
