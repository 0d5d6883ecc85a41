"""Before NumPy is imported: one thread, as in the commands; several are slower beside other work."""

import os

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
