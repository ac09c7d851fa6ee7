"""A student as a stock model of transformers: written, opened as a user would open it, and compared."""

from __future__ import annotations

from typing import Any

from nasdistill.bridge.stock import open_stock
from nasdistill.errors import TrialFailure, one_line
from nasdistill.files import write_json
from nasdistill.interfaces import ExportRequest, StockModel
from nasdistill_exporters._files import BATCHES, answer, told, trial_inputs, write_tensors
from nasdistill_exporters.heads import HfHead

TOLERANCE = 1e-5
"""Largest deviation relative to the largest output: fused kernels may add up in another order."""


def write_stock(request: ExportRequest, stock: StockModel, head: HfHead) -> dict[str, Any]:
    """Write ``config.json`` and ``model.safetensors``; return the facts of the export.

    Raises:
        TrialFailure: ``"export_failed"``: transformers does not open it, or tensors are missing or left over;
            ``"parity"``: it computes something else.
    """
    config = {"dtype": "float32", **stock.config, **head.config(request)}
    write_json(request.folder / "config.json", config)
    digest = write_tensors(stock.weights(request.model.state_dict()), request.folder / "model.safetensors")
    try:
        network, problems = open_stock(request.folder, head.auto)
    except Exception as error:  # whatever transformers raises on a configuration
        raise TrialFailure(
            "export_failed", f"transformers does not open the stock folder of {request.name}: {one_line(error)}"
        ) from error
    if problems:
        raise TrialFailure("export_failed", f"the stock folder of {request.name} is not complete: {problems}")
    largest, compared = 0.0, list(trial_inputs(request, lengths=True, padding=config.get("pad_token_id")))
    for inputs in compared:
        expected, found = (told(request, inputs, answer(model, inputs)) for model in (request.model, network))
        if found.shape != expected.shape:
            raise TrialFailure("parity", f"stock gives {tuple(found.shape)}, the student {tuple(expected.shape)}")
        difference = float((found - expected).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):  # NaN too
            raise TrialFailure("parity", f"the stock model of {request.name} deviates by {difference:.2g}")
        largest = max(largest, difference)
    return {
        "stock": config["architectures"][0],
        "code": [],
        "requires": ["torch", "transformers"],
        "parity": {
            "max_abs": largest,
            "inputs": len(compared),
            "batch_sizes": [len(request.example[0]), *BATCHES],
        },
        "weights_sha256": digest,
    }
