"""Attention variants of all three levels that break one rule each."""

from __future__ import annotations

import copy
import dataclasses
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from zoo_base import Broken

from nasdistill.errors import MismatchError
from nasdistill.interfaces import (
    AttentionCore,
    AttentionMask,
    AttentionResult,
    ModelAttention,
    ModuleAttention,
    Transformed,
    refuse_undeclared,
)
from nasdistill.spec.component import AttentionSpec, AttentionTags
from nasdistill.spec.io import Cost
from nasdistill.testing.kit.attention import SelfAttention

LITTLE = AttentionTags()
MUCH = AttentionTags(
    causal="strict", cross=True, gqa=True, padding=True, bias=True, exact=True, returns_map=True, decodes=True,
    patterns=True,
)  # fmt: skip


def spec(cls: type, **tags) -> AttentionSpec:
    """Return the spec of a class of this module; tags that are not given are the class'."""
    return AttentionSpec(
        cls.__name__.lower(), f"{__name__}:{cls.__name__}", "one of the zoo", references=("original",),
        tags=dataclasses.replace(cls.tags, **tags),
    )  # fmt: skip


# -- cores that are sound ---------------------------------------------------------------------------------------------


class Basic(AttentionCore):
    """Softmax attention, a little too sharp, that can do nothing special."""

    tags = LITTLE
    sharp = 1.2

    def refuse(self, q, k, ctx):
        refuse_undeclared(self.id, self.tags, q, k, ctx)

    def scores(self, q, k, ctx):
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if ctx.scale is None else ctx.scale)
        return self.sharp * scores if ctx.bias is None else self.sharp * scores + ctx.bias

    def weights(self, scores, allowed):
        if allowed is None:
            return scores.softmax(-1)
        return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1) * allowed

    def repeat(self, x, times):
        return x.repeat_interleave(times, dim=1)

    def remember(self, cache, k, v):
        cache.append((k, v))
        return (torch.cat(parts, dim=2) for parts in zip(*cache, strict=True))

    def forward(self, q, k, v, ctx):
        self.refuse(q, k, ctx)
        if ctx.cache is not None:
            k, v = self.remember(ctx.cache, k, v)
        times = q.shape[1] // k.shape[1]
        k, v = self.repeat(k, times), self.repeat(v, times)
        allowed = None if ctx.mask is None else ctx.mask.dense(q.shape[2], k.shape[2])
        weights = self.weights(self.scores(q, k, ctx), allowed)
        return AttentionResult(self.output(weights, v, ctx), map=weights if ctx.need_map else None)

    def output(self, weights, v, ctx):
        return weights @ v

    @classmethod
    def cost(cls, geometry, n, m, options=None):
        return Cost(0, geometry.heads * n * m * (geometry.head_dim + geometry.value_dim))


class Full(Basic):
    """Softmax attention that can do everything."""

    tags = MUCH
    sharp = 1.0

    def start_cache(self):
        return []


class Linear(AttentionCore):
    """Kernel attention without a causal mask."""

    tags = AttentionTags(complexity="n")

    def forward(self, q, k, v, ctx):
        refuse_undeclared(self.id, self.tags, q, k, ctx)
        q, k = F.elu(q) + 1.001, F.elu(k) + 1.001
        out = q @ (k.transpose(-1, -2) @ v) / (q @ k.sum(-2, keepdim=True).transpose(-1, -2))
        return AttentionResult(out)

    @classmethod
    def cost(cls, geometry, n, m, options=None):
        d, dv = geometry.head_dim, geometry.value_dim
        return Cost(0, geometry.heads * (m * d * dv + n * d * dv + n * d))


class Gain(Basic):
    """Has a parameter for each head, and one for each key/value head."""

    tags = dataclasses.replace(LITTLE, owns_parameters=True, gqa=True)

    def __init__(self, options=None, *, geometry, host=None):
        super().__init__(options, geometry=geometry, host=host)
        self.gain = nn.Parameter(torch.full((geometry.heads, 1, 1), 1.5))
        self.offset = nn.Parameter(torch.ones(geometry.kv_heads, 1, 1))

    def forward(self, q, k, v, ctx):
        return super().forward(q, k, v + self.offset, ctx)

    def output(self, weights, v, ctx):
        return self.gain * (weights @ v)

    @classmethod
    def cost(cls, geometry, n, m, options=None):
        return super().cost(geometry, n, m) + Cost(geometry.heads + geometry.kv_heads, 0)


class Stepwise(Basic):
    """Keeps the weights of step 0 for the steps after it, in the session."""

    tags = dataclasses.replace(LITTLE, stateful=True)

    def memory(self, ctx):
        return ctx.session

    def output(self, weights, v, ctx):
        kept = self.memory(ctx)
        if ctx.step == 0:
            kept["weights"] = weights
        return kept.get("weights", weights) @ v if ctx.step else weights @ v


class Ahead(Basic):
    """Lets all tokens, later ones too, decide how sharp the scores are."""

    tags = dataclasses.replace(LITTLE, causal="values")

    def scores(self, q, k, ctx):
        return super().scores(q, k, ctx) * (1 + q.mean((2, 3), keepdim=True).tanh())


class Hierarchical(Linear):
    """Kernel attention at every scale: each token is read once per power of two, as it were."""

    tags = AttentionTags(complexity="n log n")

    def forward(self, q, k, v, ctx):
        out = super().forward(q, k, v, ctx).out
        for _ in range(1, k.shape[2].bit_length()):
            out = out + super().forward(q, k, v, ctx).out
        return AttentionResult(out / k.shape[2].bit_length())

    @classmethod
    def cost(cls, geometry, n, m, options=None):
        return Cost(0, super().cost(geometry, n, m).macs * m.bit_length())


class Sorting(Linear):
    """Kernel attention on keys that are sorted first, whose product needs no more than before."""

    tags = AttentionTags(complexity="n log n")

    def forward(self, q, k, v, ctx):
        order = k.sum(-1).sort(dim=-1).indices[..., None]
        return super().forward(q, k.take_along_dim(order, 2), v.take_along_dim(order, 2), ctx)


class Near(Basic):
    """Attends to a token and the one before it, by shifting."""

    tags = AttentionTags(complexity="n*w")

    def forward(self, q, k, v, ctx):
        self.refuse(q, k, ctx)
        pairs = [(k, v), (F.pad(k, (0, 0, 1, 0))[:, :, :-1], F.pad(v, (0, 0, 1, 0))[:, :, :-1])]
        scale = q.shape[-1] ** -0.5 if ctx.scale is None else ctx.scale
        scores = [q.unsqueeze(-2) @ (near.unsqueeze(-1) * scale) for near, _ in pairs]
        weights = torch.cat(scores, dim=-1).softmax(-1)
        out = weights @ torch.stack([near for _, near in pairs], dim=-2)
        return AttentionResult(out.squeeze(-2))

    @classmethod
    def cost(cls, geometry, n, m, options=None):
        return Cost(0, geometry.heads * n * 2 * (geometry.head_dim + geometry.value_dim))


class Jumpy(Basic):
    """Scales its scores by a number that it reads out of a tensor."""

    tags = dataclasses.replace(LITTLE, exportable=False)

    def scores(self, q, k, ctx):
        return super().scores(q, k, ctx) * (2.0 if float(q.detach().abs().max()) < 1e9 else 0.0)


# -- cores that are broken --------------------------------------------------------------------------------------------


class Single(Basic):
    """Always returns float32."""

    def output(self, weights, v, ctx):
        return (weights @ v).float()


class Merged(Basic):
    """Returns the heads side by side."""

    def output(self, weights, v, ctx):
        return (weights @ v).transpose(1, 2).flatten(2)


class Mixing(Basic):
    """Adds the mean over the batch."""

    def output(self, weights, v, ctx):
        out = weights @ v
        return out + out.mean(0, keepdim=True)


class Scribbling(Basic):
    """Clears the values when it has read them."""

    def forward(self, q, k, v, ctx):
        found = super().forward(q, k, v, ctx)
        v.data.zero_()
        return found


class Sticky(Stepwise):
    """Keeps its state in itself."""

    tags = LITTLE

    def memory(self, ctx):
        return self.__dict__.setdefault("kept", {})


class Padded(Basic):
    """Honours padding."""

    tags = dataclasses.replace(LITTLE, padding=True)


class Hiding(Padded):
    """Bounds the values by the largest one, padded or not."""

    def output(self, weights, v, ctx):
        return weights @ (v / (v.abs().amax((1, 2, 3), keepdim=True) / 10).clamp_min(1))


class LogLength(Padded):
    """Sharpens the scores by the number of tokens, padded or not."""

    def scores(self, q, k, ctx):
        return super().scores(q, k, ctx) * torch.tensor(1.0 + k.shape[2]).log()


class Infinite(Padded):
    """Fills with -inf."""

    def weights(self, scores, allowed):
        return (scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))).softmax(-1)


class Routed(Padded):
    """Scales its output by the last token of the layer's input, padding or not."""

    def output(self, weights, v, ctx):
        out = super().output(weights, v, ctx)
        return out if ctx.layer_input is None else out * ctx.layer_input[:, -1, :4].sum(-1).sin()[:, None, None, None]


class Windows(Basic):
    """Honours windows only."""

    tags = dataclasses.replace(LITTLE, patterns=True)

    def forward(self, q, k, v, ctx):
        self.refuse(q, k, ctx)
        mask = ctx.mask and AttentionMask(window=ctx.mask.window)
        return super().forward(q, k, v, dataclasses.replace(ctx, mask=mask))


class Generous(Basic):
    """Takes every call, and ignores what it cannot do."""

    def refuse(self, q, k, ctx):
        ctx.mask = None


class Lenient(Basic):
    """Takes one thing that it does not declare, and does as it is asked."""

    allowed: ClassVar[dict[str, object]]

    def refuse(self, q, k, ctx):
        refuse_undeclared(self.id, dataclasses.replace(self.tags, **self.allowed), q, k, ctx)


class TakesCausal(Lenient):
    """Takes a causal mask."""

    allowed: ClassVar = {"causal": "strict"}


class TakesBidirectional(Lenient):
    """Does without a causal mask, too."""

    tags = dataclasses.replace(LITTLE, causal="strict", bidirectional=False)
    allowed: ClassVar = {"bidirectional": True}


class TakesCross(Lenient):
    """Takes other keys."""

    allowed: ClassVar = {"cross": True}


class TakesGroups(Lenient):
    """Takes grouped heads."""

    allowed: ClassVar = {"gqa": True}


class TakesPadding(Lenient):
    """Takes padding."""

    allowed: ClassVar = {"padding": True}


class TakesWindows(Basic):
    """Takes windows."""

    def refuse(self, q, k, ctx):
        if ctx.mask is None or ctx.mask.window is None:
            super().refuse(q, k, ctx)


class TakesPredicates(Basic):
    """Takes predicates."""

    def refuse(self, q, k, ctx):
        if ctx.mask is None or ctx.mask.predicate is None:
            super().refuse(q, k, ctx)


class TakesBias(Lenient):
    """Takes a bias."""

    allowed: ClassVar = {"bias": True}


class GivesMaps(Lenient):
    """Gives maps."""

    allowed: ClassVar = {"returns_map": True}


class Decodes(Lenient):
    """Decodes."""

    allowed: ClassVar = {"decodes": True}

    def start_cache(self):
        return []


class OnlyCausal(Basic):
    """Has no idea of attention without a causal mask."""

    tags = dataclasses.replace(LITTLE, causal="strict", bidirectional=False)


class OnlyWindowless(Basic):
    """Honours predicates only."""

    tags = dataclasses.replace(LITTLE, patterns=True)

    def forward(self, q, k, v, ctx):
        self.refuse(q, k, ctx)
        mask = ctx.mask and AttentionMask(predicate=ctx.mask.predicate)
        return super().forward(q, k, v, dataclasses.replace(ctx, mask=mask))


class Unpadded(Padded):
    """Leaves padding alone."""

    def forward(self, q, k, v, ctx):
        self.refuse(q, k, ctx)
        mask = ctx.mask and dataclasses.replace(ctx.mask, key_valid=None, query_valid=None)
        return super().forward(q, k, v, dataclasses.replace(ctx, mask=mask))


class Curt(Basic):
    """Refuses without saying what."""

    def refuse(self, q, k, ctx):
        try:
            super().refuse(q, k, ctx)
        except ValueError:
            raise ValueError(f"{self.id}: not supported") from None


class Interleaved(Basic):
    """Repeats grouped heads in the wrong order."""

    tags = dataclasses.replace(LITTLE, gqa=True)

    def repeat(self, x, times):
        return x.repeat(1, times, 1, 1)


class Shuffled(Gain):
    """The same, with parameters of its own."""

    def repeat(self, x, times):
        return x.repeat(1, times, 1, 1)


class Deaf(Basic):
    """Does not listen to another sequence."""

    tags = dataclasses.replace(LITTLE, cross=True)

    def forward(self, q, k, v, ctx):
        return super().forward(q, k, v * (q.shape[2] == k.shape[2]), ctx)


class Unbiased(Basic):
    """Takes a bias and leaves it."""

    tags = dataclasses.replace(LITTLE, bias=True)

    def scores(self, q, k, ctx):
        return super().scores(q, k, dataclasses.replace(ctx, bias=None))


class Mapless(Full):
    """Returns no map."""

    def forward(self, q, k, v, ctx):
        return AttentionResult(super().forward(q, k, v, ctx).out)


class Raw(Full):
    """Returns a map that is not normalised."""

    def forward(self, q, k, v, ctx):
        found = super().forward(q, k, v, ctx)
        return AttentionResult(found.out, map=None if found.map is None else 2 * found.map)


class Fading(Full):
    """Forgets the older tokens."""

    def remember(self, cache, k, v):
        k, v = super().remember(cache, k, v)
        return k[:, :, -8:], v[:, :, -8:]

    def forward(self, q, k, v, ctx):
        if ctx.cache is None or q.shape[2] > 1:
            return super().forward(q, k, v, dataclasses.replace(ctx, cache=None) if ctx.cache is not None else ctx)
        return super().forward(q, k, v, ctx)


class Sharp(Basic):
    """Has its own idea of the scale."""

    tags = dataclasses.replace(LITTLE, exact=True)


class Unscaled(Full):
    """Ignores the scale given."""

    def scores(self, q, k, ctx):
        return super().scores(q, k, dataclasses.replace(ctx, scale=None))


class Blocked(Basic):
    """Lets no gradient through to the values."""

    def output(self, weights, v, ctx):
        return weights @ v.detach()


class Straight(Basic):
    """Rounds the values and says that it does not."""

    def output(self, weights, v, ctx):
        return weights @ (v + (v.round() - v).detach())


class Unregistered(Basic):
    """Draws a random matrix that no state dict has."""

    def __init__(self, options=None, *, geometry, host=None):
        super().__init__(options, geometry=geometry, host=host)
        self.shift = torch.randn(geometry.head_dim)

    def scores(self, q, k, ctx):
        return super().scores(q * self.shift.to(q.dtype), k, ctx)


class Freeloading(Gain):
    """Does not count its parameters."""

    @classmethod
    def cost(cls, geometry, n, m, options=None):
        return Basic.cost(geometry, n, m)


class Cheap(Basic):
    """Counts one of its two products."""

    @classmethod
    def cost(cls, geometry, n, m, options=None):
        return Cost(0, geometry.heads * n * m * geometry.head_dim)


class Baked(Basic):
    """Turns a size of its values into a constant of the graph, where a graph is traced."""

    def scores(self, q, k, ctx):
        size = q.abs().mean((1, 2, 3), keepdim=True)
        return super().scores(q, k, ctx) * (torch.tensor(size.tolist()) if torch.jit.is_tracing() else size)


class Sampling(Basic):
    """Adds noise to the scores, from the generator of the call where there is one."""

    tags = dataclasses.replace(LITTLE, exportable=False)

    def scores(self, q, k, ctx):
        scores = super().scores(q, k, ctx)
        return scores + torch.randn(scores.shape[2:], generator=ctx.generator).to(scores)


# -- modules ----------------------------------------------------------------------------------------------------------


class Projected(ModuleAttention):
    """Softmax attention with projections of its own, one matrix for all."""

    tags = AttentionTags(
        level="module", causal="strict", gqa=True, padding=True, exact=True, owns_parameters=True, returns_map=True,
        decodes=True,
    )  # fmt: skip
    name = "projected"

    def __init__(self, view):
        super().__init__()
        times = view.geometry.heads // view.geometry.kv_heads
        self.heads, self.scale = view.geometry.heads, view.scale

        def spread(x):
            return x.unflatten(0, (view.geometry.kv_heads, -1)).repeat_interleave(times, dim=0).flatten(0, 1)

        self.qkv = nn.Parameter(torch.cat([view.w_q, spread(view.w_k), spread(view.w_v)]))
        self.shift = nn.Parameter(torch.cat([view.b_q, spread(view.b_k), spread(view.b_v)]))
        self.o = nn.Linear(*view.w_o.shape[::-1])
        with torch.no_grad():
            self.o.weight.copy_(view.w_o)
            self.o.bias.copy_(view.b_o)

    @classmethod
    def fits(cls, view):
        unfit = {"a rotary embedding": view.rotary, "cross attention": view.cross, "a norm of q and k": view.q_norm}
        for feature, there in unfit.items():
            if there:
                raise MismatchError(f"{cls.name} does not support {feature}")

    @classmethod
    def from_softmax(cls, view, options=None, *, host=None):
        cls.fits(view)
        return cls(view)

    def forward(self, x, ctx, source=None):
        if source is not None:
            raise ValueError(f"{self.name} does not support cross attention")
        q, k, v = F.linear(x, self.qkv, self.shift).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        refuse_undeclared(self.name, self.tags, q, k, ctx)
        if ctx.cache is not None:
            k, v = self.remember(ctx.cache, k, v)
        scores = q @ k.transpose(-1, -2) * self.scale
        allowed = None if ctx.mask is None else ctx.mask.dense(q.shape[2], k.shape[2])
        if allowed is None:
            weights = scores.softmax(-1)
        else:
            weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1) * allowed
        out = self.o((weights @ v).transpose(1, 2).flatten(2))
        return AttentionResult(out, map=weights if ctx.need_map else None)

    @classmethod
    def cost(cls, geometry, n, m, options=None):
        inner = geometry.heads * geometry.head_dim
        projections = Cost.linear(geometry.dim, 3 * inner, tokens=n) + Cost.linear(inner, geometry.dim, tokens=n)
        return projections + Cost(0, 2 * n * m * inner)

    def start_cache(self):
        return []

    def remember(self, cache, k, v):
        cache.append((k, v))
        return (torch.cat(parts, dim=2) for parts in zip(*cache, strict=True))


class Halting(Projected):
    """Attends to the newest tokens only when it decodes."""

    def remember(self, cache, k, v):
        return k, v


class Still(Projected):
    """Has nothing that is trained."""

    def __init__(self, view):
        super().__init__(view)
        self.requires_grad_(False)


class Unturned(Projected):
    """Takes layers with a rotary embedding for layers without."""

    @classmethod
    def fits(cls, view):
        super().fits(dataclasses.replace(view, rotary=None))


class Terse(Projected):
    """Refuses without saying what."""

    @classmethod
    def fits(cls, view):
        if view.rotary or view.cross or view.q_norm:
            raise MismatchError("this layer cannot be converted")


class Borrowing(Projected):
    """Takes the layer's own output matrix."""

    @classmethod
    def from_softmax(cls, view, options=None, *, host=None):
        found = super().from_softmax(view)
        found.o.weight = nn.Parameter(view.w_o)
        return found


# -- models -----------------------------------------------------------------------------------------------------------


class First(nn.Module):
    """An attention layer that leaves its map for the others."""

    def __init__(self, layer, shared):
        super().__init__()
        self.q, self.k, self.v, self.o = layer.q, layer.k, layer.v, layer.o
        self.heads, self.shared = layer.geometry.heads, shared

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x):
        q, k = self.split(self.q(x)), self.split(self.k(x))
        self.shared["map"] = self.keep((q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1))
        return self.o((self.shared["map"] @ self.split(self.v(x))).transpose(1, 2).flatten(2))

    def keep(self, weights):
        return weights


class Follower(First):
    """An attention layer that uses another one's map."""

    def __init__(self, layer, shared):
        super().__init__(layer, shared)
        del self.q, self.k

    def forward(self, x):
        return self.o((self.shared["map"] @ self.split(self.v(x))).transpose(1, 2).flatten(2))


class Echo(ModelAttention):
    """Lets the layers given share the map of the first of them."""

    tags = AttentionTags(level="model", exportable=False)
    first = First

    def twin(self, model):
        return copy.deepcopy(model)

    def refuse(self, view):
        strange = {"causal": view.geometry.causal, "grouped heads": view.geometry.kv_heads < view.geometry.heads}
        for feature, there in {**strange, "cross attention": view.cross}.items():
            if there:
                raise MismatchError(f"{self.id} does not convert layers with {feature}")

    def convert(self, model, views, layers, calibration):
        for layer in layers:
            self.refuse(views[layer])
        made, shared = self.twin(model), {}
        for place, layer in enumerate(self.chosen(views, layers)):
            parent, _, name = views[layer].path.rpartition(".")
            holder = made.get_submodule(parent)
            setattr(holder, name, (Follower if place else self.first)(getattr(holder, name), shared))
        return Transformed(made, self.report(layers), {"layers": list(layers)})

    def chosen(self, views, layers):
        return layers

    def report(self, layers):
        return {"maps": 1, "layers": list(layers)}


class Measuring(Echo):
    """Reports a tensor."""

    def report(self, layers):
        return {"kept": torch.ones(len(layers))}


class InPlace(Echo):
    """Converts the model it is given."""

    def twin(self, model):
        return model


class Greedy(Echo):
    """Converts all layers."""

    def chosen(self, views, layers):
        return sorted(views)


class Detached(First):
    """Leaves its map without its history."""

    def keep(self, weights):
        return weights.detach()


class Untrainable(Echo):
    """Lets no gradient through its map."""

    first = Detached


class Anyhow(Echo):
    """Converts what it does not understand."""

    def refuse(self, view):
        pass


class Mute(Echo):
    """Refuses without saying what."""

    def refuse(self, view):
        try:
            super().refuse(view)
        except MismatchError:
            raise MismatchError(f"{self.id} cannot convert this") from None


class Swapping(ModelAttention):
    """Puts layers of a class of its own in place of those given."""

    tags = AttentionTags(level="model", causal="strict", exact=True)
    layer = SelfAttention

    def convert(self, model, views, layers, calibration):
        made = copy.deepcopy(model)
        for place in layers:
            parent, _, name = views[place].path.rpartition(".")
            holder = made.get_submodule(parent)
            view, old = views[place], getattr(holder, name)
            if view.cross or view.geometry.kv_heads < view.geometry.heads:
                raise MismatchError(f"{self.id} converts neither cross attention nor grouped heads")
            new = self.layer(view.geometry.dim, view.geometry.heads, causal=view.geometry.causal)
            new.load_state_dict(old.state_dict(), strict=False)
            setattr(holder, name, new)
        return Transformed(made, {}, {})


class Uncausal(SelfAttention):
    def __init__(self, *sizes, causal):
        super().__init__(*sizes)


class Forgetting(Swapping):
    """Forgets causality on the way."""

    layer = Uncausal


class Doubled(SelfAttention):
    def forward(self, x, mask=None):
        return 2 * super().forward(x, mask)


class Louder(Swapping):
    """Doubles what its layers say."""

    tags = AttentionTags(level="model", causal="strict")
    layer = Doubled


class Averaged(SelfAttention):
    def forward(self, x, mask=None):
        return super().forward(x, mask) + x.mean(1, keepdim=True)


class Blurring(Louder):
    """Adds the mean over all tokens, later ones too."""

    tags = AttentionTags(level="model", causal="values")
    layer = Averaged


class Remembering(Doubled):
    last = 0.0

    def forward(self, x, mask=None):
        out = super().forward(x, mask)
        last, self.last = self.last, float(out.detach().abs().mean())
        return out + last


class Recalling(Louder):
    """Adds the mean of the last call."""

    tags = AttentionTags(level="model", causal="strict", exportable=False)
    layer = Remembering


class Scaled(SelfAttention):
    def __init__(self, *sizes, causal):
        super().__init__(*sizes, causal=causal)
        self.gain = nn.Parameter(torch.full((), 1.5))

    def forward(self, x, mask=None):
        return self.gain * super().forward(x, mask)


class Gaining(Louder):
    """Gives every layer a gain."""

    tags = AttentionTags(level="model", causal="strict", owns_parameters=True)
    layer = Scaled


SOUND = [spec(cls) for cls in (Full, Jumpy, Projected, Swapping)]
QUICK = (Linear, Gain, Stepwise, Ahead, Hierarchical, Sorting, Near, OnlyCausal, Echo, Blurring, Gaining)
SOUND_IF_QUICK = [spec(cls) for cls in QUICK]
REFUSED = "undeclared_features_are_refused"
BROKEN = [
    Broken("output_has_the_shape_of_the_queries", spec(Single), "torch.float32"),
    Broken("output_has_the_shape_of_the_queries", spec(Merged), "(2, 1, 16)"),
    Broken("batch_items_are_independent", spec(Mixing), "alone than in a batch"),
    Broken("inputs_are_left_alone", spec(Scribbling), "changes its input v"),
    Broken("stateful_is_true", spec(Sticky), "stateful=False"),
    Broken("stateful_is_true", spec(Sticky, stateful=True), "do not reset it"),
    Broken("stateful_is_true", spec(Basic, stateful=True), "leave nothing"),
    Broken("causality_is_true", spec(Ahead, causal="strict"), "change outputs before them"),
    Broken("looking_ahead_is_true", spec(OnlyCausal, causal="values"), 'declare "strict"'),
    Broken("padded_keys_change_nothing", spec(Hiding), "padded positions change"),
    Broken("padding_is_as_if_absent", spec(LogLength), "padded to 7"),
    Broken("empty_rows_are_zero", spec(Infinite), "not finite"),
    Broken("patterns_are_honoured", spec(Windows), "predicate"),
    Broken("patterns_are_honoured", spec(OnlyWindowless), "a window and a predicate"),
    Broken("works", spec(OnlyCausal, bidirectional=True), "attention without a causal mask"),
    Broken(REFUSED, spec(Generous), "causal is not declared"),
    Broken(REFUSED, spec(TakesCausal), "causal is not declared"),
    Broken(REFUSED, spec(TakesBidirectional), "bidirectional is not declared"),
    Broken(REFUSED, spec(TakesCross), "cross is not declared"),
    Broken(REFUSED, spec(TakesGroups), "gqa is not declared"),
    Broken(REFUSED, spec(TakesPadding), "padding is not declared"),
    Broken(REFUSED, spec(TakesWindows), "window is accepted"),
    Broken(REFUSED, spec(TakesPredicates), "predicate is accepted"),
    Broken(REFUSED, spec(TakesBias), "bias is not declared"),
    Broken(REFUSED, spec(GivesMaps), "returns_map is not declared"),
    Broken(REFUSED, spec(Decodes), "decodes is not declared"),
    Broken(REFUSED, spec(Projected, decodes=False), "decodes is not declared"),
    Broken("undeclared_features_are_refused", spec(Curt), "does not say causal"),
    Broken("grouped_heads_are_repeated_heads", spec(Interleaved), "repeated heads"),
    Broken("grouped_heads_are_repeated_heads", spec(Shuffled), "repeated heads"),
    Broken("cross_attention_works", spec(Deaf), "another source"),
    Broken("bias_shifts_the_scores", spec(Unbiased), "changes nothing"),
    Broken("map_is_true", spec(Mapless), "none is returned"),
    Broken("map_is_true", spec(Raw), "miss 1"),
    Broken("decoding_equals_the_full_pass", spec(Fading), "differs from the full pass"),
    Broken("decoding_equals_the_full_pass", spec(Halting), "differs from the full pass"),
    Broken("softmax_is_declared_exact", spec(Full, exact=False), "declare exact"),
    Broken("softmax_is_declared_exact", spec(Projected, exact=False), "declare exact"),
    Broken("softmax_is_declared_exact", spec(Swapping, exact=False), "declare exact"),
    Broken("exact_is_true", spec(Sharp), "differs from softmax"),
    Broken("exact_is_true", spec(Unscaled), "with a scale"),
    Broken("gradients_are_right", spec(Blocked), "v gets no gradient"),
    Broken("gradients_are_right", spec(Straight), "not that of the function"),
    Broken("state_dict_restores_the_layer", spec(Unregistered), "another instance"),
    Broken("owns_parameters_is_true", spec(Gain, owns_parameters=False), "gain"),
    Broken("owns_parameters_is_true", spec(Basic, owns_parameters=True), "its parameters are: none"),
    Broken("owns_parameters_is_true", spec(Projected, owns_parameters=False), "qkv"),
    Broken("owns_parameters_is_true", spec(Gaining, owns_parameters=False), "blocks.0.attn.gain"),
    Broken("owns_parameters_is_true", spec(Echo, owns_parameters=True), "its parameters are: none"),
    Broken("complexity_is_true", spec(Basic, complexity="n"), "grows as n^2"),
    Broken("complexity_is_true", spec(Basic, complexity="n*w"), "grows as n^2"),
    Broken("complexity_is_true", spec(Basic, complexity="n log n"), "grows as n^2"),
    Broken("complexity_is_true", spec(Linear, complexity="n^2"), "grows as n"),
    Broken("complexity_is_true", spec(Linear, complexity="n*w"), "that is n"),
    Broken("complexity_is_true", spec(Linear, complexity="n log n"), "no token is sorted"),
    Broken("complexity_is_true", spec(Hierarchical, complexity="n"), "grows as n log n"),
    Broken("complexity_is_true", spec(Hierarchical, complexity="n^2"), "grows as n log n"),
    Broken("complexity_is_true", spec(Near, complexity="n"), "that is n*w"),
    Broken("complexity_is_true", spec(Echo, complexity="n"), "grows as n^2"),
    Broken("cost_counts_the_parameters", spec(Freeloading), "cost() says 0 parameters"),
    Broken("cost_counts_the_operations", spec(Cheap), "counted are"),
    Broken("exportable_is_true", spec(Jumpy, exportable=True), "torch.export"),
    Broken("exportable_is_true", spec(Baked), "ONNX, TorchScript: the exported graph differs"),
    Broken("exportable_is_true", spec(Basic, exportable=False), "declare it"),
    Broken("exportable_is_true", spec(Recalling, exportable=True, stateful=True), "torch.export"),
    Broken("timm_bridge_agrees", spec(Sampling), "differs"),
    Broken("transformers_bridge_agrees", spec(Routed), "in BERT what stands at padding changes other tokens"),
    Broken("unfit_layers_are_refused", spec(Unturned), "rotary is ignored"),
    Broken("unfit_layers_are_refused", spec(Terse), "does not say rotary"),
    Broken("the_softmax_layer_is_left_alone", spec(Borrowing), "w_o"),
    Broken("conversion_gives_a_model_that_runs", spec(Measuring), "does not fit JSON"),
    Broken("conversion_leaves_the_model_alone", spec(InPlace), "changes"),
    Broken("only_the_given_layers_change", spec(Greedy), "only layers 1 and 2"),
    Broken("converted_models_can_be_trained", spec(Untrainable), "q.weight gets no gradient"),
    Broken("undeclared_layers_are_refused", spec(Anyhow), "causal is not declared"),
    Broken("undeclared_layers_are_refused", spec(Mute), "does not say causal"),
    Broken("undeclared_layers_are_refused", spec(Swapping, gqa=True), "gqa is declared, and such layers are refused"),
    Broken("undeclared_layers_are_refused", spec(Swapping, cross=True), "cross is declared"),
    Broken("undeclared_layers_are_refused", spec(Swapping, bidirectional=False), "bidirectional is not declared"),
    Broken("nothing_is_declared_that_cannot_be_asked", spec(Echo, padding=True), "padding"),
    Broken("nothing_is_declared_that_cannot_be_asked", spec(Echo, decodes=True, bias=True), "bias, decodes"),
    Broken("converted_models_are_causal", spec(Forgetting), "later tokens change earlier ones"),
    Broken("converted_models_are_causal", spec(Blurring, causal="strict"), "later tokens change earlier ones"),
    Broken("converted_models_are_causal", spec(Swapping, causal="values"), 'declare "strict"'),
    Broken("converted_models_remember_nothing", spec(Recalling), "stateful=False"),
    Broken("converted_models_remember_nothing", spec(Echo, stateful=True), "leaves no trace"),
    Broken("exact_conversion_changes_no_output", spec(Echo, exact=True), "outputs differ"),
]
