"""Code of a student that no stock configuration describes: copied out, wrapped for transformers, and compared.

Before the folder counts as written, the copied code is imported from it, built without memory, given the weights, and
must equal the student to the bit on several inputs.

Buffers that a network does not save (fixed position tables) are saved here: transformers builds a model without memory
and leaves what is in no file undefined.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.errors import TrialFailure, one_line
from nasdistill.files import content_hash, write_json, write_text
from nasdistill.interfaces import ExportRequest, ModelingSource
from nasdistill_exporters._files import BATCHES, answer, trial_inputs, write_tensors
from nasdistill_exporters.heads import HfHead, padding_side, preprocessing
from nasdistill_exporters.vendoring import KEPT_IMPORTS, Vendor, VendoringError, requirements

REPLACED = {"nasdistill.interfaces.attention:AttentionCore": "nasdistill_exporters.runtime:AttentionCore"}

CONFIGURATION = '''"""Configuration of a student found by architecture search."""

from transformers import PretrainedConfig

CODE = "{code}"
"""Hash of the network's code. transformers finds the model by this file: equal files would be taken for one student."""


class NasdistillStudentConfig(PretrainedConfig):
    """What the network is built from.

    Args:
        network: sizes, one entry per layer.
        preprocessing: how data becomes inputs.
        student: where it comes from.
    """

    model_type = "nasdistill_student"

    def __init__(self, network=None, preprocessing=None, student=None, **kwargs):
        super().__init__(**kwargs)
        self.network = network
        self.preprocessing = preprocessing
        self.student = student
'''

MODELING = '''"""{what} found by architecture search; the network's own code stands in the other files."""

import torch
import torch.nn.functional as F
from transformers import {bases}
from transformers.modeling_outputs import {output}

from .configuration_nasdistill_student import NasdistillStudentConfig
{imports}

PARTS = {{{parts}}}


class NasdistillStudent{suffix}({bases}):
    """{call}"""

    config_class = NasdistillStudentConfig
    main_input_name = "{main_input}"

    def __init__(self, config):
        super().__init__(config)
        self.network = {factory}(config.network, PARTS)
        for module in self.network.modules():
            module._non_persistent_buffers_set.clear()  # all buffers stand in the file
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Load as transformers does, then take the tensors out of the mapped file.

        There they start wherever the file has them, and kernels add up in another order on memory that is not aligned:
        the last bits would depend on the length of the file's header.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
        return loaded

    def _init_weights(self, module):
        """Leave the network's own start as it is."""

{forward}'''


def write_code(request: ExportRequest, source: ModelingSource, head: HfHead) -> dict[str, Any]:
    """Write configuration, weights and code; return the facts of the export.

    Raises:
        TrialFailure: ``"export_failed"``: the code cannot be copied; ``"parity"``: the copy computes something else.
    """
    vendor = Vendor(REPLACED)
    try:
        factory = vendor.add(source.factory)
        parts = {name: vendor.add(part) for name, part in source.parts.items()}
        files = vendor.files()
    except VendoringError as error:
        raise _uncopied(request, str(error)) from error
    foreign = sorted(set(requirements(files.values())) - KEPT_IMPORTS)
    if foreign:
        raise _uncopied(request, f"it imports {', '.join(foreign)} while it runs")
    for name, text in files.items():
        write_text(request.folder / name, text)
    imports, local = _imports([factory, *parts.values()])
    modeling = MODELING.format(
        imports=imports,
        parts=", ".join(f"{json.dumps(name)}: {local[part]}" for name, part in parts.items()),
        factory=local[factory],
        what=head.what,
        call=head.call,
        suffix=head.suffix,
        bases=", ".join(head.bases),
        output=head.output,
        main_input=head.main_input,
        forward=head.forward,
    )
    code = content_hash({**files, "modeling": modeling})
    write_text(request.folder / "configuration_nasdistill_student.py", CONFIGURATION.format(code=code))
    write_text(request.folder / "modeling_nasdistill_student.py", modeling)
    state = whole_state(request.model)
    compared = _compare(request, source, factory, parts, state)
    write_json(request.folder / "config.json", _config(request, source, head))
    digest = write_tensors(
        {f"network.{name}": tensor for name, tensor in state.items()}, request.folder / "model.safetensors"
    )
    return {
        "stock": None,
        "code": sorted([*files, "configuration_nasdistill_student.py", "modeling_nasdistill_student.py"]),
        "requires": ["numpy", "torch", "transformers"],
        "parity": {"max_abs": 0.0, "inputs": compared, "batch_sizes": [len(request.example[0]), *BATCHES]},
        "weights_sha256": digest,
    }


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and all buffers, those that the model does not save too."""
    return {**model.state_dict(), **dict(model.named_buffers())}


def _imports(wanted: Sequence[tuple[str, str]]) -> tuple[str, dict[tuple[str, str], str]]:
    """Return the import lines for (file, name) pairs, and what each is called; equal names get their file in front."""
    unique = sorted(set(wanted))
    names = [name for _, name in unique]
    local = {(file, name): name if names.count(name) == 1 else f"{file}_{name}" for file, name in unique}
    lines = [
        f"from .{file} import {name}" + ("" if local[file, name] == name else f" as {local[file, name]}")
        for file, name in unique
    ]
    return "\n".join(lines), local


def _config(request: ExportRequest, source: ModelingSource, head: HfHead) -> dict[str, Any]:
    """Return ``config.json``."""
    name = f"NasdistillStudent{head.suffix}"
    known = preprocessing(request)
    if "padding_side" in known:
        known["padding_side"] = padding_side(request)
    per_layer = {str(layer): dict(values) for layer, values in source.per_layer.items() if values}
    return {
        "model_type": "nasdistill_student",
        "architectures": [name],
        "auto_map": {
            "AutoConfig": "configuration_nasdistill_student.NasdistillStudentConfig",
            head.auto: f"modeling_nasdistill_student.{name}",
        },
        "dtype": "float32",
        **head.config(request),
        **head.code_config,
        **source.sizes,
        **({"per_layer_config": per_layer} if per_layer else {}),
        "network": dict(source.config),
        "preprocessing": known,
        "student": {"name": request.name, "architecture": request.architecture.to_json()},
    }


def _compare(
    request: ExportRequest,
    source: ModelingSource,
    factory: tuple[str, str],
    parts: dict[str, tuple[str, str]],
    state: dict[str, Tensor],
) -> int:
    """Run the copied code; return on how many inputs it equals the student.

    Raises:
        TrialFailure: ``"export_failed"``: it does not run; ``"parity"``: it computes something else.
    """
    try:
        with _imported(request.folder, {factory[0], *(module for module, _ in parts.values())}) as modules:
            classes = {name: getattr(modules[module], part) for name, (module, part) in parts.items()}
            with torch.device("meta"):
                network = getattr(modules[factory[0]], factory[1])(dict(source.config), classes)
            for module in network.modules():
                module._non_persistent_buffers_set.clear()
            network.load_state_dict(state, assign=True)
            network.eval()
            compared = list(trial_inputs(request))
            for inputs in compared:
                if not torch.equal(answer(network, inputs), answer(request.model, inputs)):
                    raise TrialFailure(
                        "parity", f"the copied code of {request.name} does not compute what the student does"
                    )
            return len(compared)
    except TrialFailure:
        raise
    except Exception as error:
        raise _uncopied(request, f"the copy does not run ({one_line(error)})") from error


@contextmanager
def _imported(folder: Path, names: set[str]) -> Iterator[dict[str, ModuleType]]:
    """Import files of a folder as modules of a package that is forgotten afterwards."""
    package = f"_nasdistill_export_{id(folder)}"
    root = ModuleType(package)
    root.__path__ = [str(folder)]
    sys.modules[package] = root
    written = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        importlib.invalidate_caches()
        yield {name: importlib.import_module(f"{package}.{name}") for name in names}
    finally:
        sys.dont_write_bytecode = written
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            del sys.modules[name]


def _uncopied(request: ExportRequest, reason: str) -> TrialFailure:
    return TrialFailure(
        "export_failed",
        f"the code of student {request.name} ({request.space.id}) cannot be copied: {reason}",
        hint="Export to torch or onnx instead.",
    )
