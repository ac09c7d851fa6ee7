"""Sites and traces: reading signals out of any model.

A :class:`SitePlan` finds by one dry run where the canonical sites of :mod:`nasdistill.interfaces.signals` are in a
model; capturing then hooks only what is asked for::

    plan = SitePlan(model, run=lambda m: task.forward(m, tiny_batch), label="student")
    plan.geometry                                    # ModelGeometry: what a loss's build() reads

    with plan.capture({"hidden.-1", "q.0", "logits"}) as recorder:     # hooks live inside the block only
        output = task.forward(model, batch)
    trace = recorder.trace(output, valid=None)       # Trace; gradients flow through it when they were on

    trace, output = trace_model(model, batch, needs.student, task.forward, plan)      # the same in one line
    tracer = make_tracer(task.forward)               # the Tracer that TeacherSession.trace takes; plans are cached
    trace = tracer(teacher, batch, needs.teacher)    # without gradients

Signatures::

    SitePlan(model, run: Callable[[nn.Module], Tensor], label: str = "model")
        .geometry -> ModelGeometry
        .capture(sites: Iterable[Site | str], model: nn.Module | None = None) -> ContextManager[Recorder]
    Recorder.trace(output: Tensor | None = None, valid: Tensor | None = None) -> Trace
    describe(model, run, label="model") -> ModelGeometry
    even_layer_map(student_layers: int, teacher_layers: int) -> dict[int, int]
    trace_model(model, batch, sites, forward, plan=None) -> tuple[Trace, Tensor]
    make_tracer(forward: Callable[[nn.Module, Batch], Tensor], label="model") -> ModelTracer
        .__call__(model, batch, sites) -> Trace
        .plan(model, batch) -> SitePlan              # cached per model, weakly

A plan holds module paths, not modules: it serves a deep copy too (``plan.capture(sites, model=copy)``), and keeps no
model alive. When nothing but ``logits`` is asked for, no hook is set at all.
"""

from nasdistill.trace.capture import Capture, Recorder
from nasdistill.trace.plan import SitePlan, describe
from nasdistill.trace.tracer import ModelTracer, even_layer_map, make_tracer, trace_model, valid_tokens

__all__ = [
    "Capture",
    "ModelTracer",
    "Recorder",
    "SitePlan",
    "describe",
    "even_layer_map",
    "make_tracer",
    "trace_model",
    "valid_tokens",
]
