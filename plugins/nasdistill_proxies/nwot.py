r"""NASWOT: "Neural Architecture Search without Training" (arXiv:2006.04647).

Each activation unit splits the batch in two: the samples that switch it on and those that do not. With c_b the code
of sample b over all N units (1 where the input of the activation is positive),

    K_ij = N - Hamming(c_i, c_j),    score = log det K      (K [B, B])

Samples that an untrained network tells apart are easier to learn apart.

- Cost: one forward of one batch, and a determinant of size B; memory B x (units of the widest layer). No labels.
- Initialisation: the network's own. Mode: train (batch statistics).
- Orientation: higher is better. On the 9,445 live NAS-Bench-201 cells with the scores of NAS-Bench-Suite-Zero
  (arXiv:2210.03230) it ranks CIFAR-10 validation accuracy with Spearman .79 (parameters .75), but not at all within
  the best fifth of the cells. The number of units enters K, so it is a size measure too.
- Which activations: ReLU and its leaky or bounded kin, ELU, GELU, SiLU, Mish, Hardswish, as modules or as functions.
  Codes are read from the *input*, before an in-place activation overwrites it. Transformers contribute the units of
  their MLPs for every token.
- Departures: the determinant is taken in double precision, and a batch that the codes do not tell apart (two samples
  with one code, or fewer independent codes than samples) is a failure rather than a very negative number. The
  released code first runs a backward pass and counts only activations that received a gradient; here all count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nasdistill.errors import TrialFailure
from nasdistill.interfaces import Proxy, ProxyInput, ProxyScore

ACTIVATIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh, F.leaky_relu, F.prelu,
        F.elu, F.gelu, F.silu, F.mish, F.hardswish,
    }
)  # fmt: skip
"""The functions whose inputs are turned into codes; the activation modules call these."""


class ActivationCodes(TorchFunctionMode):
    """While active, hands the input of every activation to `sink`; the values computed are unchanged."""

    def __init__(self, sink: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._sink = sink

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record the input before `func` may overwrite it, then run `func` (calls inside it are not seen again)."""
        kwargs = kwargs or {}
        if func in ACTIVATIONS:
            self._sink(args[0] if args else kwargs["input"])
        return func(*args, **kwargs)


def code_kernel(code: Tensor) -> Tensor:
    """Return the agreements ``N - Hamming`` of one layer as (B, B) float64; `code` is (B, N) bool."""
    # Sums of zeros and ones are exact in float32 up to 2**24.
    on = code.to(torch.float32 if code.shape[1] < 2**24 else torch.float64)
    off = 1.0 - on
    return (on @ on.T + off @ off.T).double()


def log_determinant(kernel: Tensor, units: int) -> float:
    """Return log det K.

    Raises:
        TrialFailure: K is singular.
    """
    size = kernel.shape[0]
    pairs = int((kernel.triu(diagonal=1) == units).sum())
    if pairs:
        raise TrialFailure("degenerate", f"{pairs} pair(s) of samples have the same activation code ({units} units)")
    values = torch.linalg.eigvalsh(kernel)
    if float(values[0]) <= size * torch.finfo(torch.float64).eps * float(values[-1]):
        raise TrialFailure("degenerate", f"{units} units do not tell {size} samples apart; use a smaller batch")
    return float(torch.linalg.slogdet(kernel).logabsdet)


class Nwot(Proxy):
    """Log determinant of the agreement of activation codes."""

    def score(self, candidate: ProxyInput) -> ProxyScore:
        """Return the score; the number of units is a part.

        Raises:
            TrialFailure: no activation was seen, or the codes do not tell the samples apart.
        """
        size = candidate.batch.size
        kernels: list[Tensor] = []
        units = 0

        def record(value: Tensor) -> None:
            nonlocal units
            # Sample-major tensors only (windows or tokens folded into the batch axis included): an activation of a
            # learned table says nothing about the samples.
            if value.dim() >= 2 and value.shape[0] % size == 0 and value.numel() > 0:
                code = (value.detach() > 0).reshape(size, -1)
                kernels.append(code_kernel(code))
                units += code.shape[1]

        with torch.no_grad(), ActivationCodes(record):
            output = candidate.forward(candidate.model, candidate.batch)
        if not kernels:
            raise TrialFailure("unsupported", "the network has no ReLU, GELU, SiLU or similar activation")
        if not bool(torch.isfinite(output).all()):
            raise TrialFailure("degenerate", "the network's output is not finite")
        kernel = torch.stack(kernels).sum(dim=0)
        return ProxyScore(log_determinant(kernel, units), {"units": float(units)})
