"""The command line `maskdit VERB KEY --input PATH … --out PATH`, built from the signatures of the steps.

Signatures are read from the source instead of imported, so that help and usage errors do not wait for torch.
"""

import argparse
import ast
import atexit
import gc
import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from maskdit.artifacts.step import SHARDED, STEPS, code_of, step
from maskdit.config.paths import OUTPUTS
from maskdit.tools.draw_options import add_draw, whole
from maskdit.tools.score_options import add_score
from maskdit.tools.study_options import add_classes, add_study
from maskdit.weights.options import add_weights, demand_used

ENVIRONMENT = """environment variables:
  MASKDIT_SCRATCH=FOLDER       where states of trainings and other unfinished work are kept (default .scratch); shards of latents,
                               samples and features lie beside their artifact
  MASKDIT_DEVICE=cpu           compute on the CPU, whatever GPUs there are
  MASKDIT_RANKS=N              processes on this machine (default: one per GPU)
  MASKDIT_THREADS=N            CPU threads per process (default: as many as Snakemake grants, else half of the cores)
  MASKDIT_DETERMINISTIC=1      bit-identical results on a GPU, too, at lower speed
  MASKDIT_MMAP=0               read large files in place of mapping them, where the file system's maps are slow or fail
  MASKDIT_FORCE=1              make an artifact again although it is current
  MASKDIT_SHARED=1             accept weights and scratch folders that other users can write to"""
OF_CLAIMS = """
  MASKDIT_AGAINST=FILE         an older ledger; exit with code 2 if a claim has a worse verdict than in it"""
OF_TRAINING = """
  MASKDIT_STATE_SECONDS=S      minimum time between two saved states (default 60; more on a slow disk)
  MASKDIT_WATCHDOG_SECONDS=S   maximum time of a step, after which the stacks are printed and the job fails (default 1800; 0: no
                               limit; a single process is watched only if this is set)
  MASKDIT_CONTAINER=IMAGE      a container image in which srun starts the training's tasks in a Slurm job
  MASKDIT_LOG=NAME,NAME        also write the log by tensorboard (to runs/), wandb (by its own variables) or dvclive (to dvclive/)
  MASKDIT_TENSORBOARD=FOLDER   the folder of tensorboard, in place of runs/; alone, it means MASKDIT_LOG=tensorboard, too"""

SHELLS = ("bash", "zsh", "tcsh")
OF_PARAMS = ("plan", "status", "watch", "clean", "verify", "crate")  # tools that are given what params.yaml says
TOOLS = {
    verb: (f"tools.{verb}", verb) for verb in ("study", "init", "doctor", "draw", "score", *OF_PARAMS)
}  # verb -> module and function
TOOLS |= {"handoff": ("artifacts.engine_handoff", "handoff"), "import": ("weights.importing", "bring")}
OTHERS = (*TOOLS, "export", "check", "show")  # not steps


class Parser(argparse.ArgumentParser):
    """A parser whose error messages are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"maskdit: {message}; see {self.prog} --help\n")


class Version(argparse.Action):
    """An option that prints the version."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print it and exit."""
        import maskdit

        print(f"maskdit {maskdit.__version__}")
        sys.exit()


def part(text: str) -> tuple[int, int]:
    """Parse K/N: the K-th of N parts, counted from 1."""
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
        raise argparse.ArgumentTypeError(f"'{text}' is not K/N with 1 <= K <= N")
    return int(first), int(second)


def against() -> Path | None:
    """The ledger of MASKDIT_AGAINST, than which no verdict may be worse; None if the variable is unset or empty."""
    return Path(path) if (path := os.environ.get("MASKDIT_AGAINST")) else None


def signature(verb: str) -> tuple[list[str], str]:
    """The names of the paths that a step requires, and its docstring, from the source."""
    source = (Path(__file__).parent / f"{STEPS[verb].replace('.', '/')}.py").read_text(encoding="utf-8")
    function = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == verb)
    paths = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return [argument.arg for argument, default in paths if default is None], ast.get_docstring(function) or ""


def parser(first: str = "") -> Parser:
    """The whole command line. Given its first word, read no other step's signature, which takes time."""
    top = Parser("maskdit", description="Masked diffusion transformers, from images to tables: one verb per step.")
    text = f"print the completions for {', '.join(SHELLS)}: maskdit --print-completion bash > FILE"
    top.add_argument("--print-completion", choices=SHELLS, metavar="SHELL", default=argparse.SUPPRESS, help=text)
    top.add_argument("--version", action=Version, nargs=0, default=argparse.SUPPRESS, help="print the version")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)
    for verb in [first] if first in STEPS else [] if first in OTHERS else STEPS:
        paths, text = signature(verb)
        line = text.splitlines()[0]
        entry = verbs.add_parser(verb, help=line, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        entry.epilog = ENVIRONMENT + OF_TRAINING * (STEPS[verb] == "training.train") + OF_CLAIMS * (verb == "claims")
        entry.add_argument("key", metavar="KEY", help=f"an entry of {verb}: in params.yaml")
        for path in paths:
            usual = OUTPUTS[verb].format(key="KEY", bench="STUDY") if path == "out" else "where the step before it publishes"
            entry.add_argument(f"--{path}", type=Path, metavar="PATH", default=argparse.SUPPRESS, help=f"default: {usual}")
        if verb == "claims":
            text = "exit with code 2 if a verdict is worse than in this ledger (default: $MASKDIT_AGAINST)"
            entry.add_argument("--against", type=Path, metavar="FILE", default=against(), help=text)
        if verb in SHARDED:
            entry.add_argument("--part", type=part, metavar="K/N", help="make only part K of N of the shards; publish nothing")
    handoff = verbs.add_parser("handoff", help="Let Snakemake or DVC take over the artifacts that the other one has made.")
    handoff.add_argument("--to", choices=("dvc", "snakemake"), required=True)
    handoff.add_argument("bench", metavar="STUDY", nargs="?", default="demo", help="an entry of table: (default: demo)")
    add_weights(verbs)
    add_study(verbs)
    plan = verbs.add_parser("plan", help="Print what a study costs: jobs, device-hours, wall time, disk.")
    plan.add_argument("bench", metavar="STUDY", help="an entry of table:")
    plan.add_argument("--device", metavar="NAME", help="a100, h100, h200, l40s or cpu (default: the one last used, else a100)")
    plan.add_argument("--devices", type=int, metavar="N", help="devices per training (default: 8 GPUs or 1 CPU)")
    plan.add_argument("--mfu", type=float, default=0.4, metavar="FRACTION", help="achieved fraction of the peak (default 0.4)")
    plan.add_argument("--limit", type=float, default=24.0, metavar="HOURS", help="time limit of a job (default 24; 0: none)")
    plan.add_argument("--budget", type=float, metavar="HOURS", help="list the evaluations that this many device-hours pay for")
    status = verbs.add_parser("status", help="Print which artifacts of a study are current, stale, missing, running or failed.")
    status.add_argument("bench", metavar="STUDY", nargs="?", help="an entry of table: (default: one line per study)")
    status.add_argument("--json", action="store_true", dest="as_json", help="print every node as JSON")
    status.add_argument("--all", action="store_true", dest="whole", help="also list the nodes that are current")
    watch = verbs.add_parser("watch", help="Show a training while it runs, and exit with its code; without a key, list what runs.")
    watch.add_argument("key", metavar="KEY", nargs="?", help="an entry of pretrain: or finetune:")
    clean = verbs.add_parser("clean", help="List what can be deleted and what it costs to get it back; delete it with --yes.")
    clean.add_argument("kinds", metavar="KIND", nargs="*", help="scratch, samples, stale, unnamed or states (default: list all)")
    clean.add_argument("--yes", action="store_true", help="delete the named kinds")
    verify = verbs.add_parser("verify", help="Check the hash of each file of a study, or of those behind one row of its table.")
    verify.add_argument("name", metavar="STUDY|EVALUATION", help="an entry of table:, or of sample: for one row")
    crate = verbs.add_parser(
        "crate", help="Write a study's workflow, results and provenance as an RO-Crate, without its artifacts."
    )
    crate.add_argument("bench", metavar="STUDY", help="an entry of table:")
    crate.add_argument("--out", type=Path, metavar="FOLDER", help="default: crate_STUDY")
    doctor = verbs.add_parser("doctor", help="Check a folder, a file or this machine, and say how to fix what is wrong.")
    doctor.add_argument("path", type=Path, nargs="?", metavar="PATH", help="images, latents, weights, a run, a reference batch")
    add_classes(doctor)
    text = "the contact sheet of images, a PNG (default: results/sheet_NAME.png where there is a params.yaml, else none)"
    doctor.add_argument("--sheet", type=Path, metavar="FILE", help=text)
    text = "side of its images (default: that of the study of this folder, else 32)"
    doctor.add_argument("--resolution", type=whole(1, 4096), metavar="PIXELS", help=text)
    add_draw(verbs)
    add_score(verbs)
    check = verbs.add_parser("check", help="Check params.yaml, as DVC does before each step; or try the method of a training.")
    check.add_argument("key", metavar="KEY", nargs="?", help="an entry of pretrain:, whose method computes one step as a trial")
    show = verbs.add_parser("show", help="Print a study's table and the paths of its results.")
    show.add_argument("bench", metavar="STUDY", nargs="?", default="demo", help="an entry of table: (default: demo)")
    return top


def show(bench: str) -> None:
    """Print a benchmark's table, the paths of its results, and last the path of its report."""
    from maskdit.config.base import UserError

    results = Path("results")
    table, report = results / f"table_{bench}.md", results / f"report_{bench}.html"
    if not table.exists():
        raise UserError(f"{table}: no such file; run snakemake results/table_{bench}.csv")
    print("".join(line for line in table.read_text(encoding="utf-8").splitlines(keepends=True) if not line.startswith("<!--")))
    print(*sorted({*results.glob(f"*_{bench}*")} - {report}), sep="\n")
    print(f"\nopen {report} in a browser" if report.exists() else f"\nno report yet: run snakemake {report}")


def dispatch(arguments: dict[str, Any]) -> None:
    """Run a parsed command line. A tool that returns False has found something wrong: exit code 1."""
    match verb := arguments.pop("verb"):
        case "export":
            demand_used(arguments)
            if arguments["format"] == "npz":
                from maskdit.weights.adm_npz import pack

                pack(arguments["run"], arguments["out"])
            else:
                from maskdit.tools.draw import located
                from maskdit.weights.export import export

                arguments["run"] = located(arguments["run"], arguments["step"])
                export(**{**arguments, "weights": arguments["weights"] or "ema"})
        case "show":
            show(**arguments)
        case "check":
            from maskdit.artifacts.engine_handoff import demand_inside
            from maskdit.artifacts.freshness import Freshness
            from maskdit.config.load import load

            for line in Freshness(params := load()).moved_sources():
                print(line)
            if arguments["key"]:
                from maskdit.tools.trial import trial

                trial(params, arguments["key"])
            if "DVC_STAGE" in os.environ:
                demand_inside()
        case verb if verb in TOOLS:
            if verb in OF_PARAMS:
                from maskdit.config.load import load

                arguments["params"] = load()
            module, name = TOOLS[verb]
            if getattr(import_module(f"maskdit.{module}"), name)(**arguments) is False:
                sys.exit(1)
        case _:
            key, share = arguments.pop("key"), arguments.pop("part", None)
            options = {"against": arguments.pop("against")} if verb == "claims" else {}
            step(verb, key, arguments, share, **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. An error that the user can fix is printed as one line."""
    words = sys.argv[1:] if argv is None else list(argv)
    if argv is None:  # the process belongs to this command
        gc.set_threshold(100_000, 20, 100)  # the million objects of the imports are never garbage,
        atexit.register(gc.freeze)  # and scanning them again at exit would take seconds
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # the locale may lack a letter
        if words and words[0] in OTHERS:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # its output may go to head
    if words[:1] == ["--print-completion"] and words[1:] in ([shell] for shell in SHELLS):
        import shtab

        print(shtab.complete(parser(), words[1]))
        return 0
    if words and words[0] not in (known := (*STEPS, *OTHERS)) and not words[0].startswith("-"):
        from maskdit.config.errors import nearest

        parser("check").error(f"no command '{words[0]}'{nearest(words[0], known)}")
    arguments = vars(parser(words[0] if words else "").parse_args(words))
    os.umask(os.umask(0o022) | 0o002)  # files written here are not world-writable
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # removes half-written files on exit
    from maskdit.config.base import UserError
    from maskdit.config.errors import fault
    from maskdit.runtime import progress
    from maskdit.runtime.logs import end_log
    from maskdit.runtime.process_group import Stopped, wish
    from maskdit.runtime.progress import say
    from maskdit.runtime.slurm import stopped

    signal.signal(signal.SIGUSR1, wish)  # it may come before the training handles it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    goes_on = arguments["verb"] in (*STEPS, "score")
    try:
        dispatch(arguments)
    except Stopped as stop:
        say(str(stop))
        return stopped()
    except (Exception, KeyboardInterrupt) as error:
        line = str(error)
        if isinstance(error, OSError):
            line = (f"{error.filename}: " if error.filename else "") + fault(error)
        elif isinstance(error, UnicodeEncodeError):
            line = f"{ascii(error.object)[:120]}: has letters that {error.encoding} lacks; set LC_ALL=C.UTF-8"
        elif isinstance(error, KeyboardInterrupt):
            line = f"interrupted; run the command again{' to continue' * goes_on}"
        elif not isinstance(error, UserError):
            from maskdit.methods.plugins import fault_of

            if not (fault_there := fault_of(error)):
                raise
            line = str(fault_there)
        print(f"maskdit: {line}", file=sys.stderr)
        return code_of(error)
    finally:
        if argv is None:  # the log also takes a traceback
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # Python gives up its handlers on exit, and the default one kills
        else:
            end_log()
            progress.KEY = ""
    return 0


if __name__ == "__main__":
    sys.exit(main())
