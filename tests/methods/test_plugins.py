"""A method of the user's: what is wrong with it is said in one line, and its file is part of what it has made."""

import re
import shutil

import pytest

from hashes import TREE
from maskdit.artifacts.manifest import difference
from maskdit.cli import main
from maskdit.config.base import UserError
from maskdit.config.load import validate
from maskdit.methods import plugins
from project import ROOT, TOY, edit
from small import latents, masked, pretrained  # noqa: F401, a fixture

EXAMPLE = "methods/mixture_of_depths.py:Mixture"
HEAD = "from maskdit.methods.contract import Method\nfrom maskdit.methods.dit import Dit\n"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """The toy study and the example's file; each test imports anew."""
    plugins.found.cache_clear()
    shutil.copytree(ROOT / "examples" / "methods", tmp_path / "methods", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TOY, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    plugins.found.cache_clear()


def tree(method, options=None, **changes):
    """The toy study with another method for its DiT."""
    entry = {**TREE["pretrain"]["demo-dit"], "method": method, "options": options or {}, **changes}
    return {**TREE, "pretrain": {**TREE["pretrain"], "demo-dit": entry}}


def refused(method, options=None, **changes):
    with pytest.raises(UserError) as error:
        validate(tree(method, options, **changes))
    line = str(error.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("method", "options", "line"),
    [
        ("mask-dit", {}, "pretrain.demo-dit.method: no method 'mask-dit'; did you mean 'maskdit'?"),
        ("methods/none.py:Mine", {}, "pretrain.demo-dit.method: methods/none.py: no such file"),
        ("/etc/none.py:Mine", {}, "/etc/none.py: a method's file must lie beside params.yaml"),
        ("no_package.mine:Mine", {}, "no_package.mine: cannot be imported: ModuleNotFoundError: No module named 'no_package'"),
        ("methods/mixture_of_depths.py:Mixtur", {}, "has no class 'Mixtur'; did you mean 'Mixture'?"),
        ("pathlib:Path", {}, "pathlib:Path: is no Method; write class Path(Method)"),
        (EXAMPLE, {"ratoi": 0.5}, "pretrain.demo-dit.options.ratoi: unknown key; did you mean 'ratio'?"),
        (EXAMPLE, {"ratio": "half"}, "pretrain.demo-dit.options.ratio: Input should be a valid number (got 'half')"),
        (EXAMPLE, {"ratio": 0.99}, "pretrain.demo-dit.options.ratio: leaves none of 16 tokens"),
        (None, {"ratio": 0.5}, "pretrain.demo-dit.options.ratio: unknown key; dit has no options"),
        ("sit", {"times": "cosine"}, "pretrain.demo-dit.options.times: Input should be 'uniform' or 'logit-normal'"),
        ("maskdit", {}, "pretrain.demo-dit.method: MaskDiT needs a decoder"),
        ("tread", {}, "pretrain.demo-dit.method: TREAD needs a route"),
    ],
)
def test_a_method_or_an_option_that_there_is_not_is_refused_in_a_line(method, options, line):
    assert line in refused(method, options)


LACKS = {
    "lacks kept(), a part of the contract": "class Mine(Method):\n    name = 'Mine'\n    def misfits(self, config): ...\n",
    "lacks name, the word that stands for it in tables": "class Mine(Dit):\n    name = 'my method'\n",
    "loss must be def loss(self, net, config, x0_BCHW, labels_B, draw, keep)": "class Mine(Dit):\n    name = 'Mine'\n"
    "    def loss(self, net, batch): ...\n",
    "has the name DiT, which is that of another method": "class Mine(Dit): ...\n",
    "cannot be imported: ZeroDivisionError: division by zero": "1 / 0\n",
    "cannot be imported: SyntaxError: invalid syntax": "class Mine(Dit) pass\n",
}


@pytest.mark.parametrize("line", LACKS)
def test_a_class_that_lacks_a_part_of_the_contract_and_a_file_that_fails_are_refused_with_the_part(line, project):
    (project / "methods" / "mine.py").write_text(HEAD + LACKS[line])
    assert line in refused("methods/mine.py:Mine")


def test_a_solver_that_does_not_fit_a_method_is_refused():
    sample = {**TREE["sample"]["demo-dit-plain"], "solver": "flow-heun"}
    study = {**TREE, "sample": {**TREE["sample"], "demo-dit-plain": sample}}
    with pytest.raises(
        UserError, match=r"sample\.demo-dit-plain\.solver: flow-heun does not fit pretrain\.demo-dit; set it to heun or"
    ):
        validate(study)
    validate({**tree("sit"), "sample": study["sample"]})


def test_a_mistake_in_a_method_ends_a_command_with_code_2_and_one_line(project, capsys):
    edit(project / "params.yaml", "decoder: null", "decoder: null\n    method: methods/none.py:Mine")
    assert main(["check"]) == 2
    assert re.fullmatch(
        r"maskdit: params\.yaml: pretrain\.demo-dit\.method: methods/none\.py: no such file; .*\n", capsys.readouterr().err
    )


def test_another_code_is_another_recipe_and_makes_what_was_trained_stale(project):
    before = validate(tree(EXAMPLE)).pretrain["demo-dit"]
    with (project / "methods" / "mixture_of_depths.py").open("a") as file:
        file.write("\n")
    after = validate(tree(EXAMPLE)).pretrain["demo-dit"]
    assert before.recipe() != after.recipe()
    told = difference(before.model_dump(mode="json"), after)
    assert told == "another methods/mixture_of_depths.py:Mixture than the one that is here"
    assert "is computed from the method's file; remove it" in refused(EXAMPLE, method_sha256="0" * 64)


def test_a_claim_may_name_any_method_of_the_study():
    crossing = {"kind": "crossing", "study": "demo", "axis": "steps", "model": "MoD"}
    claim = {"says": "a", "source": "b", "evidence": crossing}
    study = {**tree(EXAMPLE), "claims": {"claims": {**TREE["claims"]["claims"], "claims": {"mine": claim}}}}
    assert validate(study).claims["claims"].claims["mine"].evidence.model == "MoD"
    study["pretrain"] = TREE["pretrain"]
    with pytest.raises(UserError, match=r"claims\.claims\.claims\.mine: no method has the name 'MoD'"):
        validate(study)


def test_a_parameter_that_a_network_does_not_use_is_named(project, latents):
    body = "    def network(self, config=None):\n        import torch\n        net = super().network(config)\n"
    body += "        net.spare = torch.nn.Parameter(torch.zeros(2))\n        return net\n"
    (project / "methods" / "mine.py").write_text(f"{HEAD}class Mine(Dit):\n    name = 'Mine'\n{body}")
    config = masked(2, decoder=None, mask_ratio=0.0, method="methods/mine.py:Mine")
    with pytest.raises(UserError, match=r"^spare received no gradient: a method's network must use all of its parameters"):
        pretrained(latents, "run", config)
