"""Train in child processes that are killed at random moments, until so many kills; prints the hash of each finished run.

Run by tests/test_train.py: python kills.py LATENTS FOLDER CONFIG.json KILLS. Children are forked, so that torch is imported once.
"""

import hashlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from maskdit import train
from maskdit.config import Pretrain

train.LOG_STEPS = 2
train.Recovery.due = lambda self: True


def hashed(run: Path) -> str:
    tensors = [tensor for file in sorted(run.glob("*.safetensors")) for _, tensor in sorted(load_file(file).items())]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def finished(latents: Path, out: Path, config: Pretrain, seconds: float) -> bool:
    """Whether a child that is killed after so many seconds was done before."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        train.pretrain(config, latents=latents, out=out)
        os._exit(0)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"the training failed with {status}"
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


if __name__ == "__main__":
    latents, folder, wanted = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[4])
    config = Pretrain.model_validate_json(Path(sys.argv[3]).read_text())
    source, kills = random.Random(0), 0
    while True:
        scratch = folder / f"scratch-{kills}"
        os.environ["MASKDIT_SCRATCH"] = str(scratch)
        while not finished(latents, folder / "out", config, source.uniform(0.02, 0.35) if kills < wanted else 600):
            kills += 1
        print(hashed(folder / "out"), flush=True)
        if kills >= wanted:
            break
    print(f"{kills} kills", file=sys.stderr)
