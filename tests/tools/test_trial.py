"""`maskdit check KEY`: what a method says of itself is compared with what one of its steps does."""

import json
import re

import pytest

from hashes import TREE
from maskdit.cli import main
from maskdit.config.base import UserError
from maskdit.config.load import validate
from maskdit.methods import plugins
from maskdit.tools.trial import trial
from project import ROOT

HEAD = """from torch import nn, rand, zeros

from maskdit.methods.dit import Dit


class Mine(Dit):
    name = "Mine"
"""
EXAMPLE = (ROOT / "examples" / "methods" / "mixture_of_depths.py").read_text()
LOSS = """
    def loss(self, net, config, x0_BCHW, labels_B, draw, keep):
        one, other = super().loss(net, config, x0_BCHW, labels_B, draw, keep)
"""
MORE = """
    def network(self, config=None):
        net = super().network(config)
        if WHEN:
            net.more = nn.Parameter(zeros(1))
        return net
"""
FAULTS = {
    "kept: depends on milestones": """
    def kept(self, config, step):
        return self.tokens - (config.milestones[-1] > 4)
""",
    r"flops: says 7 for \d+ tokens, torch counts [\d,]+; flops: says 7 in sampling, torch": """
    def flops(self, config, kept):
        return 7
""",
    "loss: differs when it is computed again": LOSS + "        return one * rand(()), other\n",
    r"loss: has terms of shape \(\), not one number an image": LOSS + "        return one.mean(), other.mean()\n",
    "loss: gives no gradient to more; add 0": MORE.replace("WHEN", "True"),
    "network: has other names of parameters": MORE.replace("WHEN", "not config"),
}


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """An empty project; each test imports anew."""
    plugins.found.cache_clear()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    plugins.found.cache_clear()


def params_of(folder, text, name="Mine"):
    """The toy study with a class of this text for its DiT."""
    (folder / "mine.py").write_text(text)
    entry = {**TREE["pretrain"]["demo-dit"], "method": f"mine.py:{name}"}
    return validate({**TREE, "pretrain": {**TREE["pretrain"], "demo-dit": entry}})


@pytest.mark.parametrize("line", FAULTS)
def test_a_part_that_is_not_what_it_says_is_named(line, project):
    with pytest.raises(UserError) as refused:
        trial(params_of(project, HEAD + FAULTS[line]), "demo-dit")
    assert re.match(rf"pretrain\.demo-dit: {line}", str(refused.value))
    assert "\n" not in str(refused.value)


def test_a_method_without_a_fault_is_described(project, capsys):
    trial(params_of(project, EXAMPLE, "Mixture"), "demo-dit")
    told = r"MoD: [\d.]+ million weights that learn; (\d+) of \1 tokens; [\d.]+ GFLOP for a forward .*\n"
    assert re.fullmatch(told, capsys.readouterr().out)


def test_the_methods_of_params_yaml_are_tried_by_the_command(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for key, told in (("demo-dit", "64 of 64 tokens"), ("demo-maskdit", "32 of 64 tokens")):
        assert main(["check", key]) == 0
        assert told in capsys.readouterr().out
    assert main(["check", "demo-dti"]) == 2
    assert "pretrain.demo-dti: no such entry; did you mean 'demo-dit'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "faulty", "told"),
    [
        (LOSS + "        return one + batch, other", "one + batch", "in loss: NameError: name 'batch' is not defined"),
        (MORE.replace("WHEN", "net.moer"), "net.moer", "in network: AttributeError: "),
        ("\n    def misfits(self, config):\n        yield 1 / 0", "1 / 0", "in misfits: ZeroDivisionError: division by zero"),
    ],
)
def test_an_error_in_a_class_of_ones_own_is_one_line_with_its_place(project, capsys, text, faulty, told):
    (project / "mine.py").write_text(HEAD + text)
    entry = {**TREE["pretrain"]["demo-dit"], "method": "mine.py:Mine"}
    (project / "params.yaml").write_text(json.dumps({**TREE, "pretrain": {**TREE["pretrain"], "demo-dit": entry}}))
    assert main(["check", "demo-dit"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    [number] = [number for number, line in enumerate((HEAD + text).splitlines(), 1) if faulty in line]
    assert line.startswith(f"maskdit: mine.py:{number}: {told}")
    assert line.endswith("; correct that, then run the command again")


def test_weights_that_do_not_learn_are_not_counted(project, capsys):
    frozen = MORE.replace("WHEN", "True").replace("zeros(1)", "zeros(10**7), requires_grad=False")
    trial(params_of(project, HEAD + frozen), "demo-dit")
    assert float(capsys.readouterr().out.split()[1]) < 10
