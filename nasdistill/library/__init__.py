"""Runs and students for those who use them: load, build, export, train longer.

>>> import nasdistill
>>> student = nasdistill.load("runs/x").best(max_latency_ms=1.5)  # doctest: +SKIP
>>> logits = student.model()(images)  # doctest: +SKIP
"""

from nasdistill.library.building import build
from nasdistill.library.loading import find_student, load, load_run, load_student
from nasdistill.library.runs import Run
from nasdistill.library.students import Student

__all__ = ["Run", "Student", "build", "find_student", "load", "load_run", "load_student"]
