"""Running proxies safely: copies, seeds, a clock, and a check that nothing of the caller's changed.

A proxy is foreign code that likes to patch what it looks at. It gets copies, and whatever it does or raises becomes
one outcome: a finite value, or None with one line that says why.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from nasdistill.errors import ISOLATED, TrialFailure, one_line
from nasdistill.interfaces import Batch, Proxy, ProxyInput, ProxyScore
from nasdistill.measure.guard import Guard, RandomGuard
from nasdistill.measure.memory import is_out_of_memory
from nasdistill.measure.rank import log_rank_sum, ranks
from nasdistill.seeds import seeded, torch_generator
from nasdistill.spec.component import ProxyTags
from nasdistill.spec.io import Cost, IOSpec

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class ProxyOutcome:
    """What became of one scoring.

    Attributes:
        value: the score, finite, higher is better; None when the proxy failed.
        parts: its finite components.
        seconds: wall-clock time of the scoring itself, copies not counted.
        problem: one line: why there is no value, or a caveat that belongs beside it; None when there is nothing to
            say.
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    problem: str | None = None


def run_proxy(
    proxy: Proxy,
    tags: ProxyTags,
    *,
    model: nn.Module,
    teacher: nn.Module | None,
    batches: Sequence[Batch],
    forward: Callable[[nn.Module, Batch], Tensor],
    loss: Callable[[Tensor, Batch], Tensor],
    io: IOSpec,
    cost: Cost | None = None,
    seed: int = 0,
) -> ProxyOutcome:
    """Score one candidate with one proxy.

    The proxy sees deep copies of student, teacher (only when tagged ``needs_teacher``) and batches (with labels, and a
    loss that can be called, only when tagged ``needs_labels``), in the tagged mode and initialisation, outside any
    autocast or no-grad region of the caller. Afterwards everything the caller
    owns is compared and put back: weights, buffers, gradients, modes, hooks, random states, grad mode, default dtype,
    thread count. A proxy that changed any of it has no score.

    Args:
        proxy: the proxy.
        tags: its declared tags.
        model: the student; not touched.
        teacher: the teacher, or None; not touched.
        batches: at least ``proxy.batches_needed()``, on any device (moved to the student's).
        forward: the task's way of calling a model.
        loss: the task's loss.
        io: input and output.
        cost: analytic cost of the student, where known.
        seed: the same seed gives the same score. Score a whole pool with one seed: what a proxy draws is then the
            same for all candidates and cancels in their order.

    Returns:
        The outcome; exceptions, ``sys.exit()``, running out of memory, NaN and infinities are outcomes without a value.
    """
    if tags.needs_teacher and teacher is None:
        return ProxyOutcome(None, problem="it compares with a teacher and none was given")
    if len(batches) < proxy.batches_needed():
        return ProxyOutcome(None, problem=f"it reads {proxy.batches_needed()} batches, {len(batches)} were given")
    # The grad mode is the caller's too: the guard looks at it from outside the region that changes it.
    guard = Guard({"student": model, "teacher": teacher if tags.needs_teacher else None})
    changed: list[str] = []
    score: ProxyScore | None = None
    problem: str | None = None
    seconds = 0.0
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with (
            seeded(seed, "proxy", proxy.id),
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            torch.autocast(device_type=device.type, enabled=False),
        ):
            generator = torch_generator(seed, "proxy", proxy.id)
            candidate = ProxyInput(
                model=_prepared(model, tags, generator),
                teacher=_prepared(teacher, tags, generator) if teacher is not None and tags.needs_teacher else None,
                batches=tuple(_copied(batch, device, labels=tags.needs_labels) for batch in batches),
                forward=forward,
                loss=loss if tags.needs_labels else _no_loss,
                io=io,
                cost=cost,
                generator=generator,
            )
            random_states = RandomGuard()
            inner = Guard({})
            begin = _now(device)
            try:
                score = proxy.score(candidate)
                seconds = _now(device) - begin
            except ISOLATED as error:
                seconds = time.perf_counter() - begin
                problem = _problem(error) + _unlabelled(error, tags)
            finally:
                changed = [*random_states.changes(), *inner.settle()]
    except ISOLATED as error:  # copying failed: there was no scoring
        problem = _problem(error)
    finally:
        changed += [text for text in guard.settle() if text not in changed]
    if changed:
        shown = "; ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        return ProxyOutcome(None, seconds=seconds, problem=f"it changed what is not its own: {shown}")
    if score is None:
        return ProxyOutcome(None, seconds=seconds, problem=problem or "it returned nothing")
    return _outcome(score, seconds)


def _outcome(score: object, seconds: float) -> ProxyOutcome:
    """Check a returned score."""
    if not isinstance(score, ProxyScore):
        return ProxyOutcome(
            None, seconds=seconds, problem=f"it returned {type(score).__name__} instead of a ProxyScore"
        )
    try:
        value = float(score.value)
        parts = {str(name): float(part) for name, part in score.parts.items()}
    except (TypeError, ValueError) as error:
        return ProxyOutcome(None, seconds=seconds, problem=f"its score is not a number: {error}")
    parts = {name: part for name, part in parts.items() if math.isfinite(part)}
    if not math.isfinite(value):
        return ProxyOutcome(None, parts, seconds, f"its score is {value}")
    return ProxyOutcome(value, parts, seconds, score.note or None)


def _prepared(model: nn.Module, tags: ProxyTags, generator: torch.Generator) -> nn.Module:
    """Return a copy in the tagged mode and initialisation, without gradients."""
    twin = copy.deepcopy(model)
    twin.zero_grad(set_to_none=True)
    if tags.init == "normal":
        normal_init(twin, generator)
    return twin.train(tags.mode == "train")


def _no_loss(output: Tensor, batch: Batch) -> Tensor:
    """Stand for the task's loss where a proxy has no claim to it."""
    raise TrialFailure("undeclared", f"it calls the loss, and {_UNDECLARED}")


_UNDECLARED = "this proxy does not declare needs_labels"


def _unlabelled(error: BaseException, tags: ProxyTags) -> str:
    """Return what to add to an error that missing labels may have caused."""
    missed = not tags.needs_labels and "NoneType" in str(error)
    return f" (batches have no labels: {_UNDECLARED})" if missed else ""


def _copied(batch: Batch, device: torch.device, *, labels: bool) -> Batch:
    """Return a batch that shares no memory with `batch`, with or without its labels."""
    if not labels:
        batch = replace(batch, labels=None, labelled=None)
    moved = batch.to(device)
    return replace(
        moved,
        inputs={name: value.detach().clone() for name, value in moved.inputs.items()},
        labels=None if moved.labels is None else moved.labels.clone(),
        ids=moved.ids.clone(),
        labelled=None if moved.labelled is None else moved.labelled.clone(),
        extra={name: value.detach().clone() for name, value in moved.extra.items()},
    )


def _now(device: torch.device) -> float:
    """Wall-clock seconds once the device has caught up."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _problem(error: BaseException) -> str:
    """Return what an exception means for a proxy's score."""
    if is_out_of_memory(error):
        return "out of memory; a smaller batch needs less"
    return one_line(error)


@torch.no_grad()
def normal_init(model: nn.Module, generator: torch.Generator) -> None:
    """Draw convolution, linear and attention-projection weights from N(0, 1), in place.

    Biases become 0, normalisation scales 1 and shifts 0, running statistics are reset: the initialisation of several
    published proxies (ZenNAS, TF-TAS, the DisWOT study). Embeddings and other parameters stay.

    Args:
        model: the network, on any device.
        generator: a CPU generator; numbers are drawn there, so that every device gets the same ones.
    """

    def draw(weight: Tensor) -> None:
        weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float32))

    for module in model.modules():
        if isinstance(module, _ConvNd | nn.Linear):
            draw(module.weight)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.MultiheadAttention):
            for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                weight = getattr(module, name)
                if weight is not None:
                    draw(weight)
            if module.in_proj_bias is not None:
                module.in_proj_bias.zero_()
        elif isinstance(module, _NormBase):
            module.reset_parameters()  # statistics, and scale and shift where it has them
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
            module.reset_parameters()


def pool_values(outcomes: Mapping[_Key, ProxyOutcome], proxy: Proxy | None = None) -> dict[_Key, float | None]:
    """Return each candidate's value within its pool.

    Args:
        outcomes: candidate -> outcome of one proxy.
        proxy: for proxies tagged ``pool``, whose values only arise from all candidates together (`Proxy.aggregate`).

    Returns:
        Candidate -> value, None for failures; the same keys in the same order.
    """
    values = {key: outcome.value for key, outcome in outcomes.items()}
    if proxy is None:
        return values
    alive = {key: outcome for key, outcome in outcomes.items() if outcome.value is not None}
    scores = [ProxyScore(outcome.value or 0.0, outcome.parts) for outcome in alive.values()]
    pooled = proxy.aggregate(scores) if scores else []
    for key, value in zip(alive, pooled, strict=True):
        values[key] = value if math.isfinite(value) else None
    return values


def rank_pool(outcomes: Mapping[_Key, ProxyOutcome], proxy: Proxy | None = None) -> dict[_Key, float]:
    """Return each candidate's rank in its pool: 1 is best, ties share their mean rank, failures share the last ones.

    Args:
        outcomes: candidate -> outcome of one proxy.
        proxy: see `pool_values`.
    """
    values = pool_values(outcomes, proxy)
    return dict(zip(values, ranks(list(values.values())), strict=True))


def consensus(rows: Mapping[_Key, Mapping[str, float | None]]) -> dict[_Key, float]:
    """Return one score per candidate out of several proxies, without a parameter to tune: the log-rank sum.

    Per proxy the candidates are ranked 1 (worst) to m (best), ties at their mean rank and failures as the worst; the
    score is the sum over proxies of log(rank / m), at most 0. A candidate has to be good for every proxy: being last
    in one costs more than being first in another brings. The aggregation of AZ-NAS (arXiv:2403.19232).

    Args:
        rows: candidate -> proxy -> score (None: failed); every row names the same proxies.

    Raises:
        ValueError: the rows name different proxies.
    """
    # Sums of floats depend on their order, and ties on the sums' last bits: always the same order, whatever the rows'.
    names = sorted(next(iter(rows.values()), {}))
    for key, row in rows.items():
        if set(row) != set(names):
            raise ValueError(f"candidate {key!r} has scores of {sorted(row)}, others of {sorted(names)}")
    return dict(zip(rows, log_rank_sum([[row[name] for name in names] for row in rows.values()]), strict=True))
