"""What several variants need: grouped heads, precision, masked softmax, the causal product of linear attention."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from nasdistill.interfaces import AttentionMask, static_shape

SMALL = 32 * 32
"""Up to this many (query, key) pairs the linear-time variants compute the full N x M product.

Same function, fewer and larger operations: on one CPU thread with onnxruntime it takes 0.7 of the linear form's time
at 16 tokens, as much at 64, and 1.9 times as much at 196 (4 heads of 16 to 32 channels).
"""


@dataclass(slots=True)
class KeyValueCache:
    """Keys ``(B, G, M, D)`` and values ``(B, G, M, Dv)`` of the tokens so far."""

    k: Tensor | None = None
    v: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add new tokens and return all of them."""
        self.k = k if self.k is None else torch.cat([self.k, k], dim=2)
        self.v = v if self.v is None else torch.cat([self.v, v], dim=2)
        return self.k, self.v


@dataclass(slots=True)
class StateCache:
    """The running state of a recurrent form: constant size, whatever the number of tokens so far."""

    state: Any = None


def repeat_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat each key/value head for the query heads of its group: ``(B, G, M, D)`` to ``(B, H, M, D)``."""
    times = static_shape(q)[1] // static_shape(k)[1]
    if times == 1:
        return k, v
    return k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)


def widen(x: Tensor) -> Tensor:
    """Return `x` in float32 where it is narrower: long sums in half precision drift."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def as_dtype(x: Tensor, like: Tensor) -> Tensor:
    """Return `x` in the type of `like`; an exported graph gets no cast where the types agree already."""
    return x if x.dtype == like.dtype else x.to(like.dtype)


def no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which matrix products keep the precision of their inputs.

    Entered only when autocast is on, so that traced and exported graphs do not contain it.
    """
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return the softmax over the last axis of the entries that `mask` allows; rows without any are 0.

    Filling with the lowest finite number, not -inf, keeps such rows and their gradients finite.
    """
    lowest = torch.finfo(scores.dtype).min
    if mask is None:
        return scores.clamp_min(lowest).softmax(dim=-1)
    return scores.masked_fill(~mask, lowest).clamp_min(lowest).softmax(dim=-1) * mask


def nonzero(total: Tensor) -> Tensor:
    """Return a sum of positive weights to divide by: where nothing was summed, x / inf is 0, its gradient too."""
    return total.masked_fill(total <= 0, float("inf"))


def validity(mask: AttentionMask | None, queries: int, keys: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the query and key padding masks as ``(B, 1, N, 1)`` and ``(B, 1, M, 1)`` bool, None where not given.

    When decoding, a mask over all keys so far is cut to the newest `keys`, the only ones that the state has not seen.
    """
    if mask is None:
        return None, None
    query_valid, key_valid = mask.query_valid, mask.key_valid
    return (
        None if query_valid is None else query_valid[:, None, -queries:, None],
        None if key_valid is None else key_valid[:, None, -keys:, None],
    )


def causal_product(q: Tensor, k: Tensor, v: Tensor, chunk: int, state: Tensor | None = None) -> Tensor:
    """Return ``out_t = q_t . (state + sum_{u<=t} k_u^T v_u)`` in linear time.

    Within a chunk of C tokens the product is explicit (C x C); earlier chunks enter through their summed D x Dv states.
    Cost: N C (D + Dv) + 2 N D Dv multiply-accumulates per head.

    Args:
        q: ``(B, H, N, D)``.
        k: ``(B, H, N, D)``.
        v: ``(B, H, N, Dv)``.
        chunk: tokens per chunk.
        state: ``(B, H, D, Dv)`` of the tokens before the first; None = 0.
    """
    _, heads, n, _ = static_shape(q)
    # Multiplying by a mask: `tril` on many small matrices takes longer than the products themselves.
    size = min(n, chunk)
    past = torch.ones(size, size, dtype=q.dtype, device=q.device).tril()
    if n <= chunk:
        out = (q @ k.transpose(-1, -2) * past) @ v
        return out if state is None else out + q @ state
    chunks = -(-n // chunk)
    padding = (0, 0, 0, chunks * chunk - n)
    # All sizes but the batch are plain numbers, which keeps an exported graph free of shape arithmetic.
    q, k, v = (F.pad(x, padding).reshape(-1, heads, chunks, chunk, static_shape(x)[-1]) for x in (q, k, v))
    totals = (k.transpose(-1, -2) @ v).cumsum(dim=2)
    # The state before chunk c is the total after chunk c - 1, taken as such: subtracting a chunk's own share from its
    # total would let rounding carry later tokens into earlier outputs.
    before = F.pad(totals[:, :, :-1], (0, 0, 0, 0, 1, 0))
    if state is not None:
        before = before + state.unsqueeze(2)
    out = (q @ k.transpose(-1, -2) * past) @ v + q @ before
    return out.reshape(-1, heads, chunks * chunk, static_shape(v)[-1])[:, :, :n]


def causal_product_macs(n: int, chunk: int, dim: int, value_dim: int) -> int:
    """Return the multiply-accumulates of `causal_product` for one head without an initial state."""
    if n <= chunk:
        return n * n * (dim + value_dim)
    padded = -(-n // chunk) * chunk
    return padded * chunk * (dim + value_dim) + 2 * padded * dim * value_dim


def constant(array: npt.NDArray[Any], like: Tensor) -> Tensor:
    """Return a fixed array as a tensor on the device of `like`; in an exported graph it is a stored constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns that the array becomes a constant, which is what we want
        return torch.from_numpy(array).to(like.device)
