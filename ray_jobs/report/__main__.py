"""python -m ray_jobs.report: the step alone."""

from ray_jobs.job import main

main("report")
