"""Leaving plain torch: export, and the place of a core in models of timm and transformers."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.errors import one_line
from nasdistill.interfaces import AttentionContext
from nasdistill.spec.component import Kind
from nasdistill.testing.checks.attention.cases import (
    convert,
    encoder,
    first_mode,
    gap,
    is_core,
    is_model,
    layer_of,
    tags_of,
    tensors,
)
from nasdistill.testing.checks.attention.work import Call
from nasdistill.testing.kit.models import digits
from nasdistill.testing.registry import check, fail, skip
from nasdistill.testing.subject import Subject


@check(Kind.ATTENTION, thorough=True, hint="Decide nothing by the values of tensors; set the tag to what comes of it.")
def exportable_is_true(subject: Subject) -> None:
    """The tag `exportable` is true both ways: torch.export and both ways to ONNX compute the same, or one does not."""
    declared = tags_of(subject).exportable
    call, inputs, others = _exported_case(subject)
    with torch.no_grad(), _quiet():
        problem = _torch_problem(call, inputs, others)
        if not problem:
            lacking = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
            if lacking:
                skip(f"torch.export works; for ONNX {', '.join(lacking)} is missing: pip install 'nasdistill[onnx]'")
            problems = (_onnx_problem(call, inputs, others, dynamo) for dynamo in (False, True))
            problem = next(filter(None, problems), "")
    if problem and declared:
        fail(problem)
    if not problem and not declared:
        fail("exportable=False, and it passes torch.export and both ways to ONNX, and computes the same: declare it")


def _exported_case(subject: Subject) -> tuple[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return what is exported, the inputs to export it with, and others to compare on."""
    if is_model(subject):
        model = convert(subject, encoder(subject)).model.eval()
        return model, (digits(2).image,), (digits(2, start=50).image,)
    call = Call(subject, layer_of(subject, dtype=torch.float32), first_mode(subject)).eval()
    inputs, others = (tuple(tensors(subject, 16, dtype=torch.float32, seed=seed)) for seed in (0, 1))
    return call, inputs, others


def _torch_problem(call: nn.Module, inputs: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> str:
    """Return what is wrong with what torch.export makes of a call; empty when nothing is."""
    try:
        found = torch.export.export(call, inputs, strict=False).module()(*others)
    except Exception as error:
        return f"torch.export: {one_line(error)}"
    return _difference("torch.export", found, call(*others))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to themselves what torch's exporters warn of, log and print to stderr: the check says what is wrong."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _difference(how: str, found: Tensor, expected: Tensor) -> str:
    if (difference := gap(found, expected)) > 1e-4:
        return f"{how}: the exported graph differs by {difference:.3g}"
    return ""


def _onnx_problem(call: nn.Module, inputs: tuple[Tensor, ...], others: tuple[Tensor, ...], dynamo: bool) -> str:
    """Return what is wrong with what onnxruntime gives for `others` after an export on `inputs`; empty when nothing."""
    import onnxruntime

    from nasdistill.bridge.onnx import export_onnx

    how = f"ONNX, {'dynamo' if dynamo else 'TorchScript'}"
    names = [f"x{number}" for number in range(len(inputs))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "layer.onnx")
        try:
            export_onnx(call, inputs, path, dynamo=dynamo, inputs=names)
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            outs = session.run(None, {name: x.numpy() for name, x in zip(names, others, strict=True)})
        except Exception as error:
            return f"{how}: {one_line(error)}"
    return _difference(how, torch.from_numpy(outs[0]), call(*others))


def fits_timm(subject: Subject) -> bool:
    """Whether a timm block takes such a variant: a stateless bidirectional core."""
    tags = tags_of(subject)
    return is_core(subject) and tags.bidirectional and not tags.stateful


@check(
    Kind.ATTENTION, thorough=True, applies=fits_timm, hint="Take sizes from q, k and v; ctx.layout has the patch grid."
)
def timm_bridge_agrees(subject: Subject) -> None:
    """In a block of a timm vision transformer the core computes what it computes alone, and can be trained there."""
    from nasdistill.bridge.timm import random_vit, set_attention, verify_attention

    model: Any = random_vit()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    set_attention(model, {1: (subject.id, dict(subject.example.options))}, subject.host)
    verify_attention(model, images)
    attention = model.blocks[1].attn
    seen: dict[str, Tensor] = {}
    attention.register_forward_hook(lambda module, args, out: seen.update(x=args[0], out=out))
    torch.autograd.backward(model(images).square().sum())
    x = seen["x"]
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    alone = attention.core(q, k, v, AttentionContext(layer=1, layer_input=x)).out
    if (found := gap(seen["out"], attention.proj(alone.transpose(1, 2).flatten(2)))) > 1e-5:
        fail(f"the block's attention differs from projections, core and projection by hand, by {found:.3g}")
    for name, parameter in attention.named_parameters():
        if parameter.grad is None or not parameter.grad.isfinite().all():
            fail(f"in the block {name} gets {'no' if parameter.grad is None else 'not a finite'} gradient")


def fits_transformers(subject: Subject) -> bool:
    """Whether an encoder or a decoder takes such a variant: a stateless core."""
    tags = tags_of(subject)
    return is_core(subject) and not tags.stateful and (tags.bidirectional or tags.causal == "strict")


@check(
    Kind.ATTENTION,
    thorough=True,
    applies=fits_transformers,
    hint="Whatever you read besides q, k and v (ctx.layer_input, say): keep padding and later tokens out of it.",
)
def transformers_bridge_agrees(subject: Subject) -> None:
    """In BERT and Llama a core keeps its promises on padding, causality and exactness, and can be trained there.

    Grouped heads are tried where they are declared.
    """
    from nasdistill.bridge.random_models import random_model

    tags = tags_of(subject)
    if tags.bidirectional:
        _keeps_its_promises(subject, "BERT", random_model("bert"))
    if tags.causal == "strict":
        _keeps_its_promises(subject, "Llama", random_model("llama", num_key_value_heads=1 if tags.gqa else 2))


def _keeps_its_promises(subject: Subject, name: str, model: nn.Module) -> None:
    """Try a core in one layer of a model of ids, whose second sample is padded where the variant takes padding."""
    from nasdistill.bridge.attention import set_attention, verify_attention

    tags, tokens = tags_of(subject), 12
    generator = torch.Generator().manual_seed(1)
    ids, others = (torch.randint(3, 60, (2, tokens), generator=generator) for _ in range(2))
    real = torch.arange(tokens)[None] < torch.tensor([[tokens], [8 if tags.padding else tokens]])

    def run(model: nn.Module, ids: Tensor = ids) -> Tensor:
        out: Tensor = model(input_ids=ids, attention_mask=real.long())[0]
        return out[real]

    with torch.no_grad():
        stock = run(model)
    set_attention(model, {1: (subject.id, dict(subject.example.options))}, subject.host, run=run)
    verify_attention(model, run)
    out = run(model)
    if tags.exact and (found := gap(out, stock)) > 1e-5:
        fail(f"in {name} it differs from softmax attention by {found:.3g}")
    with torch.no_grad():
        if tags.padding and (found := gap(run(model, torch.where(real, ids, others)), out)) > 1e-5:
            fail(f"in {name} what stands at padding changes other tokens by {found:.3g}")
        if name == "Llama":
            first = torch.arange(tokens)[None].expand(2, -1) < 6
            changed = run(model, torch.where(first, ids, others))
            if (found := gap(changed[first[real]], out[first[real]])) > 1e-5:
                fail(f"in {name} later tokens change earlier ones by {found:.3g}")
    torch.autograd.backward(out.square().sum())
    for path, parameter in model.named_parameters():
        lacking = parameter.grad is None and ".core." in path
        if lacking or (parameter.grad is not None and not parameter.grad.isfinite().all()):
            fail(f"in {name} {path} gets {'no' if parameter.grad is None else 'not a finite'} gradient")
