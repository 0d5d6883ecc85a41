"""The command line: made from the steps' signatures, quick, and one line for each mistake."""

import os
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from maskdit.artifacts.step import STEPS
from maskdit.cli import main, signature

ROOT = Path(__file__).parents[1]


@pytest.fixture
def root(monkeypatch, tmp_path):
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)


def refusal(capsys, *words: str) -> str:
    """The one line that a refused command says."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1, err
    return err


def test_a_step_s_paths_are_its_options():
    assert signature("encode")[0] == ["images", "vae", "out"]
    assert signature("finetune")[0] == ["latents", "pretrained", "out"]
    assert all(signature(verb)[0][-1] == "out" for verb in STEPS)


def test_help_is_quick_and_waits_for_no_library():
    began = time.monotonic()
    program = "from maskdit.cli import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert time.monotonic() - began < 2  # 0.3 s on an idle machine
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "maskdit" in imported
    assert not imported & {"torch", "numpy", "pydantic", "ruamel"}
    for verb in [*STEPS, "handoff", "show"]:
        assert verb in done.stdout


@pytest.mark.parametrize("verb", list(STEPS))
def test_each_verb_has_a_help_text(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert "--out" in capsys.readouterr().out


def test_the_help_tells_each_variable_that_is_read(capsys):
    for verb in ("pretrain", "claims"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
    told = capsys.readouterr().out
    read = {name for path in (ROOT / "src" / "maskdit").rglob("*.py") for name in re.findall(r"MASKDIT_\w+", path.read_text())}
    assert len(read) > 6
    assert not {name for name in read if name not in told} - {
        "MASKDIT_FIRST",
        "MASKDIT_STOPPED",
        "MASKDIT_RECORDED",
        "MASKDIT_BARS",
    }  # set for the processes of a step


@pytest.mark.parametrize("words", [["smaple"], ["sample"], ["sample", "demo", "--what", "x"], []])
def test_a_wrong_command_line_is_one_line_and_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "said"), [("smaple", "did you mean 'sample'?"), ("stats", "did you mean 'status'?"), ("zzz", "known: bench, ")]
)
def test_a_misspelt_command_names_the_nearest(word, said, capsys):
    with pytest.raises(SystemExit):
        main([word, "demo"])
    assert capsys.readouterr().err.startswith(f"maskdit: no command '{word}'; {said}")


ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def test_a_locale_without_the_letters_of_a_file_stops_no_command(root, tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8").replace("title: ", "title: Größe ", 1), encoding="utf-8")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table_demo.md").write_text("Größe 3 ± 1\n", encoding="utf-8")
    program = "import sys, maskdit.cli; maskdit.cli.signature('fetch'); sys.exit(maskdit.cli.main())"
    for words in (["check"], ["show"], ["fetch", "--help"], ["curves", "demo", "--metrics", "no", "--out", "x.csv"]):
        done = subprocess.run([sys.executable, "-c", program, *words], env={**os.environ, **ASCII}, capture_output=True)
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.returncode == (2 if words[0] == "curves" else 0)
        if words == ["show"]:
            assert done.stdout.startswith(b"Gr??e 3 ? 1\n")
    name = "import sys; sys.argv = ['maskdit', 'study', 'x', 'Gr\\xf6\\xdfe']; import maskdit.cli; sys.exit(maskdit.cli.main())"
    done = subprocess.run([sys.executable, "-c", name], env={**os.environ, **ASCII}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("size", ["64x48", "64,48", "0", "-1", "small"])
def test_a_side_that_is_no_number_of_pixels_is_refused_as_images_are_square(size, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["study", "mine", "folder", f"--resolution={size}"])
    assert stop.value.code == 2
    line = f"argument --resolution: '{size}' is not a number of pixels; images are square, so give that of one side"
    assert line in capsys.readouterr().err


def test_an_unknown_key_names_the_nearest(root, capsys, tmp_path):
    line = refusal(capsys, "pretrain", "demo-masdit", "--latents", "x", "--out", str(tmp_path / "out"))
    assert "pretrain has no entry 'demo-masdit'; did you mean 'demo-maskdit'?" in line


def test_a_missing_input_is_named(root, capsys, tmp_path):
    line = refusal(capsys, "pretrain", "demo-dit", "--latents", str(tmp_path / "no"), "--out", str(tmp_path / "out"))
    assert str(tmp_path / "no") in line
    assert not (tmp_path / "out").exists()


def test_without_params_yaml_the_line_says_where_to_stand(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "run maskdit in the directory that contains params.yaml" in refusal(capsys, "fetch", "demo", "--out", "out")


def test_an_output_that_cannot_be_written_is_named(root, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in refusal(capsys, "fetch", "demo", "--out", str(tmp_path / "file" / "out"))


@pytest.mark.parametrize(
    "words",
    [
        ("npz", "--step", "3"),
        ("npz", "--weights", "net"),
        ("npz", "--vae", "vae"),
        ("upstream", "--vae", "vae"),
        ("upstream", "--metrics", "results"),
        ("diffusers", "--metrics", "results", "--weights", "net"),
    ],
)
def test_an_export_ignores_no_option(words, capsys):
    line = refusal(capsys, "export", "run", "--out", "out", "--format", *words)
    assert f"export: {words[1]} has no effect with --" in line


def test_show_ends_with_the_report_and_hides_how_the_table_was_made(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table_demo.md").write_text("T\n\n| a |\n\n<!-- maskdit table/demo: commit x -->\n")
    assert main(["show", "demo"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no report yet: run snakemake results/report_demo.html"
    (tmp_path / "results" / "report_demo.html").write_text("")
    assert main(["show", "demo"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("T\n\n| a |\n")
    assert "<!--" not in said
    assert said.splitlines()[-1] == "open results/report_demo.html in a browser"


def test_show_without_a_table_says_what_to_run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "run snakemake results/table_demo.csv" in refusal(capsys, "show", "demo")


def test_a_shell_completes_verbs_and_options(capsys, tmp_path):
    assert main(["--print-completion", "bash"]) == 0
    (tmp_path / "completions").write_text(capsys.readouterr().out)
    program = f"source {tmp_path}/completions; COMP_WORDS=(maskdit sam); COMP_CWORD=1; _shtab_maskdit; echo $COMPREPLY\n"
    program += "COMP_WORDS=(maskdit sample --st); COMP_CWORD=2; COMP_WORDS=(maskdit plan --bud); _shtab_maskdit; echo $COMPREPLY"
    said = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["sample", "--budget"]


LATE = """
import os, signal, sys
from maskdit.cli import main
sys.argv = ["maskdit", "check"]
main()
class Late:
    kill, process, number = staticmethod(os.kill), os.getpid(), signal.SIGUSR1
    def __del__(self):  # while the interpreter is torn down
        self.kill(self.process, self.number)
sys.late = Late()
"""


def test_a_signal_of_a_time_limit_does_not_kill_a_command_that_is_exiting():
    assert subprocess.run([sys.executable, "-c", LATE], cwd=ROOT).returncode == 0


def test_the_version_is_that_of_the_installed_package(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert not stop.value.code
    assert capsys.readouterr().out == f"maskdit {version('maskdit')}\n"
