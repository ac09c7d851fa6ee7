"""Bundled plugin proxies: training-free scores of untrained students, and the two sizes they have to beat.

Every score is oriented so that higher is better. Parameters and multiply-accumulates are proxies too: a score that
ranks no better than they do has told nothing new.
"""

from __future__ import annotations

from nasdistill import hookimpl
from nasdistill.spec.component import ProxySpec, ProxyTags


@hookimpl
def nasdistill_proxies() -> list[ProxySpec]:
    """Return the bundled proxies."""
    return [
        ProxySpec(
            "params",
            "nasdistill_proxies.params:Params",
            "Number of parameters; the baseline every proxy must beat.",
            references=("arXiv:2210.03230",),
            tags=ProxyTags(needs_data=False, cost="analytic", mode="eval"),
        ),
        ProxySpec(
            "macs",
            "nasdistill_proxies.macs:Macs",
            "Multiply-accumulates of one forward; the second baseline.",
            references=("arXiv:2210.03230",),
            tags=ProxyTags(needs_data=False, cost="analytic", mode="eval"),
        ),
        ProxySpec(
            "grad_norm",
            "nasdistill_proxies.grad_norm:GradNorm",
            "Sum over layers of the norm of the loss gradient.",
            references=("arXiv:2101.08134",),
            tags=ProxyTags(needs_labels=True, needs_backward=True, cost="backward"),
        ),
        ProxySpec(
            "snip",
            "nasdistill_proxies.snip:Snip",
            "Connection sensitivity |w * dL/dw|, summed over the network.",
            references=("arXiv:1810.02340", "arXiv:2101.08134"),
            left_out="The pruning itself; only the saliency is used, summed as an architecture score.",
            tags=ProxyTags(needs_labels=True, needs_backward=True, cost="backward"),
        ),
        ProxySpec(
            "synflow",
            "nasdistill_proxies.synflow:SynFlow",
            "Logarithm of the synaptic flow of the positive, un-normalised network; needs no data.",
            options="nasdistill_proxies.synflow:SynFlowOptions",
            references=("arXiv:2006.05467", "arXiv:2101.08134"),
            left_out="The iterative pruning; only the flow at initialisation is used.",
            tags=ProxyTags(needs_data=False, needs_backward=True, cost="backward", mode="eval"),
        ),
        ProxySpec(
            "nwot",
            "nasdistill_proxies.nwot:Nwot",
            "NASWOT: log determinant of the agreement of activation codes over a batch.",
            references=("arXiv:2006.04647",),
            tags=ProxyTags(cost="forward"),
        ),
        ProxySpec(
            "jacov",
            "nasdistill_proxies.jacov:Jacov",
            "Spectrum of the correlation of the samples' input Jacobians.",
            options="nasdistill_proxies.jacov:JacovOptions",
            references=("arXiv:2006.04647", "arXiv:2101.08134"),
            tags=ProxyTags(needs_backward=True, cost="backward"),
        ),
        ProxySpec(
            "zico",
            "nasdistill_proxies.zico:ZiCo",
            "ZiCo: inverse coefficient of variation of the gradients over two batches.",
            options="nasdistill_proxies.zico:ZiCoOptions",
            references=("arXiv:2301.11300",),
            tags=ProxyTags(needs_labels=True, needs_backward=True, cost="backward"),
        ),
        ProxySpec(
            "diswot",
            "nasdistill_proxies.diswot:DisWot",
            "DisWOT: agreement of the untrained student with its teacher, semantic and relation terms.",
            options="nasdistill_proxies.diswot:DisWotOptions",
            references=("arXiv:2303.15678",),
            left_out="The Grad-CAM form of the semantic term.",
            tags=ProxyTags(needs_labels=True, needs_teacher=True, needs_backward=True, cost="backward"),
        ),
        ProxySpec(
            "cka",
            "nasdistill_proxies.cka:Cka",
            "Linear CKA between the stages of the untrained student and of its teacher.",
            options="nasdistill_proxies.cka:CkaOptions",
            references=("arXiv:1905.00414", "Zheng et al., CVPR 2022 (RMI-NAS)"),
            left_out="RMI-NAS's short training on the batch and its random forest; here nothing is trained.",
            tags=ProxyTags(needs_teacher=True, cost="forward"),
        ),
    ]
