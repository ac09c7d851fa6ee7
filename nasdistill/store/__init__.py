"""The run directory and saved students."""

from nasdistill.store.rundir import RunDirectory
from nasdistill.store.students import (
    ASSETS,
    StudentRecord,
    load_weights,
    read_io,
    read_record,
    read_student,
    read_transforms,
    save_student,
    save_weights,
    weights_hash,
)

__all__ = [
    "ASSETS", "RunDirectory", "StudentRecord", "load_weights", "read_io", "read_record", "read_student",
    "read_transforms", "save_student",
    "save_weights", "weights_hash",
]  # fmt: skip
