"""A short door to the room of runs: ``dmcmc_core.sampling_run.run`` makes n images on disk."""

from dmcmc_core.runs.make import run as run
