"""The public interfaces: one class per plugin kind, and the data that passes between them."""

from nasdistill.interfaces.attention import (
    AttentionContext,
    AttentionCore,
    AttentionGeometry,
    AttentionMask,
    AttentionResult,
    AttentionView,
    ModelAttention,
    ModuleAttention,
    RotaryEmbedding,
    TokenLayout,
    WeightSource,
    refuse_undeclared,
    static_shape,
)
from nasdistill.interfaces.base import Component, ComponentFactory, Example
from nasdistill.interfaces.batch import Batch, StepInfo
from nasdistill.interfaces.data import DataReducer, ReducedData
from nasdistill.interfaces.diagnostic import Diagnostic, Finding
from nasdistill.interfaces.info import TeacherInfo, TextInfo
from nasdistill.interfaces.loss import DistillationLoss, Terms
from nasdistill.interfaces.output import Exporter, ExportRequest, ReportSection, SamplerFactory, Section
from nasdistill.interfaces.proxy import Proxy, ProxyInput, ProxyScore
from nasdistill.interfaces.recipe import Recipe, RecipeRunner, Stage, StageResult
from nasdistill.interfaces.signals import ModelGeometry, Signal, Site, SiteNeeds, SiteShape, Trace
from nasdistill.interfaces.space import InheritReport, ModelingSource, SearchSpace, StockModel, SubSpace, Supernet
from nasdistill.interfaces.strategy import INHERITED, Candidate, SearchSession, SearchSetting, SharedWeights, Strategy
from nasdistill.interfaces.target import Availability, Prepared, PrepareRequest, Target
from nasdistill.interfaces.task import Evaluation, Metric, Split, Task
from nasdistill.interfaces.teacher import SingleTeacher, Teacher, TeacherSession, Tracer
from nasdistill.interfaces.transform import Applied, Transform, Transformed

__all__ = [
    "INHERITED", "Applied", "AttentionContext", "AttentionCore", "AttentionGeometry", "AttentionMask",
    "AttentionResult", "AttentionView", "Availability", "Batch", "Candidate", "Component", "ComponentFactory",
    "DataReducer", "Diagnostic", "DistillationLoss", "Evaluation", "Example", "ExportRequest", "Exporter",
    "Finding", "InheritReport", "Metric", "ModelAttention", "ModelGeometry", "ModelingSource", "ModuleAttention",
    "PrepareRequest", "Prepared", "Proxy", "ProxyInput", "ProxyScore", "Recipe", "RecipeRunner", "ReducedData",
    "ReportSection", "RotaryEmbedding", "SamplerFactory", "SearchSession", "SearchSetting", "SearchSpace",
    "Section", "SharedWeights", "Signal", "SingleTeacher", "Site", "SiteNeeds", "SiteShape", "Split", "Stage",
    "StageResult", "StepInfo", "StockModel", "Strategy", "SubSpace", "Supernet", "Target", "Task", "Teacher",
    "TeacherInfo", "TeacherSession", "Terms", "TextInfo", "TokenLayout", "Trace", "Tracer", "Transform",
    "Transformed", "WeightSource", "refuse_undeclared", "static_shape",
]  # fmt: skip
