"""A Hugging Face folder that loads without nasdistill.

Where a class of transformers can be configured to what the student computes, the folder is an ordinary one: no code,
and ``from_pretrained`` needs no trust. A space takes part by answering ``stock_model``.

The shapes of most searched networks differ from layer to layer, or have heads whose width no stock configuration can
say. Then the folder brings its own code: the source of the network and of its attention variants, copied out of the
packages that define them (see :mod:`nasdistill_exporters.vendoring`), opened with ``trust_remote_code=True``. A space
takes part by answering ``modeling_source``.

Either way the folder is opened and compared with the student before it counts as written. Text models bring their
tokenizer, causal language models the ids that ``generate`` begins, ends and fills up with, and encoders of sentences
what the package sentence-transformers reads.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from nasdistill.errors import UsageError
from nasdistill.files import write_json, write_text
from nasdistill.interfaces import Exporter, ExportRequest
from nasdistill.spec.options import ComponentOptions
from nasdistill_exporters._files import complete_or_empty
from nasdistill_exporters.card import model_card
from nasdistill_exporters.heads import HEADS
from nasdistill_exporters.hf_code import write_code
from nasdistill_exporters.hf_stock import write_stock
from nasdistill_exporters.hf_text import write_text_files


class HuggingFaceOptions(ComponentOptions):
    """Options of `hf`."""

    code: Literal["auto", "always"] = Field(
        "auto", description="`auto` writes a stock model where one fits the student, `always` its own code."
    )


class HuggingFaceFolder(Exporter):
    """Configuration, weights, code where it takes any, tokenizer, and a model card with the student's lineage."""

    options_model = HuggingFaceOptions
    options: HuggingFaceOptions

    def export(self, request: ExportRequest) -> dict[str, Any]:
        """Write the folder; see :class:`Exporter`.

        Returns:
            ``stock`` (the class of transformers, None with code), ``code`` (the files), ``requires`` (packages they
            import), ``parity`` (``max_abs`` is 0.0 for code), ``auto`` (the class that opens it), ``opens_with`` (the
            call that does).

        Raises:
            UsageError: transformers has no such kind of model, a transform changed the network, or the space does not
                say how its networks are built from data.
            TrialFailure: ``"export_failed"``: the code cannot be copied; ``"parity"``: what was written computes
                something else.
        """
        head = HEADS.get((request.io.kind, request.io.head))
        if head is None:
            raise UsageError(
                f"hf writes image classifiers and text models; this student ({request.io}) is neither",
                hint="Export to torch or onnx instead.",
            )
        if request.transforms:
            names = ", ".join(step.name for step in request.transforms)
            raise UsageError(
                f"student {request.name} went through {names} after its space had built it, which neither a stock "
                "model nor the space's code describes",
                hint="Export to torch or onnx instead.",
            )
        stock = None
        if self.options.code == "auto":
            stock = request.space.stock_model(request.architecture, request.io)
        source = None if stock is not None else request.space.modeling_source(request.architecture, request.io)
        if stock is None and source is None:
            raise UsageError(
                f"space {request.space.id} does not say how its networks are built without it (modeling_source), so no "
                "self-contained code can be written",
                hint="Export to torch or onnx instead.",
            )
        with complete_or_empty(request.folder):
            if stock is not None:
                facts = write_stock(request, stock, head)
            else:
                assert source is not None
                facts = write_code(request, source, head)
            notes = write_text_files(request, stock=stock is not None) if request.io.kind == "tokens" else []
            write_json(request.folder / "provenance.json", dict(request.provenance))
            write_text(request.folder / "README.md", model_card(request, head, trust=stock is None))
        trusted = ", trust_remote_code=True" if stock is None else ""
        opens_with = f"{head.auto}.from_pretrained(folder{trusted})"
        return {"auto": head.auto, "opens_with": opens_with, **facts, **({"notes": notes} if notes else {})}
