"""Sites and traces: the names of signals inside a model, and the tensors of one forward under those names.

Canonical sites, per layer i counted from 0: ``q.i k.i v.i`` (after the head split, ``(B, H, N, D)``), ``context.i``
(attention output before the output projection, ``(B, H, N, D)``), ``attn_out.i`` (after it, ``(B, N, C)``),
``ffn_out.i``, ``norm.i``, ``hidden.i`` (block output, ``(B, N, C)``), ``features.i`` (CNN stage maps ``(B, C, H, W)``),
``embedding`` (input of the first block), ``pooled`` (input of the classifier, ``(B, C)``), ``logits`` (the task
output). ``scores.i`` (pre-softmax) and ``attention.i`` (the map) are recomputed from q and k in float32, so fused
kernels stay in place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

LAYERED = ("q", "k", "v", "scores", "attention", "context", "attn_out", "ffn_out", "norm", "hidden", "features")
"""Site names that carry a layer index."""
SINGLE = ("embedding", "pooled", "logits")
"""Site names that occur once in a model."""

_PATTERN = re.compile(r"^([a-z_]+)(?:\.(-?\d+))?$")


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """A named place in a model.

    Attributes:
        name: one of `LAYERED` or `SINGLE`.
        layer: layer index from 0; negative counts from the end until resolved; None for `SINGLE`.
    """

    name: str
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.name in LAYERED:
            if self.layer is None:
                raise ValueError(f"site {self.name!r} needs a layer, such as '{self.name}.0' or '{self.name}.-1'")
        elif self.name in SINGLE:
            if self.layer is not None:
                raise ValueError(f"site {self.name!r} has no layers")
        else:
            raise ValueError(f"unknown site {self.name!r}; known: {', '.join((*LAYERED, *SINGLE))}")

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read ``"hidden.3"``, ``"q.-1"`` or ``"logits"``."""
        match = _PATTERN.match(text)
        if match is None:
            raise ValueError(f"{text!r} is not a site; write 'hidden.3', 'q.-1' or 'logits'")
        return cls(match[1], None if match[2] is None else int(match[2]))

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name}.{self.layer}"


@dataclass(frozen=True, slots=True)
class SiteShape:
    """Shape of a site's signal without the batch axis, and how to read it.

    Attributes:
        shape: ``(N, C)`` for tokens, ``(C, H, W)`` for maps, ``(H, N, D)`` for heads, ``(C,)`` for vectors.
        layout: which of these.
        causal: for attention sites.
        grid: ``(h, w)`` of the token grid, where tokens are image patches.
    """

    shape: tuple[int, ...]
    layout: Literal["tokens", "map", "heads", "vector", "scores"]
    causal: bool = False
    grid: tuple[int, int] | None = None

    @property
    def width(self) -> int:
        """Number of channels: C, or H * D for heads."""
        if self.layout == "tokens":
            return self.shape[-1]
        if self.layout == "heads":
            return self.shape[0] * self.shape[2]
        return self.shape[0]

    @property
    def heads(self) -> int | None:
        """Number of heads, for attention sites."""
        return self.shape[0] if self.layout in ("heads", "scores") else None


@dataclass(frozen=True, slots=True)
class ModelGeometry:
    """All sites of one model, with shapes: what a loss needs to know before the first step.

    Attributes:
        sites: every site that can be captured.
        layers: number of blocks (0 for models without).
        stages: number of feature maps.
        label: how to name the model in messages (``"student"``, ``"teacher timm:resnet18"``).
    """

    sites: Mapping[Site, SiteShape]
    layers: int = 0
    stages: int = 0
    label: str = "model"

    def count(self, name: str) -> int:
        """Return how many layers have a site of this name."""
        return len({site.layer for site in self.sites if site.name == name})

    def resolve(self, site: Site) -> Site:
        """Return `site` with a non-negative layer.

        Raises:
            KeyError: this model has no such site; the text names it, the model and what exists.
        """
        if site.layer is not None and site.layer < 0:
            layers = sorted({s.layer for s in self.sites if s.name == site.name and s.layer is not None})
            if -site.layer <= len(layers):
                return Site(site.name, layers[site.layer])
        elif site in self.sites:
            return site
        names = sorted({s.name for s in self.sites})
        raise KeyError(f"{self.label} has no site {site}; it has {', '.join(names) or 'none'} ({self.layers} layers)")

    def __getitem__(self, site: Site | str) -> SiteShape:
        return self.sites[self.resolve(Site.parse(site) if isinstance(site, str) else site)]

    def __contains__(self, site: object) -> bool:
        try:
            self.resolve(Site.parse(site) if isinstance(site, str) else site)  # type: ignore[arg-type]
        except (KeyError, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class SiteNeeds:
    """Which sites a loss wants from each side; nothing else is captured."""

    student: frozenset[Site] = frozenset()
    teacher: frozenset[Site] = frozenset()

    @classmethod
    def of(cls, student: Iterable[str | Site] = (), teacher: Iterable[str | Site] = ()) -> SiteNeeds:
        """Build from texts or sites."""

        def read(sites: Iterable[str | Site]) -> frozenset[Site]:
            return frozenset(Site.parse(s) if isinstance(s, str) else s for s in sites)

        return cls(read(student), read(teacher))

    def __or__(self, other: SiteNeeds) -> SiteNeeds:
        return SiteNeeds(self.student | other.student, self.teacher | other.teacher)


@dataclass(frozen=True, slots=True)
class Signal:
    """One captured tensor and how to read it.

    Attributes:
        tensor: batch first, then as in :class:`SiteShape`.
        layout: see :class:`SiteShape`.
        mask: for attention sites, what each query may see: bool, broadcastable to ``(B, H, N, M)``, True = attend;
            None = all.
        bias: additive score bias, broadcastable to ``(B, H, N, M)``; None = none.
        scale: factor on q.k (usually ``D ** -0.5``).
        causal: whether position i sees only j <= i (already part of `mask` where that is given).
        valid: ``(B, N)`` bool, False at padding; None = all valid.
        grid: ``(h, w)`` of the token grid, where known.
    """

    tensor: Tensor
    layout: Literal["tokens", "map", "heads", "vector", "scores"]
    mask: Tensor | None = None
    bias: Tensor | None = None
    scale: float | None = None
    causal: bool = False
    valid: Tensor | None = None
    grid: tuple[int, int] | None = None

    def detach(self) -> Signal:
        """Return the signal cut from autograd."""
        return Signal(
            self.tensor.detach(), self.layout, self.mask, self.bias, self.scale, self.causal, self.valid, self.grid
        )


@dataclass(slots=True)
class Trace:
    """The signals of one forward.

    Attributes:
        signals: site -> signal; only what was asked for.
        members: traces of the single networks where a teacher has several (different labels, modalities).
        weights: weight of each member; ``(M,)`` or per sample ``(B, M)``.
    """

    signals: dict[Site, Signal] = field(default_factory=dict)
    members: tuple[Trace, ...] = ()
    weights: Tensor | None = None

    def __getitem__(self, site: Site | str) -> Tensor:
        """Return a site's tensor; ``attention.i`` and ``scores.i`` are recomputed from q and k when not captured."""
        return self.signal(site).tensor

    def __contains__(self, site: object) -> bool:
        key = Site.parse(site) if isinstance(site, str) else site
        return key in self.signals

    def __iter__(self) -> Iterator[Site]:
        return iter(self.signals)

    def signal(self, site: Site | str) -> Signal:
        """Return a site's tensor with its layout, mask and scale.

        Raises:
            KeyError: not captured; a loss must name in `sites()` what it reads.
        """
        key = Site.parse(site) if isinstance(site, str) else site
        if key in self.signals:
            return self.signals[key]
        if key.name in ("scores", "attention") and Site("q", key.layer) in self.signals:
            return self._recompute(key)
        captured = ", ".join(str(s) for s in sorted(self.signals, key=str)) or "nothing"
        raise KeyError(f"site {key} was not captured (captured: {captured}); name it in sites()")

    @property
    def logits(self) -> Tensor:
        """The task output."""
        return self[Site("logits")]

    def detach(self) -> Trace:
        """Return the trace cut from autograd, members included."""
        return Trace(
            {site: signal.detach() for site, signal in self.signals.items()},
            tuple(member.detach() for member in self.members),
            None if self.weights is None else self.weights.detach(),
        )

    def _recompute(self, site: Site) -> Signal:
        """Scores or map of one layer from its q and k, in float32 whatever autocast says; fully masked rows are 0."""
        query, key = self.signals[Site("q", site.layer)], self.signals[Site("k", site.layer)]
        with torch.autocast(device_type=query.tensor.device.type, enabled=False):
            q, k = query.tensor.float(), key.tensor.float()
            if k.shape[1] != q.shape[1]:
                k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
            scale = query.scale if query.scale is not None else q.shape[-1] ** -0.5
            scores = q @ k.transpose(-1, -2) * scale
            if query.bias is not None:
                scores = scores + query.bias
            allowed = query.mask
            if query.causal and allowed is None:
                n, m = scores.shape[-2:]
                allowed = torch.ones(n, m, dtype=torch.bool, device=scores.device).tril(m - n)
            if allowed is not None:
                scores = scores.masked_fill(~allowed, float("-inf"))
            if site.name == "attention":
                scores = torch.softmax(scores, dim=-1).nan_to_num(0.0)
        return Signal(scores, "scores", mask=allowed, causal=query.causal, valid=query.valid, grid=query.grid)
