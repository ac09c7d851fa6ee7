"""How much each head, neuron, channel and layer of a decoder matters, by forward passes alone.

For an activation ``act[b, s, i]`` of sample b, token s:

    a[b, i] = mean over the real tokens s of |act[b, s, i]|          score_i = sqrt(sum over samples b of a[b, i]^2)

- *channel* i of the residual stream: the sum of score_i over the outputs of all norms. One ranking for the whole
  network, as all layers share the stream.
- *neuron* i of an MLP: score_i of the input of its second linear (after the activation, the gated product where there
  is a gate); with `pre`, of the output of the first linear (of the gate), as the paper prints it.
- *query head*: the L2 norm of the scores of its D channels, before the output projection. *Group* of heads that share
  keys and values: the norm over all of them.
- *layer*: block influence, 1 - mean over real tokens of cos(x_in, x_out); or how much the language model's loss rises
  when the layer is left out.

All sums are in float32; padded tokens are left out. Cost: one forward per batch, for the loss one more per layer.

Source: "Compact Language Models via Pruning and Knowledge Distillation" (Minitron), arXiv 2407.14679; block influence,
"ShortGPT", arXiv 2403.03853. The order of absolute value, mean, square and sum is that of the released code, as is
taking a head's norm last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.interfaces import Batch
from nasdistill.measure.counting import evaluating
from nasdistill_spaces.decoder.model import DecoderNet


class Importance:
    """Scores of every part of a decoder on calibration batches; higher is more important.

    Args:
        model: left as it was.
        calibration: batches with ``input_ids`` and, where there is padding, ``attention_mask``.
        pre: score neurons before the activation.
        layers: how layers are scored: ``bi``, or ``ppl`` for the rise of the loss.

    Attributes:
        channels: ``(C,)``.
        heads: for each layer ``(H,)``.
        groups: for each layer ``(G,)``.
        neurons: for each layer ``(F,)``.
        layers: ``(L,)``.
    """

    def __init__(
        self, model: DecoderNet, calibration: Sequence[Batch], *, pre: bool = False, layers: Literal["bi", "ppl"] = "bi"
    ) -> None:
        self._squares: dict[str, Tensor] = {}
        self._influence: dict[int, Tensor] = {}
        self._tokens = torch.zeros(())
        self._mask = torch.zeros(0, 0)
        shape = model.shape
        norms = [name for name, _ in model.named_modules() if name.endswith("norm")]
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            stack.enter_context(torch.no_grad())
            for name in norms:
                stack.callback(_hook(model.get_submodule(name), self._output(name)))
            for index in range(shape.layers):
                at = f"layers.{index}"
                first = f"{at}.mlp.gate_proj" if shape.gated else f"{at}.mlp.up_proj"
                stack.callback(_hook(model.get_submodule(f"{at}.self_attn.o_proj"), self._input(f"{at}.heads")))
                if pre:
                    stack.callback(_hook(model.get_submodule(first), self._output(f"{at}.neurons")))
                else:
                    stack.callback(_hook(model.get_submodule(f"{at}.mlp.down_proj"), self._input(f"{at}.neurons")))
                stack.callback(_hook(model.get_submodule(at), self._layer(index)))
            for batch in calibration:
                run(model, batch, self._start)
        scores = {name: squares.sqrt() for name, squares in self._squares.items()}
        self.channels = torch.stack([scores[name] for name in norms]).sum(0)
        self.neurons = [scores[f"layers.{index}.neurons"] for index in range(shape.layers)]
        self.heads, self.groups = [], []
        for index in range(shape.layers):
            parts = scores[f"layers.{index}.heads"].reshape(shape.heads[index], shape.head_dim)
            self.heads.append(parts.norm(dim=1))
            self.groups.append(parts.reshape(shape.kv_heads[index], -1).norm(dim=1))
        if layers == "ppl":
            self.layers = loss_rise(model, calibration)
        else:
            found = [1.0 - self._influence[index] / self._tokens for index in range(shape.layers)]
            self.layers = torch.stack(found)

    def _start(self, mask: Tensor) -> None:
        """Note which tokens of the coming batch are real, ``(B, N)``."""
        self._mask = mask
        self._tokens = self._tokens.to(mask.device) + mask.sum()

    def _add(self, name: str, seen: Tensor) -> None:
        """Add one batch's part of the sum of squares for ``(B, N, K)`` activations."""
        weights = self._mask / self._mask.sum(1, keepdim=True).clamp_min(1.0)
        means = (seen.float().abs() * weights[..., None]).sum(1)
        self._squares[name] = self._squares.get(name, 0.0) + means.square().sum(0)

    def _output(self, name: str) -> Callable[..., None]:
        return lambda module, args, output: self._add(name, output)

    def _input(self, name: str) -> Callable[..., None]:
        return lambda module, args, output: self._add(name, args[0])

    def _layer(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            cosine = F.cosine_similarity(args[0].float(), output.float(), dim=-1)
            self._influence[index] = (
                self._influence.get(index, torch.zeros_like(self._tokens)) + (cosine * self._mask).sum()
            )

        return hook


def _hook(module: nn.Module, hook: Callable[..., Any]) -> Callable[[], None]:
    """Register a forward hook and return what removes it."""
    return module.register_forward_hook(hook).remove


def run(model: DecoderNet, batch: Batch, start: Callable[[Tensor], None] = lambda mask: None) -> tuple[Tensor, Batch]:
    """Run a decoder on a batch, wherever it is; return the logits and the batch there.

    Args:
        model: the decoder.
        batch: with ``input_ids`` and perhaps ``attention_mask``.
        start: called before with the float mask ``(B, N)`` of the real tokens.
    """
    batch = batch.to(model.embed_tokens.weight.device)
    ids, mask = batch.inputs["input_ids"], batch.inputs.get("attention_mask")
    start(torch.ones(ids.shape, device=ids.device) if mask is None else (mask != 0).float())
    return model(ids, mask), batch


def language_loss(model: DecoderNet, calibration: Sequence[Batch]) -> Tensor:
    """Return the mean cross entropy of the next token over all real tokens, a float64 scalar."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in calibration:
        logits, moved = run(model, batch)
        ids, mask = moved.inputs["input_ids"], moved.inputs.get("attention_mask")
        labels = ids if mask is None else ids.masked_fill(mask == 0, -100)
        losses = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        total += losses.double().cpu()
        count += int((labels[:, 1:] != -100).sum())
    return total / max(1, count)


def loss_rise(model: DecoderNet, calibration: Sequence[Batch]) -> Tensor:
    """Return for each layer how much the loss rises when it is left out, ``(L,)``.

    Raises:
        ValueError: the model gives no logits for every token.
    """
    if model.shape.head != "causal_lm":
        raise ValueError("layers are ranked by the language model's loss, and this model has none")
    with torch.no_grad(), evaluating(model):
        whole, found = language_loss(model, calibration), []
        for layer in model.layers:
            handle = layer.register_forward_hook(lambda module, args, output: args[0])
            try:
                found.append(language_loss(model, calibration) - whole)
            finally:
                handle.remove()
    return torch.stack(found).float()
