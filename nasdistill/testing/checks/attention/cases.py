"""How the checks call a variant: a core and a module in the same words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.interfaces import (
    AttentionContext,
    AttentionGeometry,
    AttentionMask,
    AttentionResult,
    AttentionView,
    Transformed,
)
from nasdistill.seeds import derive_seed, seeded, torch_generator
from nasdistill.spec.component import AttentionTags, Kind
from nasdistill.testing.kit.attention import SelfAttention, SmallEncoder, view_of, views_of
from nasdistill.testing.kit.models import built, digits
from nasdistill.testing.registry import exercise, fail
from nasdistill.testing.subject import Subject

SHORT, LONG = 7, 150
"""Lengths that checks use; the second is longer than the chunks and tiles of linear-time variants."""
CAUSAL = AttentionMask(causal=True)


def is_core(subject: Subject) -> bool:
    """Whether the variant computes from q, k, v."""
    return bool(subject.tags.level == "core")


def is_module(subject: Subject) -> bool:
    """Whether the variant owns its projections."""
    return bool(subject.tags.level == "module")


def is_layer(subject: Subject) -> bool:
    """Whether the variant is one layer: a core or a module."""
    return bool(subject.tags.level != "model")


def is_model(subject: Subject) -> bool:
    """Whether the variant converts several layers at once."""
    return bool(subject.tags.level == "model")


def is_causal(subject: Subject) -> bool:
    """Whether the variant is a layer that takes a causal mask; of a module's values alone nothing can be seen."""
    return is_layer(subject) and subject.tags.causal in (("strict", "values") if is_core(subject) else ("strict",))


def tagged(name: str, which: Callable[[Subject], bool]) -> Callable[[Subject], bool]:
    """Return whether a variant declares a feature, for one of the predicates above."""
    return lambda subject: which(subject) and bool(getattr(subject.tags, name))


def tags_of(subject: Subject) -> AttentionTags:
    """Return the declared tags."""
    tags = subject.tags
    if not isinstance(tags, AttentionTags):
        fail(f"its tags are {tags!r}, not AttentionTags")
    return tags


def geometry_of(subject: Subject, **sizes: Any) -> AttentionGeometry:
    """Return the sizes of a layer: the example's, or two heads of eight channels; `sizes` go before."""
    given = subject.context("geometry") or AttentionGeometry(16, 2, 8)
    if "heads" in sizes and "kv_heads" not in sizes:
        sizes["kv_heads"] = sizes["heads"]
    if "head_dim" in sizes and "value_dim" not in sizes:
        sizes["value_dim"] = sizes["head_dim"]
    changed = replace(given, **sizes)
    return replace(changed, dim=changed.heads * changed.head_dim)


def view(geometry: AttentionGeometry, seed: int = 0) -> AttentionView:
    """Return a softmax layer of these sizes with random weights."""
    with seeded(seed, "softmax layer"):
        return view_of(SelfAttention(geometry.dim, geometry.heads, geometry.kv_heads))


def layer_of(subject: Subject, *, seed: int = 0, dtype: torch.dtype = torch.float64, **sizes: Any) -> nn.Module:
    """Return a fresh layer in eval mode: a core, or a module that starts from a softmax layer."""
    geometry = geometry_of(subject, **sizes)
    with seeded(subject.seed, "layer", seed):
        if is_core(subject):
            layer = subject.create(geometry=geometry)
        else:
            layer = subject.load().from_softmax(view(geometry, seed), dict(subject.example.options), host=subject.host)
    if not isinstance(layer, nn.Module):
        fail(f"it gives a {type(layer).__name__}, not a torch module")
    return layer.to(dtype).eval()


def tensors(
    subject: Subject,
    n: int,
    m: int | None = None,
    *,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **sizes: Any,
) -> list[Tensor]:
    """Return random q, k and v ``(B, heads, tokens, channels)``, for a module x (and the source) ``(B, tokens, C)``."""
    geometry, generator = geometry_of(subject, **sizes), torch_generator(seed, "tokens")
    shapes: list[tuple[int, ...]]
    if is_core(subject):
        keys = (geometry.kv_heads, m or n)
        shapes = [(geometry.heads, n, geometry.head_dim), (*keys, geometry.head_dim), (*keys, geometry.value_dim)]
    else:
        shapes = [(n, geometry.dim)] if m is None else [(n, geometry.dim), (m, geometry.dim)]
    return [torch.randn(batch, *shape, dtype=dtype, generator=generator) for shape in shapes]


def attend(
    subject: Subject,
    layer: nn.Module,
    inputs: list[Tensor],
    mask: AttentionMask | None = None,
    *,
    copies: bool = True,
    **context: Any,
) -> AttentionResult:
    """Call a layer once, on copies of the inputs, with a context and a generator of its own."""
    ctx = AttentionContext(mask=mask, generator=torch_generator(subject.seed, "call"), **context)
    inputs = [x.clone() for x in inputs] if copies else inputs
    x, *source = inputs
    result = layer(*inputs, ctx) if is_core(subject) else layer(x, ctx, source[0] if source else None)
    if not isinstance(result, AttentionResult):
        fail(f"forward returns a {type(result).__name__}, not an AttentionResult")
    return result


def modes(subject: Subject) -> Iterator[tuple[str, AttentionMask | None]]:
    """Yield the masks under which self-attention is declared to work, with a name."""
    tags = tags_of(subject)
    if tags.bidirectional:
        yield "without a causal mask", None
    if tags.causal != "no":
        yield "with a causal mask", CAUSAL


def first_mode(subject: Subject) -> AttentionMask | None:
    """Return the first of `modes`."""
    found = next(modes(subject), None)
    if found is None:
        fail('the tags say causal="no" and bidirectional=False: then it works nowhere')
    return found[1]


def padded(mask: AttentionMask | None, key_valid: Tensor | None, query_valid: Tensor | None = None) -> Any:
    """Return a mask with padding added to it."""
    if key_valid is None and query_valid is None:
        return mask
    return AttentionMask(causal=mask is not None, key_valid=key_valid, query_valid=query_valid)


def softmax(
    subject: Subject,
    inputs: list[Tensor],
    mask: AttentionMask | None,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return what softmax attention gives: the definition for a core, the layer that a module started from."""
    if not is_core(subject):
        layer = SelfAttention(geometry_of(subject).dim, geometry_of(subject).heads, geometry_of(subject).kv_heads)
        known = view(geometry_of(subject))
        weights = {"q": (known.w_q, known.b_q), "k": (known.w_k, known.b_k), "v": (known.w_v, known.b_v)}
        with torch.no_grad():
            for name, (weight, bias_) in {**weights, "o": (known.w_o, known.b_o)}.items():
                part = getattr(layer, name)
                part.weight.copy_(weight)
                part.bias.copy_(bias_)
            out: Tensor = layer.double()(inputs[0], mask)
            return out
    q, k, v = inputs
    times = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if bias is None else scores + bias
    allowed = None if mask is None else mask.dense(q.shape[2], k.shape[2])
    scores = scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(-1) @ v


def gap(first: Tensor, second: Tensor) -> float:
    """Return the largest difference, as a share of the largest entry of `second` or of 1."""
    if first.shape != second.shape:
        fail(f"outputs of shapes {tuple(first.shape)} and {tuple(second.shape)} should be alike")
    if not first.numel():
        return 0.0
    scale = max(1.0, float(second.detach().abs().max()))
    return float((first - second).detach().abs().max()) / scale


def noise(x: Tensor, *names: str | int, scale: float = 10.0) -> Tensor:
    """Return other tokens of the same shape."""
    return scale * torch.randn(x.shape, dtype=x.dtype, generator=torch_generator(derive_seed(1, *names), "noise"))


def perturb(layer: nn.Module) -> nn.Module:
    """Move a layer's parameters away from where they start: what is zero at first would hide mistakes."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.add_(noise(parameter, name, scale=0.1))
    return layer


def encoder(subject: Subject, **options: int) -> SmallEncoder:
    """Return the model that conversions get, causal where nothing else is declared.

    Args:
        subject: the variant.
        options: of the model's class.
    """
    options.setdefault("causal", not tags_of(subject).bidirectional)
    model = built(SmallEncoder, **options)
    if not isinstance(model, SmallEncoder):
        raise TypeError("the kit builds something else")
    return model.eval()


def convert(subject: Subject, model: nn.Module, layers: list[int] | None = None) -> Transformed:
    """Convert some layers of a model, all of them unless others are given."""
    views = views_of(model)
    with seeded(subject.seed, "convert"):
        found = subject.create().convert(model, views, sorted(views) if layers is None else layers, [digits(16)])
    if not isinstance(found, Transformed):
        fail(f"convert() returns a {type(found).__name__}, not a Transformed")
    return found


@exercise(Kind.ATTENTION)
def use(subject: Subject) -> list[Any]:
    """Attend once in every mode, backwards too; convert a small transformer and run it."""
    found: list[Any] = []
    with subject.seeded():
        if is_model(subject):
            model = encoder(subject)
            made = subject.create().convert(model, views_of(model), [0, 1, 2], [digits(16)])
            return [made.model(digits(4).image).detach(), dict(made.model.state_dict()), dict(made.report)]
        for _, mask in modes(subject):
            layer = layer_of(subject, dtype=torch.float32)
            inputs = [x.requires_grad_() for x in tensors(subject, SHORT, dtype=torch.float32)]
            out = attend(subject, layer, inputs, mask).out
            torch.autograd.backward(out.square().sum())
            found += [out.detach(), *(x.grad for x in inputs), dict(layer.state_dict())]
    return found
