"""Checks of attention variants at the levels core, module and model.

Cores are called on q, k, v of two heads with eight channels, unless an example says otherwise; modules start from a
softmax layer of the same sizes and are called on x. Nearly all rules are the same for both. What converts several
layers at once gets a small transformer on images of digits.
"""

from __future__ import annotations

from nasdistill.testing.checks.attention import bridges, cases, conversion, features, masks, plain, work

CONTEXT = {
    "geometry": "the `AttentionGeometry` to work on; two heads of eight channels unless given",
}
"""What an example's context may name."""

__all__ = ["bridges", "cases", "conversion", "features", "masks", "plain", "work"]
