"""The machine: device, precision, threads, progress, processes, Slurm, random numbers. Imports config only."""
