"""params.yaml: what is wrong is refused in one line that names the key."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from maskdit.artifacts.stamps import stamp
from maskdit.config.base import UserError
from maskdit.config.load import load, validate
from maskdit.config.params import Params
from maskdit.config.paths import OUTPUTS, demand_known, output
from maskdit.config.training import kept_tokens

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tree():
    return YAML(typ="safe", pure=True).load((ROOT / "tests" / "toy" / "params.yaml").read_text())


@pytest.mark.parametrize("path", ["params.yaml", "tests/toy/params.yaml"])
def test_the_project_s_own_parameters_are_valid(path):
    params = load(ROOT / path)
    assert isinstance(params, Params)
    with pytest.raises(ValueError, match="frozen"):
        params.vae["demo"].steps = 3


MISTAKES = [
    (
        "fetch.demo.resolution",
        [64, 48],
        "fetch.demo.resolution: images are square; give the pixels of one side as a whole number, not",
    ),
    ("fetch.demo.resolution", "64x48", "fetch.demo.resolution: images are square; give the pixels of one side"),
    ("pretrain.demo-dit.mask_ratoi", 0.5, "pretrain.demo-dit.mask_ratoi: unknown key; did you mean 'mask_ratio'?"),
    ("pretrain.demo-maskdit.encoder.widht", 8, "pretrain.demo-maskdit.encoder.widht: unknown key; did you mean 'width'?"),
    ("pretain", {}, "pretain: unknown key; did you mean 'pretrain'?"),
    ("vae.demo.steps", "many", "vae.demo.steps: Input should be a valid integer (got 'many')"),
    ("vae.demo.steps", 2.5, "vae.demo.steps"),
    ("vae.demo.lr", "1e-4", "write a decimal point and a signed exponent, as in 1.0e-4"),
    ("vae.demo.lr", float("nan"), "vae.demo.lr"),
    ("vae.demo.lr", float("inf"), "vae.demo.lr"),
    ("pretrain.demo-dit.milestones", [4, 2], "pretrain.demo-dit: milestones must ascend, not [4, 2]"),
    ("pretrain.demo-dit.milestones", [2, 2], "pretrain.demo-dit: milestones must ascend, not [2, 2]"),
    ("pretrain.demo-dit.encoder.patch", 3, "pretrain.demo-dit.encoder.patch: 3 does not divide the latent's side of 8"),
    ("pretrain.demo-dit.encoder.heads", 3, "heads 3 must divide width 16"),
    ("pretrain.demo-dit.encoder.width", 18, "width 18 must be a multiple of 4"),
    ("vae.demo.channels", [8, 8, 8, 8, 8, 8], "vae.demo.channels: the downsampling factor 32 does not divide resolution 16"),
    ("pretrain.demo-maskdit.batch", 77, "pretrain.demo-maskdit.batch: 77 is larger than the data (76 training images"),
    ("vae.demo.batch", 77, "vae.demo.batch: 77 is larger than the data"),
    ("pretrain.demo-maskdit.mask_ratio", 0.97, "pretrain.demo-maskdit.mask_ratio: 0.97 keeps none of 16 tokens"),
    ("pretrain.demo-maskdit.mask_ratio", 1.0, "pretrain.demo-maskdit.mask_ratio"),
    ("pretrain.demo-dit.mask_ratio", 0.5, "pretrain.demo-dit.mask_ratio: 0.5 needs a decoder"),
    ("encode.demo.vae", "dem", "encode.demo.vae: vae has no entry 'dem'; did you mean 'demo'?"),
    ("sample.demo-dit-plain.step", 3, "sample.demo-dit-plain.step: 3 is not a milestone of pretrain.demo-dit (2, 4)"),
    ("sample.demo-dit-plain.phase", "finetune", "sample.demo-dit-plain.run: finetune has no entry 'demo-dit'"),
    ("sample.demo-dit-plain.shards", 17, "sample.demo-dit-plain.shards: 17 is more than the 16 images"),
    ("evaluate.demo.neighbours", 16, "evaluate.demo.neighbours: 16 needs more than the 16 images of sample.demo-dit-plain"),
    (
        "sample.demo-dit-plain.guidance_interval",
        [1.6, 0.2],
        "sample.demo-dit-plain: guidance_interval must be a low and a higher sigma, not [1.6, 0.2]",
    ),
    ("sample.demo-dit-plain.guidance_interval", [0.2], "sample.demo-dit-plain.guidance_interval"),
    (
        "sample.demo-dit-plain.solver",
        "euler",
        "sample.demo-dit-plain.solver: Input should be 'heun', 'dpmpp-2m', 'ddpm', 'flow-heun'",
    ),
    ("sample.demo-dit-plain.solver", "ddpm", "sample.demo-dit-plain.solver: ddpm needs a released network"),
    ("curves.demo.select", [{}], "curves.demo.select: the samples must have the same guidance"),
    ("curves.demo.select", [{"stepp": 2}], "curves.demo.select.0.stepp: unknown key; did you mean 'step'?"),
    ("curves.demo.select", [{"step": 3}], "curves.demo.select: matches no sample of the study demo"),
    ("sample.demo-dit-plain.study", "demmo", "sample.demo-dit-plain.study: table has no entry 'demmo'; did you mean 'demo'?"),
    ("sample.demo-dit-plain.reference", "dem", "sample.demo-dit-plain.reference: reference has no entry 'dem'; did you mean"),
    ("features.demo.bacth", 4, "features.demo.bacth: unknown key; did you mean 'batch'?"),
    ("strip.demo.images", [0, 16], "strip.demo.images: 16 is not one of the 16 images, counted from 0"),
    ("strip.demo.select", [{}], "strip.demo.select: the samples must have the same guidance"),
    ("strip", {}, "report.demo: strip has no entry 'demo'; a report needs one in each of table, curves, efficiency, strip"),
    ("report.demo.ledger", "claim", "report.demo.ledger: claims has no entry 'claim'; did you mean"),
    ("curves", {}, "claims.claims.study: curves has no entry 'demo'"),
    ("pretrain.demo-maskdit.defer", 9, "pretrain.demo-maskdit.defer: 9 must be less than the encoder's depth"),
    (
        "pretrain.demo-dit.route",
        {"first": 0, "last": 9, "ratio": 0.5},
        "pretrain.demo-dit.route.last: 9 must be less than the encoder's depth",
    ),
    ("pretrain.demo-dit.route", {"first": 0, "last": 0, "ratio": 0.999}, "pretrain.demo-dit.route.ratio: 0.999 leaves none of"),
    ("finetune.demo-maskdit.start", 3, "finetune.demo-maskdit.start: 3 is no milestone of pretrain.demo-maskdit"),
    ("fetch.other", None, "fetch.other"),
    (
        "sample.demo-dit-plain.step",
        "finall",
        "sample.demo-dit-plain.step: Input should be a valid integer or Input should be 'final' (got",
    ),
    ("table", {}, "table has no entry 'demo'; known: none"),
    ("fetch.Demo", None, "fetch.Demo"),
]


@pytest.mark.parametrize(("key", "value", "line"), MISTAKES, ids=[f"{key}={value}" for key, value, _ in MISTAKES])
def test_a_mistake_is_refused_in_one_line(tree, key, value, line):
    *path, last = key.split(".")
    place = tree
    for part in path:
        place[part] = place = dict(place[part])  # entries share what YAML merged
    place[last] = dict(tree["fetch"]["demo"]) if value is None else value
    with pytest.raises(UserError) as refusal:
        validate(tree)
    assert str(refusal.value).startswith("params.yaml: ")
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("field", "value"), [("solver", "dpmpp-2m"), ("solver_steps", 9), ("guidance_interval", [0.2, 1.6])])
def test_the_points_of_a_curve_are_sampled_alike(tree, field, value):
    first = tree["sample"]["demo-dit-plain"]
    tree["sample"]["demo-maskdit-guided"] = {**tree["sample"]["demo-maskdit-guided"], "guidance": first["guidance"]}
    del tree["curves"]["demo"]["select"]
    tree["sample"]["demo-dit-plain"] = {**first, "solver_steps": tree["sample"]["demo-maskdit-guided"]["solver_steps"]}
    validate(tree)
    tree["sample"]["demo-dit-plain"] = {**first, field: value}
    with pytest.raises(UserError, match=f"curves.demo.select: the samples must have the same {field}, but have"):
        validate(tree)


@pytest.mark.parametrize(("field", "value"), [("seed", 1), ("labels", "balanced"), ("guidance", 1.5)])
def test_all_images_of_a_strip_begin_with_the_same_noise_and_class(tree, field, value):
    first = {**tree["sample"]["demo-dit-plain"], "step": 4}
    tree["sample"]["demo-dit-later"] = first
    tree["strip"]["demo"]["select"] = [{"phase": "pretrain"}]
    validate(tree)
    tree["sample"]["demo-dit-later"] = {**first, field: value}
    with pytest.raises(UserError, match=f"strip.demo.select: the samples must have the same {field}, but have"):
        validate(tree)


def test_a_report_shows_the_ledger_of_its_own_study(twins):
    twins["curves"]["demo-two"] = {"title": "Two"}
    twins["claims"]["claims"] = {**twins["claims"]["claims"], "study": "demo-two"}
    with pytest.raises(UserError, match=r"^params\.yaml: report\.demo\.ledger: claims\.claims belongs to study demo-two$"):
        validate(twins)


def test_ddpm_needs_two_timesteps_of_its_thousand(tree):
    for steps in (1, 1001):
        tree["sample"]["demo-dit-plain"] = {**tree["sample"]["demo-dit-plain"], "solver": "ddpm", "solver_steps": steps}
        with pytest.raises(UserError, match="solver_steps: ddpm takes 2 to 1000 steps"):
            validate(tree)


def test_images_without_classes_are_sampled_without_guidance_only(tree):
    tree["fetch"]["demo"] = {"source": "folder", "root": "heap", "resolution": 16, "images": 96, "bad": "fail", "classes": "none"}
    told = "sample.demo-maskdit-guided.guidance: 2.0 needs classes, and fetch.demo has classes: none; set it to 1.0"
    with pytest.raises(UserError, match=told):
        validate(tree)
    tree["sample"]["demo-maskdit-guided"]["guidance"] = 1.0
    assert validate(tree).fetch["demo"].classes == "none"


def test_a_missing_number_is_named(tree):
    del tree["encode"]["demo"]["batch"]
    with pytest.raises(UserError, match=r"encode\.demo\.batch: missing"):
        validate(tree)


def test_a_reference_without_an_extractor_of_its_name_is_told_by_a_key_that_is_in_the_file(tree):
    del tree["fetch"]["demo-features"]
    with pytest.raises(UserError, match=r"sample\.demo-dit-plain\.reference: fetch has no entry 'demo-features'"):
        validate(tree)


@pytest.mark.parametrize("verb", ["features", "evaluate", "reference"])
def test_a_sample_without_numbers_for_its_evaluation_is_refused(tree, verb):
    tree[verb] = {}
    with pytest.raises(UserError, match=rf"sample\.demo-dit-plain\.reference: {verb} has no entry 'demo'"):
        validate(tree)


@pytest.mark.parametrize("text", ["", "- a\n", "a: [1\n", "a: 1\na: 2\n"])
def test_a_file_that_is_no_dictionary_of_steps_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError) as refusal:
        load(tmp_path / "params.yaml")
    assert "\n" not in str(refusal.value)


def test_the_kept_tokens_are_the_paper_s():
    assert [kept_tokens(256, ratio) for ratio in (0.0, 0.5, 0.75, 0.999)] == [256, 128, 64, 0]
    assert kept_tokens(10, 0.34) == 6, "cut, not rounded"


def test_a_longer_phase_has_the_same_recipe_and_any_other_number_another(tree):
    runs = [validate(tree).pretrain["demo-dit"]]
    for name, value in (("milestones", [2, 4, 6]), ("lr", 0.5)):
        tree["pretrain"]["demo-dit"] = {**tree["pretrain"]["demo-dit"], name: value}
        runs.append(validate(tree).pretrain["demo-dit"])
    assert runs[0].recipe() == runs[1].recipe() != runs[2].recipe()


@pytest.fixture
def twins(tree):
    """A second data set, autoencoder and benchmark beside the first."""
    for verb in ("fetch", "vae", "encode", "reference", "table"):
        tree[verb]["demo-two"] = dict(tree[verb]["demo"])
    tree["sample"]["demo-two-guided"] = {**tree["sample"].pop("demo-maskdit-guided"), "study": "demo-two"}
    for verb in ("features", "evaluate"):
        tree[verb]["demo-two"] = tree[verb]["demo"]
    tree["fetch"]["demo-two-features"] = tree["fetch"]["demo-features"]
    tree["reference"]["demo-two"]["extractor"] = "demo-two-features"
    for verb in ("grid", "claims"):
        tree[verb] = {"demo-dit": tree[verb]["demo-dit"]} if verb == "grid" else tree[verb]
    tree["claims"]["claims"]["claims"]["quality"]["evidence"]["evals"] = ["demo-two-guided"]
    tree["curves"]["demo"] = {"title": "One"}
    tree["report"]["demo"]["grids"] = ["demo-dit", "demo-dit"]
    validate(tree)
    return tree


@pytest.mark.parametrize(
    ("verb", "key", "field", "line"),
    [
        ("finetune", "demo-maskdit", "dataset", "finetune.demo-maskdit.dataset: must be demo, as in pretrain.demo-maskdit"),
        ("sample", "demo-dit-plain", "vae", "sample.demo-dit-plain.vae: must be demo, as in pretrain.demo-dit"),
        ("sample", "demo-dit-plain", "reference", "sample.demo-dit-plain.reference: must be demo, as in pretrain.demo-dit"),
        ("sample", "demo-dit-plain", "study", "sample.demo-dit-plain: the key must begin with its study, demo-two"),
    ],
)
def test_two_data_sets_never_mix(twins, verb, key, field, line):
    twins[verb][key] = {**twins[verb][key], field: "demo-two"}
    with pytest.raises(UserError) as refusal:
        validate(twins)
    assert str(refusal.value) == f"params.yaml: {line}"


@pytest.fixture
def theirs(tree):
    """A sample of released weights, in place of the finetuned run's."""
    entry = {"url": "https://example.org/x.pt", "sha256": None, "format": "upstream", "vae": "demo", "dataset": "demo", "step": 7}
    tree["released"]["demo-theirs"] = entry
    changes = {"run": "demo-theirs", "phase": "released"}
    tree["sample"]["demo-maskdit-guided"] = {**tree["sample"]["demo-maskdit-guided"], **changes}
    return tree


def test_released_weights_are_sampled_without_a_training(theirs):
    params = validate(theirs)
    assert params.upstream("sample", "demo-maskdit-guided") == {"released/demo-theirs", "vae/demo"}
    assert params.upstream("released", "demo-theirs") == {"vae/demo"}


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("released.demo-theirs.url", "http://example.org/x.pt", "released.demo-theirs.url"),
        ("released.demo-theirs.sha256", "abc", "released.demo-theirs.sha256"),
        ("released.demo-theirs.vae", "demi", "released.demo-theirs.vae: vae has no entry 'demi'; did you mean 'demo'?"),
        ("released.demo-theirs.dataset", "demi", "released.demo-theirs.dataset: reference has no entry 'demi'"),
        ("sample.demo-maskdit-guided.run", "demo-their", "run: released has no entry 'demo-their'; did you mean 'demo-theirs'?"),
        ("sample.demo-maskdit-guided.phase", "pretrain", "run: pretrain has no entry 'demo-theirs'"),
        ("sample.demo-maskdit-guided.step", 8, "step: 8 is not a milestone of released.demo-theirs (7,)"),
        ("sample.demo-maskdit-guided.reference", "demo-two", "reference: must be demo, as in released.demo-theirs"),
        ("sample.demo-maskdit-guided.vae", "demo-two", "vae: must be demo, as in released.demo-theirs"),
    ],
)
def test_a_mistake_about_released_weights_is_refused(theirs, key, value, line):
    for verb in ("vae", "features", "evaluate"):
        theirs[verb]["demo-two"] = theirs[verb]["demo"]
    theirs["fetch"]["demo-two-features"] = theirs["fetch"]["demo-features"]
    theirs["reference"]["demo-two"] = {**theirs["reference"]["demo"], "extractor": "demo-two-features"}
    verb, entry, field = key.split(".")
    theirs[verb][entry] = {**theirs[verb][entry], field: value}
    with pytest.raises(UserError) as refusal:
        validate(theirs)
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.fixture
def refined(theirs):
    """A finetuning of the released weights."""
    theirs["finetune"]["demo-theirs"] = {**theirs["finetune"]["demo-maskdit"], "run": "demo-theirs", "phase": "released"}
    return theirs


def test_released_weights_are_finetuned_as_a_whole(refined):
    params = validate(refined)
    assert params.upstream("finetune", "demo-theirs") == {"encode/demo", "released/demo-theirs"}
    assert params.reads("finetune", "demo-theirs") == {}
    assert "phase" not in params.finetune["demo-maskdit"].recipe(), "a run of pretrain has the recipe of before"


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("finetune.demo-theirs.run", "demo-their", "run: released has no entry 'demo-their'; did you mean 'demo-theirs'?"),
        ("finetune.demo-theirs.phase", "pretrain", "finetune.demo-theirs.run: pretrain has no entry 'demo-theirs'"),
        ("finetune.demo-theirs.phase", "sample", "finetune.demo-theirs.phase: Input should be 'pretrain' or 'released'"),
        ("released.demo-theirs.vae", "demo-two", "dataset: encode.demo has vae demo, but released.demo-theirs needs demo-two"),
        ("fetch.demo-two.resolution", 32, "dataset: fetch.demo has resolution 16, but released.demo-theirs needs 32"),
        ("released.demo-theirs.format", "dit", "mask_ratio: 0.5 needs a decoder, and released.demo-theirs is a DiT"),
        ("finetune.demo-maskdit.classes", {"a": 1}, "finetune.demo-maskdit: classes need phase: released"),
        ("finetune.demo-theirs.classes", {"a": -1}, "finetune.demo-theirs.classes.a: Input should be greater than or equal to 0"),
    ],
)
def test_a_mistake_about_finetuning_released_weights_is_refused(refined, key, value, line):
    for verb in ("vae", "fetch", "reference"):
        refined[verb]["demo-two"] = dict(refined[verb]["demo"])
    refined["sample"]["demo-maskdit-guided"] |= {"run": "demo-maskdit", "phase": "finetune"}
    refined["reference"]["demo-two"]["dataset"] = "demo-two"
    refined["released"]["demo-theirs"]["dataset"] = "demo-two"
    refined["finetune"]["demo-theirs"]["mask_ratio"] = 0.5
    validate(refined)
    verb, entry, field = key.split(".")
    refined[verb][entry] = {**refined[verb][entry], field: value}
    with pytest.raises(UserError) as refusal:
        validate(refined)
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_entry_without_sha256_says_so(theirs):
    del theirs["released"]["demo-theirs"]["sha256"]
    with pytest.raises(UserError, match=r"released\.demo-theirs\.sha256: missing"):
        validate(theirs)


@pytest.mark.parametrize(("verb", "key"), [("finetune", "another-maskdit"), ("fetch", "demonstration")])
def test_a_key_begins_with_its_benchmark(tree, verb, key):
    tree[verb][key] = next(iter(tree[verb].values()))
    with pytest.raises(UserError, match=rf"{verb}\.{key}"):
        validate(tree)


@pytest.mark.parametrize(("place", "old", "new"), [(["pretrain", "demo-dit"], "mask_ratio", "mask_ratoi"), ([], "vae", "vea")])
def test_a_misspelt_key_is_named_rather_than_the_one_that_it_leaves_out(tree, place, old, new):
    entry = tree
    for part in place:
        entry[part] = entry = dict(entry[part])
    entry[new] = entry.pop(old, 1)
    with pytest.raises(UserError, match=rf"{'.'.join([*place, new])}: unknown key; did you mean '{old}'"):
        validate(tree)


def test_an_entry_that_is_asked_for_and_missing_names_the_nearest(tree):
    with pytest.raises(UserError, match="sample has no entry 'demo-dit-plane'; did you mean 'demo-dit-plain'"):
        validate(tree).entry("sample", "demo-dit-plane")


TARGETS = {
    "results/report_odd.html": "params.yaml: report has no entry 'odd'; known: demo, fashion, in256, in512",
    "results/table_in25.tex": "params.yaml: table has no entry 'in25'; did you mean 'in256'?",
    "results/nothing.csv": "params.yaml: claims has no entry 'nothing'; known: claims, fashion-claims, in256-claims",
    ".scratch/made/sample/demo-dit-plan": "params.yaml: sample has no entry 'demo-dit-plan'; did you mean 'demo-dit-plain'?",
    ".scratch/made/vae/xyz": "params.yaml: vae has no entry 'xyz'; known: demo, fashion, in256, in256-mse, in512",
    "artifacts/samples/demo-dit-plain": "does not know this path; ask for .scratch/made/sample/demo-dit-plain instead",
    "results/metrics/demo/demo-dit-plain.json": "does not know this path; ask for .scratch/made/evaluate/demo-dit-plain instead",
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_does_not_exist_names_the_nearest(target):
    with pytest.raises(UserError) as refusal:
        demand_known(load(ROOT / "params.yaml"), [target])
    assert TARGETS[target] in str(refusal.value)


def test_every_target_that_exists_is_taken():
    params = load(ROOT / "params.yaml")
    nodes = [f"{verb}/{key}" for verb in OUTPUTS for key in getattr(params, verb)]
    targets = {str(stamp(params, node)) for node in nodes} | {
        "demo",
        "results/curves_demo_crossing.csv",
        "--cores",
        "2",
        ".",
        "/",
        "",
        "..",
    }
    demand_known(params, targets)
    assert {str(output(params, node)) for node in nodes if node.startswith("table/")} < targets
