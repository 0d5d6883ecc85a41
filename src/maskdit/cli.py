"""The command line: `maskdit VERB KEY --input PATH … --out PATH`, made from the signatures of the steps.

Signatures are read from the source, not imported, so that no help text and no refusal waits for torch.
"""

import argparse
import ast
import atexit
import gc
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from maskdit.artifacts.step import SHARDED, STEPS, code_of, step
from maskdit.config.paths import OUTPUTS

ENVIRONMENT = """set in the environment:
  MASKDIT_SCRATCH=FOLDER       where states and shards are kept until they are published (default .scratch)
  MASKDIT_RANKS=N              processes on this machine (default: one a GPU)
  MASKDIT_THREADS=N            threads of a process on a CPU (default: as Snakemake grants, else half of the cores)
  MASKDIT_DETERMINISTIC=1      the same bits each time on a GPU, too, in less speed
  MASKDIT_FORCE=1              make an artifact again that is current
  MASKDIT_SHARED=1             take weights and scratch folders that others may write, too"""
OF_CLAIMS = """
  MASKDIT_AGAINST=FILE         an older ledger: end with exit code 2 if a claim has a worse verdict than there"""
OF_TRAINING = """
  MASKDIT_STATE_SECONDS=S      the least pause between two states (default 60; more on a slow disk)
  MASKDIT_WATCHDOG_SECONDS=S   how long a step may take until the stacks are shown and the job fails (default 1800; 0: for ever;
                               one process alone is watched only if this is set)
  MASKDIT_TENSORBOARD=FOLDER   write the log as TensorBoard's events, too"""

SHELLS = ("bash", "zsh", "tcsh")
FORMATS = ("upstream", "dit", "diffusers")
OTHERS = (
    "handoff",
    "import",
    "export",
    "study",
    "plan",
    "status",
    "clean",
    "verify",
    "doctor",
    "check",
    "show",
)  # verbs that are no steps


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"maskdit: {message}; see {self.prog} --help\n")


def part(text: str) -> tuple[int, int]:
    """K/N as numbers: the K-th of N parts, counted from 1."""
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
        raise argparse.ArgumentTypeError(f"'{text}' is not K/N with 1 <= K <= N")
    return int(first), int(second)


def against() -> Path | None:
    """The ledger that no verdict may be worse than, of the environment."""
    return Path(path) if (path := os.environ.get("MASKDIT_AGAINST")) else None


def signature(verb: str) -> tuple[list[str], str]:
    """Names of the paths that a step needs, and its docstring, from the source."""
    source = (Path(__file__).parent / f"{STEPS[verb].replace('.', '/')}.py").read_text()
    step = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == verb)
    paths = zip(step.args.kwonlyargs, step.args.kw_defaults, strict=True)
    return [argument.arg for argument, default in paths if default is None], ast.get_docstring(step) or ""


def parser(first: str = "") -> Parser:
    """The command line, whose first word may be known: then it reads the signature of no other step, which takes time."""
    top = Parser("maskdit", description="Masked diffusion transformers, from images to tables: one verb a step.")
    told = f"print the completions of {', '.join(SHELLS)}: maskdit --print-completion bash > FILE"
    top.add_argument("--print-completion", choices=SHELLS, metavar="SHELL", default=argparse.SUPPRESS, help=told)
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
            text = "end with code 2 if a verdict is worse than in this ledger (default: $MASKDIT_AGAINST)"
            entry.add_argument("--against", type=Path, metavar="FILE", default=against(), help=text)
        if verb in SHARDED:
            entry.add_argument(
                "--part", type=part, metavar="K/N", help="make the K-th of N shares of the shards, and publish nothing"
            )
    handoff = verbs.add_parser("handoff", help="Let the other engine take over what one engine has made.")
    handoff.add_argument("--to", choices=("dvc", "snakemake"), required=True)
    handoff.add_argument("bench", metavar="BENCH", nargs="?", default="demo", help="a benchmark, an entry of table:")
    interchange(verbs)
    study = verbs.add_parser("study", help="Add a study of a folder of images to params.yaml.")
    study.add_argument("name", metavar="NAME", help="what its keys begin with")
    study.add_argument("root", type=Path, metavar="ROOT", help="a folder CLASS/image, or tar or zip files of that form")
    study.add_argument("--resolution", type=int, default=32, metavar="PIXELS", help="side of the images (default 32)")
    study.add_argument("--heldout", type=float, default=0.1, metavar="SHARE", help="share of the images set aside (default 0.1)")
    plan = verbs.add_parser("plan", help="Print what a study costs: jobs, device-hours, wall time, disk.")
    plan.add_argument("bench", metavar="STUDY", help="a benchmark, an entry of table:")
    plan.add_argument("--device", default="a100", metavar="NAME", help="a100 (default), h100, h200, v100, l40s or cpu")
    plan.add_argument("--devices", type=int, default=8, metavar="N", help="devices of a training (default 8)")
    plan.add_argument("--mfu", type=float, default=0.4, metavar="SHARE", help="share of the peak that is reached (default 0.4)")
    plan.add_argument(
        "--limit", type=float, default=24.0, metavar="HOURS", help="how long a job may last (default 24; 0: for ever)"
    )
    plan.add_argument("--budget", type=float, metavar="HOURS", help="which evaluations so many device-hours pay for")
    status = verbs.add_parser("status", help="Say what of a study is made, stale, missing, running or failed.")
    status.add_argument("bench", metavar="STUDY", nargs="?", help="an entry of table:; all studies in a line each if not given")
    status.add_argument("--json", action="store_true", dest="as_json", help="as JSON: each node with its state and device-hours")
    status.add_argument("--all", action="store_true", dest="whole", help="list nodes that are current, too")
    clean = verbs.add_parser("clean", help="List what may be deleted, and what it costs to get it back; delete it with --yes.")
    clean.add_argument(
        "kinds", metavar="KIND", nargs="*", help="scratch, stale, samples or states; all are listed if none is given"
    )
    clean.add_argument("--yes", action="store_true", help="delete the kinds that are named")
    verify = verbs.add_parser("verify", help="Hash every file of a study, or of all behind one cell, and name what has changed.")
    verify.add_argument("name", metavar="STUDY|EVALUATION", help="an entry of table:, or of sample: for all behind its row")
    doctor = verbs.add_parser("doctor", help="Say what is wrong with a folder or file, or with this machine, and how to mend it.")
    doctor.add_argument("path", type=Path, nargs="?", metavar="PATH", help="images, latents, weights, a run, a reference batch")
    verbs.add_parser("check", help="Say whether params.yaml is valid: what DVC asks before each step.")
    show = verbs.add_parser("show", help="Print a benchmark's table and where its results lie.")
    show.add_argument("bench", metavar="BENCH", nargs="?", default="demo")
    return top


def interchange(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """The verbs that cross the project's border: weights of others in, ours out."""
    text = "Turn weights that others have published into a run. Optimiser states are ignored; nothing in the file is executed."
    entry = verbs.add_parser("import", help="Turn weights that others have published into a run.", description=text)
    entry.add_argument("file", type=Path, metavar="FILE", help="a torch file, or diffusers' folder of a DiT")
    entry.add_argument(
        "--vae", type=Path, required=True, metavar="FOLDER", help="the autoencoder of its latents, in diffusers' layout"
    )
    entry.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    entry.add_argument("--format", choices=FORMATS, help="upstream: MaskDiT's; dit: DiT's; guessed from the contents if not given")
    entry.add_argument("--step", type=int, metavar="N", help="training steps behind it, if the file does not tell")
    entry.add_argument(
        "--heads", type=int, nargs="+", default=[], metavar="N", help="of encoder and decoder, if not the usual ones"
    )
    text = "Write a checkpoint as MaskDiT's torch file or a folder for diffusers, or samples for ADM's evaluator."
    entry = verbs.add_parser("export", help="Write a checkpoint or samples as others read them.", description=text)
    entry.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="a run, from artifacts/runs or imported; for npz, samples",
    )
    entry.add_argument("--format", choices=("upstream", "diffusers", "npz"), required=True)
    entry.add_argument("--out", type=Path, required=True, metavar="PATH", help="a new file (upstream) or folder (diffusers)")
    entry.add_argument("--step", type=int, metavar="N", help="a milestone; the last one if not given")
    entry.add_argument(
        "--weights", choices=("ema", "net", "both"), default="ema", help="averaged (default), raw, or both (upstream)"
    )
    entry.add_argument("--vae", type=Path, metavar="FOLDER", help="the autoencoder to copy (diffusers)")
    entry.add_argument("--metrics", type=Path, metavar="FOLDER", help="records for the card (diffusers; default results/metrics)")


def show(bench: str) -> None:
    """Print a benchmark's table, the paths of its results, and last that of its report."""
    from maskdit.config.base import UserError

    table = Path("results") / f"table_{bench}.md"
    if not table.exists():
        raise UserError(f"{table}: no such file; run snakemake results/table_{bench}.csv")
    print("".join(line for line in table.read_text().splitlines(keepends=True) if not line.startswith("<!--")))
    report = Path("results") / f"report_{bench}.html"
    for path in sorted(Path("results").glob(f"*_{bench}*")):
        if path != report:
            print(path)
    print(f"\nopen {report} in a browser" if report.exists() else f"\nno report yet: run snakemake {report}")


def dispatch(arguments: dict[str, Any]) -> None:
    """Run a parsed command line."""
    verb = arguments.pop("verb")
    if verb == "handoff":
        from maskdit.artifacts.engine_handoff import handoff

        handoff(**arguments)
    elif verb == "import":
        from maskdit.weights.importing import bring

        bring(**arguments)
    elif verb == "export":
        if arguments["format"] == "npz":
            from maskdit.weights.adm_npz import pack

            pack(arguments["run"], arguments["out"])
            return
        from maskdit.weights.export import export

        export(**arguments)
    elif verb == "show":
        show(**arguments)
    elif verb == "check":
        from maskdit.config.load import load

        load()
    elif verb == "study":
        from maskdit.tools.study import study

        study(**arguments)
    elif verb == "plan":
        from maskdit.config.load import load
        from maskdit.tools.plan import plan

        plan(load(), **arguments)
    elif verb in ("status", "clean"):
        from maskdit.config.load import load
        from maskdit.tools import clean, status

        (status.status if verb == "status" else clean.clean)(load(), **arguments)
    elif verb == "verify":
        from maskdit.config.load import load
        from maskdit.tools.verify import verify

        if not verify(load(), **arguments):
            sys.exit(1)
    elif verb == "doctor":
        from maskdit.tools.doctor import doctor

        if not doctor(**arguments):
            sys.exit(1)
    else:
        share, key = arguments.pop("part", None), arguments.pop("key")
        options = {name: arguments.pop(name) for name in ("against",) if name in arguments}
        step(verb, key, arguments, share, **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 after a one-line message for what the user can mend."""
    words = sys.argv[1:] if argv is None else list(argv)
    if argv is None:  # the process is this command's own
        gc.set_threshold(100_000, 20, 100)  # the imports' million objects stay,
        atexit.register(gc.freeze)  # and looking through them once more on the way out would take seconds
    if words[:1] == ["--print-completion"] and words[1:] in ([shell] for shell in SHELLS):
        import shtab

        print(shtab.complete(parser(), words[1]))
        return 0
    arguments = vars(parser(words[0] if words else "").parse_args(words))
    os.umask(os.umask(0o022) | 0o002)  # nothing that is written here may be written by everyone
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what is half written is removed on the way out
    from maskdit.config.base import UserError
    from maskdit.runtime.process_group import Stopped, wish
    from maskdit.runtime.progress import say
    from maskdit.runtime.slurm import stopped

    signal.signal(signal.SIGUSR1, wish)  # it may come before a training listens
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    try:
        dispatch(arguments)
    except Stopped as stop:
        say(str(stop))
        return stopped()
    except UserError as error:
        print(f"maskdit: {error}", file=sys.stderr)
        return code_of(error)
    except OSError as error:
        print(f"maskdit: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", file=sys.stderr)
        return code_of(error)
    except KeyboardInterrupt as error:
        print("maskdit: interrupted; run it again to go on", file=sys.stderr)
        return code_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
