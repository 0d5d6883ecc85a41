"""One judge of what is current: held against a model of the toy study whose artifacts are hashes of all that they depend on."""

import copy
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from hashes import TREE, changed, holds, made, params_of, run, study, value  # noqa: F401, fixtures
from maskdit.artifacts.freshness import CURRENT, Freshness
from maskdit.artifacts.manifest import manifest_file
from maskdit.artifacts.publish import publishing
from maskdit.artifacts.stamps import MADE, OLD, STALE, set_stamps, stamped, waits_for
from maskdit.artifacts.step import origins
from maskdit.config.params import Params
from maskdit.config.paths import inputs, output


def fed_by(params: Params, node: str) -> set[str]:
    """A node and all that is made of it."""
    fresh, found, left = Freshness(params), set(), [node]
    while left:
        each = left.pop()
        if each not in found:
            found.add(each)
            left += fresh.consumers[each]
    return found


@pytest.mark.parametrize(
    ("place", "node"),
    [
        (("pretrain", "demo-maskdit", "lr", 0.5), "pretrain/demo-maskdit"),
        (("finetune", "demo-maskdit", "lr", 0.5), "finetune/demo-maskdit"),
        (("reference", "demo", "batch", 7), "reference/demo"),
        (("vae", "demo", "steps", 5), "vae/demo"),
        (("grid", "demo-dit", "columns", 3), "grid/demo-dit"),
        (("table", "demo", "title", "Another"), "table/demo"),
    ],
)
def test_a_changed_number_makes_stale_what_it_feeds_and_no_more(made: Params, place: tuple, node: str) -> None:
    now = changed(*place)
    assert Freshness(now).unmade == fed_by(now, node)
    assert f"{place[2]} " in Freshness(now).verdict(node).why
    run(now)
    assert Freshness(now).unmade == set()
    assert set(run(made)) >= {node}, "and back again"
    assert holds(made, "report/demo") == value(made, "report/demo")


def test_a_finetuning_follows_the_published_weights_that_it_starts_from(study: Path) -> None:
    tree = copy.deepcopy(TREE)
    theirs = {"url": "https://example.org/x.pt", "sha256": None, "format": "upstream", "vae": "demo", "dataset": "demo", "step": 7}
    tree["released"] = {"demo-theirs": theirs}
    tree["finetune"]["demo-maskdit"] |= {"run": "demo-theirs", "phase": "released"}
    params = params_of(tree)
    run(params)
    assert Freshness(params).unmade == set()
    theirs["step"] = 8
    now = params_of(tree)
    assert Freshness(now).unmade == fed_by(now, "released/demo-theirs") >= {"finetune/demo-maskdit", "sample/demo-maskdit-guided"}
    run(now)
    assert holds(now, "report/demo") == value(now, "report/demo")
    tree["finetune"]["demo-maskdit"]["classes"] = {"face": 3}
    assert "classes null" in Freshness(params_of(tree)).verdict("finetune/demo-maskdit").why


def test_times_say_nothing(made: Params) -> None:
    for at, path in enumerate(sorted(Path().rglob("*"))):
        os.utime(path, (at * 7919 % 10**9, at * 104729 % 2 * 10**9))
    assert Freshness(made).unmade == set()


def test_a_milestone_at_the_end_makes_only_its_own(made: Params) -> None:
    longer = changed("pretrain", "demo-dit", "milestones", [2, 4, 6])
    assert Freshness(longer).unmade == set(), "no sample is of the new milestone"
    assert Freshness(longer).verdict("pretrain/demo-dit").longer
    tree = copy.deepcopy(TREE)
    tree["pretrain"]["demo-dit"]["milestones"] = [2, 4, 6]
    tree["sample"]["demo-dit-more"] = {**tree["sample"]["demo-dit-plain"], "step": 6}
    more = params_of(tree)
    own = {f"{verb}/demo-dit-more" for verb in ("sample", "features", "evaluate")} | {"pretrain/demo-dit"}
    shown = {f"{verb}/demo" for verb in ("table", "efficiency", "strip", "report")} | {"claims/claims"}
    assert Freshness(more).unmade == own | shown - {"strip/demo"}, "the strip shows step 2"
    run(more)
    assert Freshness(more).unmade == set()
    assert holds(more, "sample/demo-dit-plain") == value(more, "sample/demo-dit-plain")


def test_a_milestone_before_the_last_one_trains_up_to_it_and_makes_nothing_else(made: Params) -> None:
    fresh = Freshness(changed("pretrain", "demo-dit", "milestones", [1, 2, 3, 4]))
    why = fresh.verdict("pretrain/demo-dit").why
    assert "milestone 1 was not kept: it trains once more up to step 3, the others stay as they are" in why
    assert fresh.unmade == set(), "no sample is of the new milestones"


def test_a_final_sample_is_stale_when_the_training_becomes_longer(made: Params) -> None:
    now = changed("finetune", "demo-maskdit", "milestones", [2, 4])
    assert Freshness(now).unmade == fed_by(now, "sample/demo-maskdit-guided") | {"finetune/demo-maskdit"}
    assert "is now to read ema-0000004.safetensors" in Freshness(now).verdict("evaluate/demo-maskdit-guided").why


def test_what_was_deleted_is_made_again_only_if_something_needs_it(made: Params) -> None:
    for node in ("sample/demo-dit-plain", "features/demo-dit-plain", "pretrain/demo-dit"):
        shutil.rmtree(output(made, node))
    assert Freshness(made).unmade == set()
    now = changed("reference", "demo", "batch", 7)
    assert Freshness(now).unmade >= {"sample/demo-dit-plain", "features/demo-dit-plain", "pretrain/demo-dit"}


def test_records_alone_are_enough(made: Params) -> None:
    shutil.rmtree("artifacts")
    assert Freshness(made).unmade == set()
    output(made, "table/demo").unlink()
    assert run(made) == ["table/demo"]


def test_a_picture_is_not_drawn_without_its_samples(made: Params) -> None:
    shutil.rmtree(output(made, "sample/demo-dit-plain"))
    output(made, "grid/demo-dit").unlink()
    assert Freshness(made).unmade == set()


def test_a_changed_digit_in_a_result_is_seen_and_the_result_made_again(made: Params) -> None:
    for node in ("table/demo", "evaluate/demo-dit-plain"):
        file = output(made, node)
        file.write_text(
            file.read_text().replace("a", "b", 1)
            if node.startswith("table")
            else file.read_text().replace('"value": "', '"value": "0')
        )
        assert "written" in (why := Freshness(made).verdict(node).why) or "by hand" in why
        assert node in run(made)
    assert Freshness(made).unmade == set()


def test_an_artifact_of_another_making_makes_what_was_made_of_it_stale(made: Params) -> None:
    folder = output(made, "sample/demo-dit-plain")
    ancestors, read = origins(made, "sample", "demo-dit-plain", inputs(made, "sample", "demo-dit-plain"))
    entry = made.entry("sample", "demo-dit-plain").model_dump(mode="json")
    with publishing(folder, "sample/demo-dit-plain", entry, ancestors, read) as place:
        (place / "value.txt").write_text("drawn on another machine")
    assert "another sample/demo-dit-plain" in Freshness(made).verdict("features/demo-dit-plain").why


def test_stamps_say_what_is_current_and_marks_what_is_stale(made: Params) -> None:
    now = changed("finetune", "demo-maskdit", "lr", 0.5)
    for params in (made, now, made):
        fresh = Freshness(params)
        set_stamps(fresh)
        stamps = {str(path.relative_to(MADE)) for path in MADE.glob("*/*")}
        marks = {str(path.relative_to(STALE)) for path in STALE.glob("*/*")}
        assert stamps == {node for node in fresh.edges if stamped(params, node)} - fresh.unmade
        assert marks == {node for node in fresh.unmade if not stamped(params, node)}
        assert len({path.stat().st_mtime for path in MADE.glob("*/*")}) == 1
        for node in fresh.edges.keys() - fresh.unmade:
            files, _ = waits_for(params, node, fresh)
            assert not [path for path in files if path.is_relative_to(MADE) and not path.exists()], "nothing current waits"


def test_a_current_result_with_a_date_in_the_future_becomes_old_and_others_keep_their_date(made: Params) -> None:
    late, early = output(made, "table/demo"), output(made, "curves/demo")
    os.utime(late, (2**31, 2**31))
    os.utime(early, (10**9, 10**9))
    set_stamps(Freshness(made))
    assert [path.stat().st_mtime for path in (late, early)] == [OLD, 10**9]


class Walk:
    """A project in which things happen at random."""

    def __init__(self, seed: int) -> None:
        self.dice, self.tree, self.aside = random.Random(seed), copy.deepcopy(TREE), []

    def happens(self) -> str:
        """One thing, and what it was."""
        kind = self.dice.choice(("change", "change", "restore", "touch", "copy", "delete", "back", "milestones", "digit"))
        getattr(self, kind)()
        return kind

    def change(self) -> None:
        verb, key, field = self.dice.choice(
            [
                ("vae", "demo", "steps"),
                ("pretrain", "demo-dit", "warmup"),
                ("pretrain", "demo-maskdit", "warmup"),
                ("finetune", "demo-maskdit", "seed"),
                ("sample", "demo-dit-plain", "seed"),
                ("evaluate", "demo", "neighbours"),
                ("grid", "demo-dit", "columns"),
            ]
        )
        self.tree[verb][key][field] = self.dice.randrange(2, 5)

    def restore(self) -> None:
        self.tree = copy.deepcopy(TREE)

    def milestones(self) -> None:
        verb, key = self.dice.choice([("pretrain", "demo-dit"), ("pretrain", "demo-maskdit"), ("finetune", "demo-maskdit")])
        self.tree[verb][key]["milestones"] = self.dice.choice([[2, 4], [2], [2, 4, 6], [1, 2, 4]])

    def artifacts(self) -> list[Path]:
        return [path for path in sorted(Path().glob("artifacts/*/*")) + sorted(Path("results").glob("**/*.json")) if path.exists()]

    def touch(self) -> None:
        for path in Path().rglob("*"):
            os.utime(path, (at := self.dice.randrange(1, 2**31), at))

    def copy(self) -> None:
        shutil.copytree("results", "elsewhere", copy_function=shutil.copyfile)
        shutil.rmtree("results")
        Path("elsewhere").rename("results")

    def delete(self) -> None:
        if found := self.artifacts():
            path = self.dice.choice(found)
            shutil.rmtree("aside", ignore_errors=True)
            Path("aside").mkdir()
            self.aside = [(path, path.rename(Path("aside") / path.name))]

    def back(self) -> None:
        for path, kept in self.aside:
            if kept.exists() and not path.exists() and path.parent.exists():
                kept.rename(path)

    def digit(self) -> None:
        file = Path("results/table_demo.csv")
        if file.exists():
            file.write_text(file.read_text().swapcase())


def walk(seed: int, length: int) -> None:
    """Things happen; after each few, an engine runs: then nothing is left to make, and results are those of a run from nothing."""
    project = Walk(seed)
    run(params_of(project.tree))
    past = []
    for _ in range(length):
        past.append(project.happens())
        if project.dice.random() < 0.5:
            continue
        params = params_of(project.tree)
        planned = set(Freshness(params).unmade)
        made = run(params)
        fresh = Freshness(params)
        assert set(made) <= planned, past
        assert fresh.unmade == set(), past
        drawn = all(fresh.verdict(node) == CURRENT for node in ("grid/demo-dit", "grid/demo-maskdit", "strip/demo"))
        for node in ("table/demo", *["report/demo"] * drawn, *(f"evaluate/{key}" for key in params.evaluate)):
            if fresh.known(node):
                assert holds(params, node) == value(params, node), (node, past)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_a_run_makes_what_a_run_from_nothing_would_make(seed: int, study: Path) -> None:
    walk(seed, 25)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 180))
def test_whatever_happens_for_long(seed: int, study: Path) -> None:
    walk(seed, 25)


def test_a_manifest_lies_beside_files_that_hold_none(made: Params) -> None:
    told = json.loads(manifest_file(output(made, "table/demo")).read_text())
    assert told["files"].keys() == {"table_demo.csv", "table_demo.md", "table_demo.tex", "scores/demo/one.yaml"}
    assert told["lineage"].keys() >= {"table/demo", "evaluate/demo-dit-plain", "pretrain/demo-dit", "fetch/demo"}
