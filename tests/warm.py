"""Commands by fork, so that a test of a whole engine does not wait for imports.

`folder()` holds `maskdit`, `snakemake` and `dvc` for the head of PATH. Each hands its words, folder, environment and streams to a
process that has imported what it imports, which forks a child that runs them as the installed command does. It ends as that child
ends. With HASHED in the environment the steps are those of `hashes.py`. After `maskdit -c` comes a program of Python, as for the
interpreter.
"""

import atexit
import gc
import importlib
import json
import os
import random
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from maskdit.artifacts.step import STEPS

OTHERS = ("diffusers.models.autoencoders.autoencoder_kl", "matplotlib.backends.backend_svg", "matplotlib.pyplot", "pandas")
OTHERS += ("sklearn.linear_model", "torch._dynamo", "torchvision")
STEPS_IMPORT = (*OTHERS, *(f"maskdit.{module}" for module in STEPS.values()), "hashes")
ENGINES_IMPORT = ("dvc.cli.parser", "dvc.dvcfile", "dvc.repo.reproduce", "dvc_http", "scmrepo.git")
ENGINES_IMPORT += ("docutils.core", "snakemake.cli", "snakemake.report.html_reporter", "smart_open", "yte")
ENGINES_IMPORT += ("maskdit.artifacts.freshness", "maskdit.artifacts.stamps")
SERVERS = {("maskdit",): STEPS_IMPORT, ("snakemake", "dvc"): ENGINES_IMPORT}  # commands, and what their process imports
SHIM = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
os.umask(mask := os.umask(0))
request = json.dumps([[{name!r}, *sys.argv[1:]], os.getcwd(), dict(os.environ), mask]).encode()
socket.send_fds(server, [len(request).to_bytes(4)], [0, 1, 2])
server.sendall(request)
child = int.from_bytes(server.recv(4))
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: os.kill(child, number))
code = os.waitstatus_to_exitcode(int.from_bytes(server.recv(4)))
sys.exit(code if code >= 0 else 128 - code)
"""


@cache
def folder() -> str:
    """The folder of the commands, whose processes end with this one."""
    home = Path(tempfile.mkdtemp(prefix="warm-"))
    atexit.register(shutil.rmtree, home)
    for names, modules in SERVERS.items():
        address = str(home / f"{names[0]}.socket")
        server = socket.socket(socket.AF_UNIX)
        server.bind(address)
        server.listen()
        process = subprocess.Popen(
            [sys.executable, __file__, str(server.fileno()), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[server.fileno()],
            start_new_session=True,
        )
        server.close()
        atexit.register(process.communicate)  # closes its input: then it ends
        for name in names:
            command = home / name
            command.write_text(SHIM.format(python=sys.executable, address=address, name=name))
            command.chmod(stat.S_IRWXU)
    return str(home)


def program(text: str, *words: str) -> list[str]:
    """The command that runs a program of Python with these arguments."""
    return [f"{folder()}/maskdit", "-c", text, *words]


def watch(client: socket.socket, child: int) -> None:
    """Wait for a child, which ends with the command that asked for it; then this process ends, too."""
    client.sendall(child.to_bytes(4))
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, client], [], [])[0]:
        os.kill(child, 9)
    status = os.waitpid(child, 0)[1]
    try:
        client.sendall(status.to_bytes(4))
    finally:
        os._exit(0)


def serve(server: socket.socket) -> list[str]:
    """The words of a command. Returns in a child for each, which has the command's folder, environment and streams."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that have ended
    while True:
        while server not in (ready := select.select([server, 0], [], [])[0]):
            if 0 in ready:
                os._exit(0)
        client = server.accept()[0]
        if not os.fork():
            break
        client.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell turns off for what it starts in the background
    server.close()
    length, streams, *_ = socket.recv_fds(client, 4, 3)
    request = b""
    while len(request) < int.from_bytes(length):
        request += client.recv(2**16)
    words, where, environment, mask = json.loads(request)
    if child := os.fork():
        watch(client, child)
    client.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout = os.fdopen(1, "w", closefd=False)  # of a kind that may differ from before: a pipe has no position
    os.chdir(where)
    os.umask(mask)
    os.environ.clear()
    os.environ.update(environment)
    return words


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.freeze()  # or a child that looks for garbage would copy it all
    command, *asked = serve(socket.socket(fileno=int(sys.argv[1])))
    random.seed()
    if asked[:1] == ["-c"]:
        sys.argv = ["-c", *asked[2:]]
        importlib.import_module("maskdit.runtime.process_group").PARENT = os.getppid()
        exec(compile(asked[1], "-c", "exec"), {"__name__": "__main__"})
        sys.exit()
    sys.argv = [command, *asked]
    if command == "maskdit" and "HASHED" in os.environ:  # steps that only hash
        sys.exit(importlib.import_module("hashes").command(*asked))
    sys.exit(importlib.import_module(f"{command}.cli").main())
