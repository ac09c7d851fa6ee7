"""The canonical view of joint attention: several streams of tokens, each with its own projections, attended as one.

    q = [q_1; q_2], k = [k_1; k_2], v = [v_1; v_2];   out = softmax(q k^T * scale) v;   y_s = out_s w_o_s^T + b_o_s

Image and text of SD3 and of Flux's first blocks meet so. Each stream is read as a layer is (see
:mod:`nasdistill.bridge.views`), norms and rotation included, and all together are proven on the dry run. Cores replace
such attention as any other (:func:`nasdistill.bridge.attention.set_attention`): they get the joined sequence. Variants
that own their projections have no place for two sets of them and refuse.

A block in which the streams were joined before it projects them is no joint layer: it has one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.bridge.dryrun import DryRun, Product, dry_run
from nasdistill.bridge.matching import streams_of, tolerance_of
from nasdistill.bridge.record import CallRecord
from nasdistill.bridge.views import LayerReader, call_records, geometry_of, kv_groups, view_heads
from nasdistill.bridge.watching import AttentionCall
from nasdistill.errors import MismatchError
from nasdistill.interfaces import AttentionGeometry, AttentionView


@dataclass(frozen=True, slots=True)
class JointAttentionView:
    """A softmax attention layer over several streams of tokens, one after the other.

    Attributes:
        streams: one view per stream, in the order of the joined sequence. Where nothing reads a stream's output, as in
            SD3's last block, its `w_o` is ``(0, H * D)``. Positions of a rotation count from the stream's first token.
        tokens: how many tokens each stream had in the dry run.
        geometry: sizes of the layer; the layout of the joined sequence is the dry run's.
        path: dotted path of the module in its model.
        layer: index of the layer, as in the sites ``q.i``.
    """

    streams: tuple[AttentionView, ...]
    tokens: tuple[int, ...]
    geometry: AttentionGeometry
    path: str
    layer: int


def joint_views(
    model: nn.Module, run: Callable[[nn.Module], Any], *, layers: Iterable[int] | None = None
) -> dict[int, JointAttentionView]:
    """Return the joint attention of a model's layers in canonical form.

    Args:
        model: any model; left as it is. It is copied and run once.
        run: one forward on a tiny real batch through ``model(...)``.
        layers: only these, numbered as the sites ``q.i``; None = all that attend jointly.

    Returns:
        Layer -> view; its weights are copies of the model's.

    Raises:
        MismatchError: no layer (or not the one asked for) attends to streams jointly, or a stream has no such form.
    """
    done = dry_run(model, run)
    wanted = None if layers is None else set(layers)
    found: dict[int, JointAttentionView] = {}
    for layer, calls in enumerate(call_records(done, model)):
        for record in calls if wanted is None or layer in wanted else ():
            view = _read(model, done, layer, record)
            if view is not None:
                found[layer] = view
                break
    missing = sorted((wanted or set()) - set(found))
    if missing or not found:
        where = f"layer {missing[0]} of " if missing else ""
        raise MismatchError(
            f"{where}{type(model).__name__} has no joint attention; it has {len(done.found.calls)} layers"
        )
    return found


def joint_output(view: JointAttentionView, streams: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Compute joint attention from a view alone.

    Args:
        view: the layer.
        streams: ``(B, N_s, C_s)`` for each stream, the inputs of its projections.

    Returns:
        For each stream the output projection's output ``(B, N_s, C_s)``; ``(B, N_s, 0)`` where nothing reads it.
    """
    q, k, v = (
        torch.cat(parts, dim=2)
        for parts in zip(*(view_heads(one, x) for one, x in zip(view.streams, streams, strict=True)), strict=True)
    )
    weights = (q @ k.transpose(-1, -2) * view.streams[0].scale).softmax(-1)
    joined = (weights @ v).transpose(1, 2).flatten(2)
    parts = torch.split(joined, [x.shape[1] for x in streams], dim=1)
    return tuple(F.linear(part, one.w_o, one.b_o) for part, one in zip(parts, view.streams, strict=True))


def _read(model: nn.Module, done: DryRun, layer: int, record: CallRecord) -> JointAttentionView | None:
    """Return the view of one call, proven on the dry run; None where it joins nothing."""
    call = done.tensors[id(record)]
    streams = [] if call is None else streams_of(done, call, kv_groups(call))
    if call is None or not streams:
        return None
    path = record.caller[0]
    where = f"layer {layer} of {type(model).__name__} ({path or 'the model'!r})"
    if call.causal or call.mask is not None or call.bias is not None:
        raise MismatchError(f"{where} attends jointly under a mask, which a joint view cannot say")
    readers = _readers(done, record, call)
    readings, outputs = [], []
    for stream in streams:
        reader = LayerReader(model, done, layer, record, slice(stream.start, stream.stop))
        try:
            reading = reader.read()
        except MismatchError:
            reading = reader.read(unread=True)
        readings.append(reading)
        outputs.append(reading.output)
    # Whatever reads the joined output must be one of the output projections: else something stands between.
    if {id(product) for product in readers} - {id(product) for product in outputs}:
        raise MismatchError(f"{where}: something stands between its joined output and the projections of its streams")
    copies = [reading.build(done.model) for reading in readings]
    if len({one.scale for one in copies}) > 1:
        raise MismatchError(f"{where}: its streams have different factors on their scores, which a view cannot say")
    geometry = geometry_of(done, layer, record, call, int(readings[0].query.input.shape[-1]))
    tokens = tuple(stream.stop - stream.start for stream in streams)
    batch = call.q.shape[0]
    given = [one.query.input.detach().reshape(batch, n, -1) for one, n in zip(readings, tokens, strict=True)]
    with torch.no_grad():
        rebuilt = joint_output(JointAttentionView(tuple(copies), tokens, geometry, path, layer), given)
    for found, output in zip(rebuilt, outputs, strict=True):
        told = None if output is None else output.output.detach().reshape(found.shape)
        limit = 10 * tolerance_of(call)
        if told is not None and not float((found - told).abs().max()) <= limit * float(told.abs().max()):
            raise MismatchError(f"{where}: the weights found do not rebuild its output")
    return JointAttentionView(tuple(reading.build(model) for reading in readings), tokens, geometry, path, layer)


def _readers(done: DryRun, record: CallRecord, call: AttentionCall) -> list[Product]:
    """Return the later products that read an attention call's output without another product between."""
    others = {product.node for product in done.products}
    found = []
    for product in (p for p in done.products if p.time > record.time):
        seen, waiting = set(), [product.input.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is call.out.grad_fn:
                found.append(product)
                break
            if node is None or node in seen or node in others:
                continue
            seen.add(node)
            waiting.extend(after for after, _ in node.next_functions)
    return found
