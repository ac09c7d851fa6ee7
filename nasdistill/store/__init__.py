"""The run directory and saved students."""

from nasdistill.store.rundir import RunDirectory
from nasdistill.store.students import (
    StudentRecord,
    load_weights,
    read_io,
    read_record,
    read_student,
    save_student,
    save_weights,
    weights_hash,
)

__all__ = [
    "RunDirectory", "StudentRecord", "load_weights", "read_io", "read_record", "read_student", "save_student",
    "save_weights", "weights_hash",
]  # fmt: skip
