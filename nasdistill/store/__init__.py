"""The run directory and saved students."""

from nasdistill.store.rundir import RunDirectory
from nasdistill.store.students import load_weights, read_student, save_student, save_weights, weights_hash

__all__ = ["RunDirectory", "load_weights", "read_student", "save_student", "save_weights", "weights_hash"]
