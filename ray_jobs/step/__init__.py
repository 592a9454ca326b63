"""Step: what identifies it, when it is done, how it resumes.

A step is a function with a name, a config, inputs and the part of the policy it reads. Its *identity* is a hash of
these, of its exact input versions and of the weights bound to its roles; it is done when a version of its main table
carries that identity. Work is cut into *units*; a finished unit is a set of written fragments plus one record,
written last and atomically, and is found by its own identity whichever run made it. So a crash costs the units in
flight, and an edit of one leaf of the policy costs the units that hold that leaf's rows.

A unit is one task of a Ray Data pipeline: the task reads its rows, asks the engines (named actors that gather the
requests of all units in flight into full batches), and writes. The unit, not the block, is therefore what Ray retries.
"""

from ray_jobs.step.definition import Cut, Failed, Output, Rows, Step, StepFailed, Work
from ray_jobs.step.run import Run, run_step, run_steps

__all__ = ["Cut", "Failed", "Output", "Rows", "Run", "Step", "StepFailed", "Work", "run_step", "run_steps"]
