"""The shapes of a student's tensors, as JSON."""

from __future__ import annotations

from nasdistill.files import write_json
from nasdistill.interfaces import Exporter


class Sizes(Exporter):
    """The shapes of a student's tensors."""

    def export(self, request):
        shapes = {name: list(tensor.shape) for name, tensor in request.model.state_dict().items()}
        write_json(request.folder / "shapes.json", shapes)
        return {"tensors": len(shapes)}
