"""Checks of distillation losses, on the traces of small real models.

A loss is tried on every standard pair of models that its `build` accepts (:mod:`nasdistill.testing.kit.pairs`), unless
an example names others.
"""

from __future__ import annotations

import contextlib
import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from nasdistill.errors import MismatchError, one_line
from nasdistill.interfaces import Batch, DistillationLoss, ModelGeometry, Signal, Site, StepInfo, Trace
from nasdistill.interfaces.signals import LAYERED, SINGLE
from nasdistill.seeds import torch_generator
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.pairs import PAIRS, STANDARD, STRANGERS, Pair, Side, find_pairs, side
from nasdistill.testing.kit.traces import Watched, mapped, repeated, spoiled, trace_of
from nasdistill.testing.registry import check, exercise, fail, skip
from nasdistill.testing.state import same
from nasdistill.testing.subject import Subject
from nasdistill.trace import even_layer_map

CONTEXT = {
    "pairs": 'the pairs of models to try, such as `("text", "acme.pairs:SPEECH")`; all standard ones unless given',
}
"""What an example's context may name."""


@dataclass(frozen=True)
class Case:
    """A loss under test with one student and one teacher.

    Attributes:
        subject: the loss.
        student: the student's side.
        teacher: the teacher's side.
    """

    subject: Subject
    student: Side
    teacher: Side

    @property
    def name(self) -> str:
        """How messages name it."""
        return f"{self.student.plan.label} with {self.teacher.plan.label}"

    def build(self, seed: int | None = None) -> DistillationLoss:
        """Return a new loss, built for the two. Raises what `build` raises."""
        loss: DistillationLoss = self.subject.create()
        ours, theirs = self.student.geometry, self.teacher.geometry
        with _torch_seeded(self.subject.seed if seed is None else seed):
            loss.build(ours, theirs, even_layer_map(ours.layers, theirs.layers))
        return loss

    def refusal(self) -> Exception | None:
        """Return why `build` refuses the pair; None when it does not."""
        try:
            self.build()
        except Exception as error:
            return error
        return None

    def terms(
        self, loss: DistillationLoss, student: Trace | None = None, teacher: Trace | None = None,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Return the terms, for copies of the sides' own signals unless others are given."""
        with _torch_seeded(self.subject.seed):
            terms: dict[str, Tensor] = loss(
                _copied(self.student.trace) if student is None else student,
                _copied(self.teacher.trace) if teacher is None else teacher,
                self.student.batch if batch is None else batch,
                StepInfo(generator=torch_generator(self.subject.seed, "step")),
            )
        return terms

    def value(
        self, loss: DistillationLoss, student: Trace | None = None, teacher: Trace | None = None,
        batch: Batch | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the sum of the terms."""
        return torch.stack([term.float() for term in self.terms(loss, student, teacher, batch).values()]).sum()

    def number(self, student: Trace | None = None, teacher: Trace | None = None, batch: Batch | None = None) -> float:
        """Return the value that a new loss gives."""
        return float(self.value(self.build(), student, teacher, batch).detach())


def _cases(subject: Subject) -> list[Case]:
    """Return the loss with each pair that it accepts: the wider teacher where it may be wider."""

    def find() -> list[Case]:
        found = []
        for pair in _pairs(subject):
            roles = [role for role in ("teacher", "even") if role in pair.teachers]
            options = (Case(subject, side(pair, "student"), side(pair, role)) for role in roles)
            found += [case for case in options if case.refusal() is None][:1]
        return found

    return subject.once("cases", find)


def _pairs(subject: Subject) -> list[Pair]:
    """Return the pairs to try."""
    return find_pairs(subject.context("pairs", STANDARD))


@exercise(Kind.LOSS)
def use(subject: Subject) -> list[Any]:
    """Compare a student with a teacher in every pair that the loss accepts."""
    cases = _cases(subject)
    if not cases:
        refusals = {
            f"{pair.name}: {one_line(error)}"
            for pair in _pairs(subject)
            for error in [Case(subject, side(pair, "student"), side(pair, "teacher")).refusal()]
            if error is not None
        }
        fail(
            f"its build refuses every pair of models ({'; '.join(sorted(refusals))}); name pairs that it can compare "
            'in an example: Example(context={"pairs": ("acme.pairs:SPEECH",)})'
        )
    found: list[Any] = []
    for case in cases:
        loss = case.build()
        with subject.seeded():
            terms = loss(
                _leaves(case.student.trace)[0], _copied(case.teacher.trace), case.student.batch,
                StepInfo(generator=torch_generator(subject.seed, "step")),
            )  # fmt: skip
            loss.after_step(StepInfo(step=1))
        known = isinstance(terms, Mapping) and all(isinstance(term, Tensor) for term in terms.values())
        found.append({name: term.detach() for name, term in terms.items()} if known else repr(type(terms)))
    return found


@check(Kind.LOSS, gate=True, hint="Return a dict of named 0-dimensional tensors, each averaged over the batch.")
def terms_are_finite_scalars(subject: Subject) -> None:
    """A loss returns named scalar tensors, at least one, and all finite."""
    for case in _cases(subject):
        terms: Any = case.terms(case.build())
        if not isinstance(terms, Mapping) or not terms:
            fail(f"on {case.name} it returns {terms!r}, which is no dict of terms")
        for name, term in terms.items():
            if not isinstance(name, str) or not isinstance(term, Tensor) or term.shape != ():
                shape = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
                fail(f"on {case.name} the term {name!r} is {shape} instead of a scalar tensor")
            if not bool(torch.isfinite(term)):
                fail(f"on {case.name} the term {name!r} is {float(term.detach())}")


@check(
    Kind.LOSS,
    applies=lambda subject: subject.tags.zero_at_identity,
    hint="Check the formula, or declare zero_at_identity=False for a loss with another minimum.",
)
def zero_at_identity_is_true(subject: Subject) -> None:
    """The value is 0 when the student's signals equal the teacher's, where the tag says so."""
    looked = False
    for label, value in _at_identity(subject):
        looked = True
        if abs(value) > 1e-5:
            fail(f"zero_at_identity=True, and {label} with itself gives {value:.3g}")
    if not looked:
        skip("no model can be compared with itself at the same places")


@check(
    Kind.LOSS,
    per_example=False,
    applies=lambda subject: not subject.tags.zero_at_identity,
    hint="Declare zero_at_identity=True, and that 0 is the minimum is tested.",
)
def nonzero_at_identity_is_true(subject: Subject) -> None:
    """Where the tag `zero_at_identity` is False, equal signals of student and teacher do not give 0."""
    values = dict(_at_identity(subject))
    if not values:
        skip("no model can be compared with itself at the same places")
    if all(abs(value) <= 1e-5 for value in values.values()):
        fail(f"zero_at_identity=False, and {', '.join(values)} with itself gives 0")


LEVELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "logit": (("logits",), ()),
    "feature": (
        ("hidden", "features", "norm", "embedding", "pooled", "attn_out", "ffn_out"), ("logits",),
    ),
    "attention": (("q", "k", "v", "scores", "attention", "context"), tuple(LAYERED + SINGLE)),
}  # fmt: skip
"""Level -> the sites that it is about, one of which is read, and others that may be read beside them."""


@check(Kind.LOSS, per_example=False, hint="Set `level` to the deepest kind of signal that sites() names.")
def level_is_true(subject: Subject) -> None:
    """The tag `level` agrees with the sites that are read: at "logit" the logits alone, at "feature" hidden states,
    stage maps or outputs of blocks, at "attention" queries, keys, values or maps.

    Nothing can be told of "relation", "sequence" and "diffusion": they say what is done with signals, and any signal
    may serve for that.
    """
    level = subject.tags.level
    if level not in LEVELS:
        skip(f'level="{level}" says nothing of sites')
    about, beside = LEVELS[level]
    for case in _cases(subject):
        needs = case.build().sites()
        for label, sites in (("student", needs.student), ("teacher", needs.teacher)):
            names = sorted({site.name for site in sites})
            if not set(names) & set(about):
                fail(f'level="{level}", and on {case.name} it reads the {label}\'s {", ".join(names)} and nothing else')
            if strange := [name for name in names if name not in (*about, *beside)]:
                fail(f'level="{level}", and on {case.name} it reads the {label}\'s {", ".join(strange)}, too')


@check(Kind.LOSS, hint="Detach the teacher's signals, or set wants_teacher_grad where the teacher is trained too.")
def teacher_gradient_is_as_declared(subject: Subject) -> None:
    """No gradient flows into the teacher, unless the class says `wants_teacher_grad`, and then one does."""
    wanted = subject.load().wants_teacher_grad
    for case in _cases(subject):
        student, _ = _leaves(case.student.trace)
        teacher, leaves = _leaves(case.teacher.trace)
        _backward(case.value(case.build(), student, teacher))
        reached = sorted(str(site) for site, leaf in leaves.items() if leaf.grad is not None and bool(leaf.grad.any()))
        if reached and not wanted:
            fail(f"on {case.name} a gradient flows into the teacher's {', '.join(reached)}")
        if wanted and not reached:
            fail(f"wants_teacher_grad=True, and on {case.name} no gradient flows into the teacher")


@check(Kind.LOSS, hint="Keep the student's signals in the graph: no detach, no .item(), no torch.no_grad.")
def student_gets_a_gradient(subject: Subject) -> None:
    """A finite gradient, not all of it zero, flows into the student's signals."""
    for case in _cases(subject):
        student, leaves = _leaves(case.student.trace)
        _backward(case.value(case.build(), student))
        gradients = {site: leaf.grad for site, leaf in leaves.items() if leaf.grad is not None}
        if not any(bool(gradient.any()) for gradient in gradients.values()):
            fail(f"on {case.name} no gradient flows into the student")
        odd = [str(site) for site, gradient in gradients.items() if not bool(torch.isfinite(gradient).all())]
        if odd:
            fail(f"on {case.name} the gradient at {', '.join(odd)} is not finite")


@check(Kind.LOSS, hint="Average over the samples; a sum over the batch changes with its size.")
def repeating_the_batch_changes_nothing(subject: Subject) -> None:
    """The value is a mean over the batch: every sample twice gives the same."""
    for case in _cases(subject):
        batch = case.student.batch
        once, double = case.number(), batch.select(torch.arange(batch.size).repeat(2))
        twice = case.number(repeated(case.student.trace), repeated(case.teacher.trace), double)
        if not math.isclose(twice, once, abs_tol=1e-5, rel_tol=1e-4):
            fail(f"on {case.name} the value is {once:.6g}, and {twice:.6g} with every sample twice")


@check(Kind.LOSS, hint="Average over the tokens where signal.valid is True, each sample by its own number of them.")
def padding_has_no_influence(subject: Subject) -> None:
    """Neither what stands at padded positions nor how many there are changes the value."""
    looked = False
    for case in _cases(subject):
        if case.student.longer is None or case.teacher.longer is None:
            continue
        looked = True
        before = case.number()
        after = case.number(spoiled(_copied(case.student.trace)), spoiled(_copied(case.teacher.trace)))
        if not math.isclose(after, before, abs_tol=1e-6, rel_tol=1e-5):
            fail(f"on {case.name} noise at padded positions changes the value from {before:.6g} to {after:.6g}")
        batch, student = case.student.longer
        after = case.number(_copied(student), _copied(case.teacher.longer[1]), batch)
        if not math.isclose(after, before, abs_tol=1e-5, rel_tol=1e-4):
            tokens = [next(iter(item.inputs.values())).shape[1] for item in (case.student.batch, batch)]
            fail(
                f"on {case.name} the value is {before:.6g} for sentences padded to {tokens[0]} tokens, and {after:.6g} "
                f"for the same padded to {tokens[1]}"
            )
    if not looked:
        skip("it compares no models of padded sentences")


@check(Kind.LOSS, hint="Compute in float32: .float() first, with autocast off around products of large numbers.")
def large_signals_stay_finite(subject: Subject) -> None:
    """Half-precision signals of size 1e4 give finite terms and finite gradients."""

    def large(site: Site, signal: Signal) -> Tensor:
        return (signal.tensor / signal.tensor.abs().max().clamp_min(1e-30) * 1e4).to(torch.bfloat16)

    for case in _cases(subject):
        student, leaves = _leaves(mapped(case.student.trace, large))
        value = case.value(case.build(), student, mapped(case.teacher.trace, large))
        if not bool(torch.isfinite(value)):
            fail(f"on {case.name} bfloat16 signals of size 1e4 give {float(value.detach())}")
        _backward(value)
        odd = [str(s) for s, leaf in leaves.items() if leaf.grad is not None and not bool(leaf.grad.isfinite().all())]
        if odd:
            fail(f"on {case.name} bfloat16 signals of size 1e4 give a gradient at {', '.join(odd)} that is not finite")


@check(Kind.LOSS, hint="Put torch.autocast(device_type, enabled=False) around what needs float32.")
def autocast_gives_nearly_the_same(subject: Subject) -> None:
    """Within bfloat16 autocast the value is finite and nearly the same."""
    for case in _cases(subject):
        high = case.number()
        with torch.autocast("cpu", torch.bfloat16):
            low = case.number()
        if not math.isfinite(low) or abs(low - high) > 0.1 * abs(high) + 0.01:
            fail(f"on {case.name} the value is {high:.4g}, and {low:.4g} within bfloat16 autocast")


@check(Kind.LOSS, per_example=False, hint="Compare the geometries in build and raise MismatchError with both shapes.")
def impossible_pairs_are_refused_in_build(subject: Subject) -> None:
    """A pair that cannot be compared is refused by `build` with a MismatchError that names a model; others work.

    Where both models have the signals in question, the error names a shape of both.
    """
    strangers = [(side(PAIRS[ours], "student"), side(PAIRS[theirs], "teacher")) for ours, theirs in STRANGERS]
    usual = [(side(pair, "student"), side(pair, role)) for pair in _pairs(subject) for role in pair.teachers]
    for ours, theirs in [*usual, *strangers]:
        case = Case(subject, ours, theirs)
        error = case.refusal()
        if error is None:
            _works(case, "it accepts")
        elif not isinstance(error, MismatchError):
            fail(f"for {case.name} build raises {one_line(error)} instead of MismatchError")
        elif not any(item.plan.label in str(error) for item in (ours, theirs)):
            fail(f"the refusal of {case.name} names neither geometry's label: {error.message}")
        elif not _names_sizes(case, error):
            fail(f"the refusal of {case.name} does not name a shape of both: {error.message}")


@check(Kind.LOSS, per_example=False, hint="Refuse other widths in build, naming both shapes; or drop same_width.")
def same_width_is_true(subject: Subject) -> None:
    """The tag `same_width` is true both ways: with it other widths are refused, without it they work."""
    _holds(subject, "same_width", "teacher", _widths)


@check(Kind.LOSS, per_example=False, hint="Refuse other head counts in build, naming both shapes; or drop same_heads.")
def same_heads_is_true(subject: Subject) -> None:
    """The tag `same_heads` is true both ways: with it other numbers of heads are refused, without it they work."""
    _holds(subject, "same_heads", "heads", _heads)


@check(Kind.LOSS, per_example=False, hint="Refuse other class counts in build, naming both; or drop same_classes.")
def same_classes_is_true(subject: Subject) -> None:
    """The tag `same_classes` is true both ways: with it other numbers of classes are refused, without it they work."""
    _holds(subject, "same_classes", "classes", lambda geometry: {geometry["logits"].shape[-1]})


@check(Kind.LOSS, hint="Name in sites() exactly what forward reads: everything named is captured in every step.")
def reads_exactly_its_sites(subject: Subject) -> None:
    """The loss reads no signal that it did not ask for, and asks for none that it does not read."""
    for case in _cases(subject):
        loss = case.build()
        needs = loss.sites()
        sides = []
        for label, side_, sites in (("student", case.student, needs.student), ("teacher", case.teacher, needs.teacher)):
            captured = {part for site in sites for part in _captured(site)}
            missing = sorted(str(site) for site in captured if site not in side_.trace.signals)
            if missing:
                fail(f"on {case.name} it asks for the {label}'s {', '.join(missing)}, which the model has not")
            trace = _copied(side_.trace)
            sides.append((label, captured, Watched({site: trace.signals[site] for site in captured})))
        try:
            case.terms(loss, Trace(sides[0][2]), Trace(sides[1][2]))
        except KeyError as error:
            fail(f"on {case.name} it reads a signal that sites() does not name: {error.args[0]}")
        for label, captured, signals in sides:
            unread = sorted(str(site) for site in captured - signals.read)
            if unread:
                fail(f"on {case.name} sites() asks for the {label}'s {', '.join(unread)}, which is not read")


@check(Kind.LOSS, hint="Make trainable parts in build, as modules or parameters of the loss; set owns_parameters.")
def owns_parameters_is_true(subject: Subject) -> None:
    """The tag `owns_parameters` is true both ways, and all that is trained is registered once `build` is done."""
    owned = []
    for case in _cases(subject):
        loss = case.build()
        parameters = {id(parameter) for parameter in loss.parameters()}
        owned.append(len(parameters))
        student, leaves = _leaves(case.student.trace)
        known = parameters | {id(leaf) for leaf in leaves.values()}
        strangers = [leaf for leaf in _graph_leaves(case.value(loss, student)) if id(leaf) not in known]
        if strangers:
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in strangers)
            fail(f"on {case.name} gradients flow to tensors of shape {shapes}, which are no registered parameters")
        if parameters and not subject.tags.owns_parameters:
            fail(f"owns_parameters=False, and on {case.name} it has {len(parameters)} parameters")
    # An option may do without them; what the tag says is what the defaults do.
    if subject.tags.owns_parameters and not any(owned) and not subject.example.options:
        fail(f"owns_parameters=True, and on none of {len(owned)} pairs it has a parameter after build")


@check(Kind.LOSS, hint="Use every part that build makes, and let gradients through to it.")
def owned_parameters_are_trained(subject: Subject) -> None:
    """Every trainable parameter of the loss gets a finite gradient."""
    owned = False
    for case in _cases(subject):
        loss = case.build()
        parameters = {name: item for name, item in loss.named_parameters() if item.requires_grad}
        if not parameters:
            continue
        owned = True
        _backward(case.value(loss))
        lost = [n for n, item in parameters.items() if item.grad is None or not bool(item.grad.isfinite().all())]
        if lost:
            fail(f"on {case.name} no finite gradient reaches {', '.join(lost)}")
    if not owned:
        skip("it has no trainable parameters")


@check(Kind.LOSS, hint="Register what forward depends on: parameters, or register_buffer for what is not trained.")
def state_survives_saving(subject: Subject) -> None:
    """A second loss built for the same pair computes the same with the first one's state dict."""
    for case in _cases(subject):
        first, second = case.build(), case.build(seed=subject.seed + 1)
        second.load_state_dict(first.state_dict())
        with torch.no_grad():
            difference = same(case.terms(first), case.terms(second), "the terms")
        if difference:
            fail(f"on {case.name}, after load_state_dict, {difference}")


@check(Kind.LOSS, hint="Keep modules and tensors in a built loss, no open files, locks, generators or closures.")
def built_losses_can_be_copied(subject: Subject) -> None:
    """A deep copy of a built loss computes the same with parameters of its own."""
    for case in _cases(subject):
        loss = case.build()
        twin = copy.deepcopy(loss)
        mine = {id(parameter) for parameter in loss.parameters()}
        if any(id(parameter) in mine for parameter in twin.parameters()):
            fail(f"on {case.name} a deep copy shares parameters with the loss")
        with torch.no_grad():
            difference = same(case.terms(loss), case.terms(twin), "the terms")
        if difference:
            fail(f"on {case.name}, of a loss and its deep copy, {difference}")


@check(Kind.LOSS, hint="Read batch.labels, or drop the tag needs_labels.")
def needs_labels_is_true(subject: Subject) -> None:
    """The tag `needs_labels` is true both ways: without it labels are not read, with it they matter."""
    moved = False
    for case in _cases(subject):
        batch = case.student.batch
        plain = case.terms(case.build())
        if subject.tags.needs_labels:
            labels = None if batch.labels is None else batch.labels.roll(1, 0)
            moved = moved or bool(same(plain, case.terms(case.build(), batch=replace(batch, labels=labels))))
            continue
        try:
            difference = same(plain, case.terms(case.build(), batch=replace(batch, labels=None)), "the terms")
        except Exception as error:
            difference = f"it raises {one_line(error)}"
        if difference:
            fail(f"needs_labels=False, and on {case.name}, with labels and without, {difference}")
    if subject.tags.needs_labels and not moved:
        fail("needs_labels=True, and other labels give the same terms on every pair")


@check(
    Kind.LOSS,
    applies=lambda subject: subject.tags.needs_labels,
    hint="Leave out samples where batch.labelled is False; their label is -100 and no class.",
)
def samples_without_a_label_are_allowed(subject: Subject) -> None:
    """A loss that reads labels copes with samples that have none (`labelled` False, label -100)."""
    for case in _cases(subject):
        batch = case.student.batch
        if batch.labels is None:
            continue
        labels, labelled = batch.labels.clone(), torch.ones(batch.size, dtype=torch.bool)
        labels[-1], labelled[-1] = -100, False
        try:
            value = case.number(batch=replace(batch, labels=labels, labelled=labelled))
        except Exception as error:
            fail(f"on {case.name} it raises {one_line(error)} when the last sample has no label")
        if not math.isfinite(value):
            fail(f"on {case.name} it gives {value} when the last sample has no label")


@check(Kind.LOSS, hint="Work on new tensors: the task's loss and other losses read the same signals.")
def signals_are_left_alone(subject: Subject) -> None:
    """The student's and the teacher's signals are not changed in place."""
    for case in _cases(subject):
        sides = {"student": _leaves(case.student.trace)[0], "teacher": _copied(case.teacher.trace)}
        before = {name: _copied(trace) for name, trace in sides.items()}
        case.terms(case.build(), sides["student"], sides["teacher"])
        for name, trace in sides.items():
            changed = [
                str(site)
                for site, signal in before[name].signals.items()
                if same(signal.tensor, trace.signals[site].tensor.detach())
            ]
            if changed:
                fail(f"on {case.name} it changes the {name}'s {', '.join(changed)} in place")


@check(Kind.LOSS, hint="Check the sign and the student's side of the formula: following its gradient must help.")
def training_lowers_it(subject: Subject) -> None:
    """Twenty steps of training on one batch lower the value; where 0 is its minimum, they bring it a tenth nearer."""
    for case in _cases(subject)[: None if subject.thorough else 1]:
        values = list(_train(case, steps=20))
        if not values:
            skip("it has no gradient, which is another check's business")
        first, last = values[0], min(values[-3:], key=abs if subject.tags.zero_at_identity else None)
        if subject.tags.zero_at_identity and not abs(last) < 0.9 * abs(first):
            fail(f"20 steps of Adam on {case.name} lead from {first:.5g} to {last:.5g}, and 0 is the minimum")
        if not subject.tags.zero_at_identity and not last < first:
            fail(f"20 steps of Adam on {case.name} lead from {first:.5g} to {last:.5g}")


# -- details ----------------------------------------------------------------------------------------------------------


def _at_identity(subject: Subject) -> Iterator[tuple[str, float]]:
    """Yield each student that can be compared with itself at the same places, and the value."""
    for case in _cases(subject):
        twins = Case(subject, case.student, case.student)
        if twins.refusal() is not None:
            continue
        needs = twins.build().sites()
        if needs.student == needs.teacher:  # others compare two places, which differ in one model too
            yield case.student.plan.label, twins.number()


@contextlib.contextmanager
def _torch_seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator and put it back; a check of every loss has seen to it that it draws from no other."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed speaks to every kind of device
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _copied(trace: Trace) -> Trace:
    """Return a trace of new tensors."""
    return mapped(trace, lambda site, signal: signal.tensor.detach().clone())


def _leaves(trace: Trace) -> tuple[Trace, dict[Site, Tensor]]:
    """Return a trace that passes gradients on, as a model's does, and the leaves where they arrive."""
    leaves = {site: signal.tensor.detach().clone().requires_grad_(True) for site, signal in trace.signals.items()}
    return mapped(trace, lambda site, signal: leaves[site].clone()), leaves


def _backward(value: Tensor) -> None:
    """Run the backward pass where there is one to run."""
    if value.requires_grad:
        value.backward()  # type: ignore[no-untyped-call]


def _graph_leaves(value: Tensor) -> list[Tensor]:
    """Return the tensors that a backward pass from `value` would give a gradient."""
    found, seen, waiting = [], set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(cast(Tensor, node.variable))
        waiting += [following for following, _ in node.next_functions]
    return found


def _captured(site: Site) -> tuple[Site, ...]:
    """Return the sites that are recorded for one that a loss names: maps and scores come from q and k."""
    return (Site("q", site.layer), Site("k", site.layer)) if site.name in ("scores", "attention") else (site,)


def _works(case: Case, did: str) -> None:
    """Fail unless an accepted pair can be compared."""
    try:
        value = case.number()
    except Exception as error:
        fail(f"{did} {case.name} in build, and then raises {one_line(error)}")
    if not math.isfinite(value):
        fail(f"{did} {case.name} in build, and then gives {value}")


def _holds(subject: Subject, tag: str, role: str, numbers: Callable[[ModelGeometry], set[int]]) -> None:
    """Hold a tag on what must agree against pairs that differ in just that."""
    declared, looked = getattr(subject.tags, tag), False
    for pair in _accepted_pairs(subject):
        if role not in pair.teachers or "even" not in pair.teachers:
            continue
        case = Case(subject, side(pair, "student"), side(pair, role))
        ours, theirs = numbers(case.student.geometry), numbers(case.teacher.geometry)
        if not ours - theirs:
            continue
        looked, error = True, case.refusal()
        seen = f"{case.student.plan.label} ({_listed(ours)}) and {case.teacher.plan.label} ({_listed(theirs)})"
        if not declared and error is not None:
            fail(f"{tag}=False, and {seen} are refused: {one_line(error)}")
        if declared and error is None:
            fail(f"{tag}=True, and {seen} are accepted")
    if not looked:
        skip("no pair that it accepts has a teacher that differs in just this")


def _accepted_pairs(subject: Subject) -> Iterator[Pair]:
    """Yield the pairs of which it accepts some teacher."""
    students = {id(case.student) for case in _cases(subject)}
    yield from (pair for pair in _pairs(subject) if id(side(pair, "student")) in students)


def _names(error: MismatchError, numbers: set[int]) -> bool:
    """Return whether a message contains one of the numbers."""
    return any(re.search(rf"\b{number}\b", str(error)) for number in numbers)


def _names_sizes(case: Case, error: MismatchError) -> bool:
    """Return whether a refusal names a shape of each side, or a number that only its shapes have.

    A model that has no such signals at all has no shape to name.
    """
    read = [
        ({site.name for site in needs.student}, {site.name for site in needs.teacher})
        for needs in (accepted.build().sites() for accepted in _cases(case.subject))
    ]
    shapes, numbers = [], []
    for role, geometry in enumerate((case.student.geometry, case.teacher.geometry)):
        there = {site.name for site in geometry.sites}
        known = [names[role] for names in read if names[role] <= there]
        if not known:
            return True
        found = [shape for site, shape in geometry.sites.items() if any(site.name in names for names in known)]
        shapes.append([str(shape.shape) for shape in found])
        numbers.append({number for shape in found for number in (*shape.shape, shape.width)})
    return all(
        any(shape in str(error) for shape in shapes[own]) or _names(error, numbers[own] - numbers[1 - own])
        for own in (0, 1)
    )


def _listed(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _widths(geometry: ModelGeometry) -> set[int]:
    return {shape.width for site, shape in geometry.sites.items() if site.name in ("hidden", "features")}


def _heads(geometry: ModelGeometry) -> set[int]:
    return {shape.shape[0] for site, shape in geometry.sites.items() if site.name == "q"}


def _train(case: Case, steps: int) -> Iterator[float]:
    """Yield the value before each step and after the last one, on one batch; nothing where there is no gradient."""
    loss, student = case.build(), copy.deepcopy(case.student.model)
    batch, plan = case.student.batch, case.student.plan
    parameters: list[nn.Parameter] = [*student.parameters(), *loss.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=5e-3)
    teacher = _copied(case.teacher.trace)
    for step in range(steps + 1):
        value = case.value(loss, trace_of(student, batch, plan.geometry.sites, plan), teacher)
        if not value.requires_grad:
            return
        yield float(value.detach())
        optimizer.zero_grad()
        _backward(value)
        optimizer.step()
        loss.after_step(StepInfo(step=step + 1, total_steps=steps))
