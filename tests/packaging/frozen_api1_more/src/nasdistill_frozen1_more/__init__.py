"""Components of the eight kinds that the other frozen package has not, written against plugin API 1, and it says so."""

from __future__ import annotations

from nasdistill import hookimpl
from nasdistill.spec.component import (
    DataReducerSpec, DiagnosticSpec, RecipeSpec, ReportSectionSpec, StrategySpec, TaskSpec, TeacherSpec, TeacherTags,
    TransformSpec,
)

NASDISTILL_API = 1
HERE = "nasdistill_frozen1_more"
SOURCE = ("original",)


@hookimpl
def nasdistill_tasks():
    return [TaskSpec("bars", f"{HERE}.task:Bars", "does the bar stand or lie?",
                     options=f"{HERE}.task:BarsOptions", references=SOURCE)]


@hookimpl
def nasdistill_teachers():
    return [TeacherSpec("edges", f"{HERE}.teacher:Edges", "looks for bars with two fixed filters",
                        options=f"{HERE}.teacher:EdgesOptions", references=SOURCE,
                        tags=TeacherTags(locator="length of the filters: long or short"))]


@hookimpl
def nasdistill_transforms():
    return [TransformSpec("rounded", f"{HERE}.transform:Rounded", "linear layers with rounded weights",
                          options=f"{HERE}.transform:RoundedOptions", references=SOURCE)]


@hookimpl
def nasdistill_recipes():
    return [RecipeSpec("halves", f"{HERE}.recipe:Halves", "the teacher first, the labels later",
                       options=f"{HERE}.recipe:HalvesOptions", references=SOURCE)]


@hookimpl
def nasdistill_data_reducers():
    return [DataReducerSpec("drawn", f"{HERE}.data_reducer:Drawn", "samples drawn without replacement",
                            references=SOURCE)]


@hookimpl
def nasdistill_diagnostics():
    return [DiagnosticSpec("agreement", f"{HERE}.diagnostic:Agreement", "how often the models answer the same",
                           references=SOURCE)]


@hookimpl
def nasdistill_strategies():
    return [StrategySpec("pairs", f"{HERE}.strategy:Pairs", "of two proposals the faster one is distilled",
                         options=f"{HERE}.strategy:PairsOptions", references=SOURCE)]


@hookimpl
def nasdistill_report_sections():
    return [ReportSectionSpec("names", f"{HERE}.report_section:Names", "the students by name", references=SOURCE)]
