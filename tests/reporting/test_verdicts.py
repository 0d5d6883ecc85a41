"""The ledger: records lead to verdicts, and a verdict that got worse is named."""

import csv
import re

import pandas as pd
import pytest
from test_report import record

from maskdit.artifacts.atomic import read_json, write_json
from maskdit.cli import main
from maskdit.config.base import UserError
from maskdit.config.claims import Claims
from maskdit.config.load import load, validate
from maskdit.reporting.records import published
from maskdit.reporting.verdicts import RANKS, claims, rank
from project import ROOT, TOY

NUMBER = {"kind": "metric", "metric": "fid", "evals": ["a"]}
LESS = {"kind": "ratio", "metric": "fid", "of": ["a"], "over": ["b"]}
SMALL = {"kind": "ratio", "metric": "fd_mobilenet", "of": ["small-a"], "over": ["small-b"]}
TIME = {"kind": "crossing", "study": "toy", "axis": "steps"}


def ledger(folder, **claim):
    """The one row of a ledger of one claim."""
    entry = {"title": "T", "study": "toy", "claims": {"it": {"says": "so", "source": "paper", **claim}}}
    claims(Claims.model_validate(entry), results=folder, out=folder / "claims.csv")
    (row,) = csv.DictReader((folder / "claims.csv").read_text().splitlines())
    return row


def made(folder, **fids):
    """Records of FIDs."""
    (folder / "metrics" / "toy").mkdir(parents=True, exist_ok=True)
    for name, fid in fids.items():
        record(folder / "metrics" / "toy", name, metrics={"fid": fid})


@pytest.mark.parametrize(
    ("fid", "verdict"), [(5.69, "REPRODUCED"), (5.74, "REPRODUCED"), (4.0, "REPRODUCED"), (5.80, "NOT REPRODUCED")]
)
def test_a_number_is_reproduced_if_it_is_no_worse_than_noise_makes_it(fid, verdict, tmp_path):
    made(tmp_path, a=fid)
    row = ledger(tmp_path, paper=5.69, evidence=NUMBER)
    assert (row["verdict"], float(row["ours"]), row["seeds"], row["tolerance"]) == (verdict, fid, "1", "1.3%")
    assert row["from"].endswith("metrics/toy/a.json")


@pytest.mark.parametrize(("score", "verdict"), [(276.0, "REPRODUCED"), (300.0, "REPRODUCED"), (250.0, "NOT REPRODUCED")])
def test_where_more_is_better_less_is_not_a_reproduction(score, verdict, tmp_path):
    made(tmp_path, a=score)
    assert ledger(tmp_path, paper=276.56, better="higher", evidence=NUMBER)["verdict"] == verdict


@pytest.mark.parametrize(
    ("ours", "verdict", "direction"),
    [(9.0, "REPRODUCED", "as claimed"), (9.95, "TIE", "tie"), (10.1, "TIE", "tie"), (11.0, "NOT REPRODUCED", "opposite")],
)
def test_that_one_thing_is_less_than_another_is_a_tie_within_noise(ours, verdict, direction, tmp_path):
    made(tmp_path, a=ours, b=10.0)
    row = ledger(tmp_path, evidence=LESS)
    assert (row["verdict"], row["direction"], float(row["ours"])) == (verdict, direction, pytest.approx(ours / 10))


def test_less_than_claimed_is_not_reproduced_even_in_its_direction(tmp_path):
    made(tmp_path, a=5.0, b=10.0)
    row = ledger(tmp_path, paper=0.3, evidence=LESS)
    assert (row["verdict"], row["direction"]) == ("NOT REPRODUCED", "as claimed, but less")
    assert ledger(tmp_path, paper=0.5, evidence=LESS)["verdict"] == "REPRODUCED"


def test_seeds_that_scatter_widen_the_band(tmp_path):
    (tmp_path / "metrics" / "toy").mkdir(parents=True)
    for seed, fid in enumerate((5.4, 5.8, 6.2)):
        record(tmp_path / "metrics" / "toy", f"s{seed}", metrics={"fid": fid}, run={}, seed=seed)
    row = ledger(tmp_path, paper=5.69, evidence={**NUMBER, "evals": ["s0", "s1", "s2"]})
    assert (row["verdict"], row["seeds"], float(row["ours"])) == ("REPRODUCED", "3", 5.8)
    assert float(row["tolerance"].rstrip("%")) == pytest.approx(200 * 0.4 / 5.8 * (1 + 1 / 3) ** 0.5, abs=0.06)


def test_samplings_of_one_training_are_not_seeds_of_training(tmp_path):
    folder = tmp_path / "metrics" / "toy"
    folder.mkdir(parents=True)
    for name, samples, fid in (("a", "one", 5.6), ("b", "two", 5.8), ("c", "two", 5.8)):
        record(folder, name, metrics={"fid": fid}, run={})
        tree = read_json(folder / f"{name}.json")
        tree["manifest"]["lineage"][f"pretrain/{name}"]["digest"] = "run"
        tree["manifest"]["lineage"][f"sample/{name}"]["digest"] = samples
        write_json(folder / f"{name}.json", tree)
    row = ledger(tmp_path, paper=5.69, evidence={**NUMBER, "evals": ["a", "b", "c"]})
    assert (row["seeds"], float(row["ours"])) == ("1 seed, 2 samplings", 5.7)
    row = ledger(tmp_path, paper=5.69, evidence={**NUMBER, "evals": ["b", "c"]})
    assert (row["seeds"], row["tolerance"]) == ("1", "1.3%")


@pytest.mark.parametrize("content", [b"\xff\x00\x8d,\n\xfe", b"", b"axis,at\nsteps,x\n", b'axis\n"steps', b"at,ratio\n1,2\n"])
def test_a_damaged_table_behind_a_claim_is_one_line(tmp_path, content):
    (tmp_path / "curves_toy_crossing.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"curves_toy_crossing\.csv: damaged; delete it") as refusal:
        ledger(tmp_path, evidence=TIME)
    assert "\n" not in str(refusal.value)


def seeded(folder, **fids):
    """Records of seeds: of each mask ratio in percent, a list of FIDs."""
    (folder / "metrics" / "toy").mkdir(parents=True, exist_ok=True)
    for ratio, values in fids.items():
        for seed, fid in enumerate(values):
            name = f"{ratio}-s{seed}"
            record(folder / "metrics" / "toy", name, metrics={"fid": fid}, run={"mask_ratio": int(ratio[1:]) / 100}, seed=seed)


@pytest.mark.parametrize(
    ("low", "high", "verdict", "ours", "worst"),
    [
        ([10.9, 11.1], [11.9, 12.1], "REPRODUCED", 10 / 11, "m25"),
        ([11.9, 12.1], [10.9, 11.1], "REPRODUCED", 10 / 11, "m75"),
        ([10.9], [12.0], "TIE", 10 / 10.9, "m25"),  # one seed of it, so the spread of the others is its own, too
        ([10.9, 11.1], [10.0, 14.0], "TIE", 10 / 12, "m75"),  # the worse one on average, but not for sure
        ([8.9, 9.1], [10.0, 14.0], "NOT REPRODUCED", 10 / 9, "m25"),
    ],
)
def test_a_claim_against_alternatives_must_hold_against_each_with_its_own_interval(low, high, verdict, ours, worst, tmp_path):
    seeded(tmp_path, m50=[9.95, 10.05], m25=low, m75=high)
    evidence = {
        **LESS,
        "of": ["m50-s0", "m50-s1"],
        "over": [f"{ratio}-s{seed}" for ratio in ("m25", "m75") for seed in range(len(low))],
    }
    row = ledger(tmp_path, evidence=evidence)
    assert (row["verdict"], float(row["ours"]), row["seeds"]) == (verdict, pytest.approx(ours, rel=1e-3), f"2 against {len(low)}")
    assert f"m50-s0,m50-s1,{worst}-s0" in row["from"], "the alternative that decides"


def test_the_interval_of_a_ratio_is_student_s_of_the_spread_on_both_sides(tmp_path):
    from scipy.stats import ttest_ind_from_stats

    seeded(tmp_path, m50=[98.0, 102.0], m25=[109.0, 111.0, 110.0])
    row = ledger(tmp_path, evidence={**LESS, "of": ["m50-s0", "m50-s1"], "over": [f"m25-s{seed}" for seed in range(3)]})
    half = float(row["tolerance"].rstrip("%")) / 100
    sides = (half, 0.02 * 2**0.5, 2, 0, 1 / 110, 3)  # relative means that differ by the half width, spreads and numbers of seeds
    assert ttest_ind_from_stats(*sides).pvalue == pytest.approx(0.05, abs=5e-4)


def test_where_more_is_better_the_alternative_with_most_decides(tmp_path):
    made(tmp_path, a=10.0, b=5.0, c=8.0)
    assert ledger(tmp_path, better="higher", evidence={**LESS, "over": ["b", "c"]})["ours"] == "1.25"


def test_all_alternatives_must_have_run(tmp_path):
    made(tmp_path, a=5.0, b=5.5)
    assert ledger(tmp_path, evidence={**LESS, "over": ["b", "c"]})["verdict"] == "NOT RUN"


@pytest.mark.parametrize("evidence", [{**LESS, "of": ["a", "b"], "over": ["c"]}, {**NUMBER, "evals": ["a", "b"]}])
def test_the_best_of_several_recipes_is_not_what_a_claim_is_about(evidence, tmp_path):
    made(tmp_path, a=5.0, b=5.5, c=6.0)
    with pytest.raises(UserError, match=r"^a and b differ in more than the seed"):
        ledger(tmp_path, paper=6.0, evidence=evidence)


@pytest.mark.parametrize(
    ("ours", "direction", "shows"),
    [(80.0, "as claimed", "supports"), (100.5, "tie", "tie"), (120.0, "opposite", "contradicts")],
)
def test_a_smaller_size_never_reproduces_and_its_verdict_says_whether_it_supports_the_claim(ours, direction, shows, tmp_path):
    folder = tmp_path / "metrics" / "small"
    folder.mkdir(parents=True)
    for name, fd in (("small-a", ours), ("small-b", 100.0)):
        record(folder, name, fd=fd)
    row = ledger(tmp_path, paper=0.9, evidence=LESS, scaled=SMALL)
    assert (row["verdict"], row["direction"]) == (f"SCALED-DOWN ONLY: {shows}", direction)
    assert ledger(tmp_path, paper=0.9, evidence=None, scaled=SMALL) == row, "of a project without the paper's size"
    made(tmp_path, a=8.9, b=10.0)
    assert ledger(tmp_path, paper=0.9, evidence=LESS, scaled=SMALL)["verdict"] == "REPRODUCED", "full size counts where it is"


CONTROL = {**SMALL, "of": ["small-c"]}


@pytest.mark.parametrize(
    ("known", "told"),
    [
        (80.0, ""),
        (100.5, "the control shows a tie"),
        (131.0, "the control shows the opposite (1.31)"),
        (None, "the control was not run"),
    ],
)
def test_a_smaller_size_whose_control_does_not_show_what_is_known_cannot_test_a_claim(known, told, tmp_path):
    folder = tmp_path / "metrics" / "small"
    folder.mkdir(parents=True)
    for name, fd in (("small-a", 120.0), ("small-b", 100.0), ("small-c", known)):
        if fd:
            record(folder, name, fd=fd)
    row = ledger(tmp_path, paper=0.9, evidence=LESS, scaled=SMALL, control=CONTROL)
    wanted = ("UNTESTABLE HERE", told) if told else ("SCALED-DOWN ONLY: contradicts", "opposite")
    assert (row["verdict"], row["direction"], row["ours"]) == (*wanted, "1.2")
    made(tmp_path, a=8.9, b=10.0)
    assert ledger(tmp_path, paper=0.9, evidence=LESS, scaled=SMALL, control=CONTROL)["verdict"] == "REPRODUCED"


@pytest.mark.parametrize("evidence", [NUMBER, LESS, TIME, {"kind": "pair", "bench": "x", "pair": "p"}])
def test_without_evidence_a_claim_is_not_run(evidence, tmp_path):
    row = ledger(tmp_path, paper=1.0, evidence=evidence)
    assert (row["verdict"], row["ours"], row["from"]) == ("NOT RUN", "", "")


@pytest.mark.parametrize(
    ("last", "verdict"),
    [
        ({"ratio": 0.31, "low": 0.28, "high": 0.35}, "REPRODUCED"),
        ({"ratio": 0.52, "low": 0.45, "high": 0.6}, "NOT REPRODUCED"),
        ({"ratio": 0.8, "low": 0.5, "high": 1.2}, "TIE"),
        ({"status": "not reached", "low": None, "high": None}, "NOT REPRODUCED"),
        ({"status": "not reached", "low": 1.0, "high": float("inf")}, "NOT REPRODUCED"),
        ({"status": "not reached", "low": 0.5, "high": float("inf")}, "TIE"),  # it was trained for half of DiT's time
        ({"status": "before the first milestone", "ratio": 0.5, "low": 0.0, "high": 0.5}, "REPRODUCED"),
    ],
)
def test_a_crossing_is_judged_by_its_interval_at_dit_s_last_milestone(last, verdict, tmp_path):
    first = {"axis": "steps", "at": 1.0, "status": "reached", "ratio": 0.1, "low": 0.1, "high": 0.1, "seeds": "3 and 3"}
    first["model"] = "MaskDiT"
    other = {**first, "at": 9.0, "model": "TREAD"}
    pd.DataFrame([other, {**first, "at": 9.0, **last}, first]).to_csv(tmp_path / "curves_toy_crossing.csv", index=False)
    row = ledger(tmp_path, paper=0.3, evidence=TIME)
    assert (row["verdict"], row["seeds"]) == (verdict, "3 and 3")
    assert row["ours"] == str(last.get("ratio", "not reached"))
    assert ledger(tmp_path, paper=0.3, evidence={**TIME, "model": "TREAD"})["ours"] == "0.1"


def test_the_benchmark_is_evidence_of_speed_and_memory(tmp_path):
    pd.DataFrame([{"pair": "p", "ratio": 1.7, "low": 1.6, "high": 1.8}]).to_csv(tmp_path / "bench_cpu.csv", index=False)
    shared = {"precision": "bf16", "compile": True, "batch": 8}
    cells = [{"model": model, **shared, "memory_mb": memory} for model, memory in (("DiT", 100.0), ("MaskDiT 0.5", 60.0))]
    pd.DataFrame(cells).to_csv(tmp_path / "bench_cpu_factorial.csv", index=False)
    pair = {"kind": "pair", "bench": "cpu", "pair": "p"}
    assert ledger(tmp_path, paper=1.75, better="higher", evidence=pair)["verdict"] == "REPRODUCED"
    assert ledger(tmp_path, paper=2.18, better="higher", evidence=pair)["verdict"] == "NOT REPRODUCED"
    cell = {"kind": "factorial", "bench": "cpu", "column": "memory_mb", "of": "MaskDiT 0.5", "over": "DiT"}
    assert float(ledger(tmp_path, evidence=cell)["ours"]) == 0.6


def test_records_of_two_protocols_are_never_compared(tmp_path):
    made(tmp_path, a=5.0)
    record(tmp_path / "metrics" / "toy", "b", metrics={"fid": 6.0}, guidance=1.5)
    with pytest.raises(UserError, match=r"b has guidance 1\.5, a has 2\.0: they cannot share a column"):
        ledger(tmp_path, evidence=LESS)


def test_what_scaled_down_evidence_shows_is_no_better_and_no_worse_a_verdict():
    assert (
        len({rank(verdict) for verdict in ("SCALED-DOWN ONLY", "SCALED-DOWN ONLY: supports", "SCALED-DOWN ONLY: contradicts")}) == 1
    )
    assert rank("NOT RUN") < rank("SCALED-DOWN ONLY: contradicts") < rank("TIE")


@pytest.mark.parametrize("old", [*RANKS, "SCALED-DOWN ONLY: supports"])
def test_a_verdict_that_got_worse_is_named_and_no_other(old, tmp_path):
    made(tmp_path, a=9.95, b=10.0)  # a tie
    entry = Claims.model_validate({"title": "T", "study": "toy", "claims": {"it": {"says": "s", "source": "p", "evidence": LESS}}})
    before = tmp_path / "before.csv"
    before.write_text(f"claim,verdict\nit,{old}\n")
    if rank(old) <= rank("TIE"):
        claims(entry, results=tmp_path, against=before, out=tmp_path / "claims.csv")
        return
    with pytest.raises(UserError, match=rf"has better verdicts for it \({old}, now TIE\)"):
        claims(entry, results=tmp_path, against=before, out=tmp_path / "claims.csv")
    assert not (tmp_path / "claims.csv").exists()


@pytest.mark.parametrize(
    ("text", "said"), [("", "not a ledger"), ("a,b\n1,2\n", "not a ledger"), ("claim,verdict\nx,GOOD\n", "unknown verdict 'GOOD'")]
)
def test_what_is_no_ledger_is_refused(text, said, tmp_path):
    (tmp_path / "before.csv").write_text(text)
    entry = Claims.model_validate({"title": "T", "study": "toy", "claims": {"it": {"says": "s", "source": "p", "evidence": LESS}}})
    with pytest.raises(UserError, match=said):
        claims(entry, results=tmp_path, against=tmp_path / "before.csv", out=tmp_path / "claims.csv")


def test_the_command_ends_with_code_2_and_one_line_if_a_claim_is_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(TOY.read_text())
    (tmp_path / "results").mkdir()
    command = ["claims", "claims", "--results", "results", "--out", "results/claims.csv"]
    assert main(command) == 0
    assert main([*command, "--against", "results/claims.csv"]) == 0
    before = (tmp_path / "results" / "claims.csv").read_text()
    (tmp_path / "before.csv").write_text(before.replace("NOT RUN", "REPRODUCED"))
    for words in ((*command, "--against", "before.csv"), command):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said == "maskdit: before.csv: has better verdicts for quality (REPRODUCED, now NOT RUN)\n"
        monkeypatch.setenv("MASKDIT_AGAINST", "before.csv")
    assert (tmp_path / "results" / "claims.csv").read_text() == before


def test_a_ledger_demands_its_own_study_and_may_read_what_it_names_of_others():
    params = load(ROOT / "params.yaml")
    demanded, beside = params.upstream("claims", "claims"), params.beside("claims", "claims")
    assert {node.split("/")[1].split("-")[0] for node in demanded} == {"demo"}
    assert {"evaluate/in256-cosine", "reconstruct/in256-ema"} <= beside
    assert params.beside("table", "demo") == set()


def test_the_numbers_of_the_ledger_are_those_that_are_published():
    known = {
        float(row[name])
        for bench in ("in256", "in512", "in256-recon")
        for row in published(bench)
        for name in ("fid", "is", "rfid")
        if name in row
    }
    for claim in load(ROOT / "params.yaml").claims["claims"].claims.values():
        if claim.evidence.kind == "metric":
            assert claim.paper in known, claim.says


GUIDANCES = {**LESS, "of": ["demo-maskdit-guided"], "over": ["demo-dit-plain"]}
MISTAKES = {
    "guidances": (
        {"evidence": GUIDANCES},
        r"claims\.claims\.claims\.it: the samples must have the same guidance, but have \[1\.0, 2\.0\]",
    ),
    "metrc": ({"evidence": {**NUMBER, "kind": "metrc"}}, r"claims\.claims\.claims\.it\.evidence.*'metric', 'ratio'"),
    "unknown": ({"evidence": {**LESS, "of": ["demo-dit-plane"]}}, "has no entry 'demo-dit-plane'; did you mean 'demo-dit-plain'"),
    "no paper": ({"paper": None, "evidence": {**NUMBER, "evals": ["demo-dit-plain"]}}, "paper is missing"),
    "bench": ({"evidence": {"kind": "pair", "bench": "cpuu", "pair": "p"}}, "bench has no entry 'cpuu'"),
    "curves": ({"evidence": {**TIME, "study": "dem"}}, "curves has no entry 'dem'; did you mean 'demo'"),
    "scaled": ({"evidence": TIME, "scaled": NUMBER}, "scaled cannot be a metric"),
    "control": ({"evidence": TIME, "scaled": TIME, "control": NUMBER}, "control cannot be a metric"),
    "control of nothing": ({"evidence": TIME, "control": TIME}, "control is of the scaled evidence, but scaled is missing"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_claim_is_refused_in_one_line(mistake):
    from ruamel.yaml import YAML

    tree = YAML(typ="safe", pure=True).load(TOY.read_text())
    change, said = MISTAKES[mistake]
    tree["claims"]["claims"]["claims"] = {"it": {"says": "s", "source": "p", **change}}
    with pytest.raises(UserError) as refusal:
        validate(tree)
    assert "\n" not in str(refusal.value)
    assert re.search(said, str(refusal.value))


def test_evidence_may_be_a_number_of_the_training(tmp_path):
    made(tmp_path, a=5.0, b=5.0)
    tree = read_json(tmp_path / "metrics" / "toy" / "a.json")
    tree["checkpoint"]["speed"]["images_per_second"] = 160.0
    write_json(tmp_path / "metrics" / "toy" / "a.json", tree)
    row = ledger(tmp_path, paper=2.0, better="higher", evidence={**LESS, "metric": "images_per_second"})
    assert (row["verdict"], row["ours"]) == ("REPRODUCED", "2.0")
