"""What a space may offer beyond networks: inherited weights, a supernet, plain source, export."""

from __future__ import annotations

import copy
import importlib.util
import json
import tempfile
from pathlib import Path

import torch
from torch import nn

from nasdistill.interfaces import Batch, Supernet
from nasdistill.measure.counting import count_params
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.testing.checks.search_space.cases import build, first_case, inputs, logits, networks, told
from nasdistill.testing.kit.models import Mlp, SmallResNet, built
from nasdistill.testing.registry import check, fail, skip
from nasdistill.testing.state import same
from nasdistill.testing.subject import Subject


@check(Kind.SEARCH_SPACE, hint="Return an InheritReport that counts what was copied, or drop the tag `inherits`.")
def inherits_is_true(subject: Subject) -> None:
    """The tag `inherits` is true both ways: students start from a teacher's weights, or inherit() does nothing."""
    space, io, archs = first_case(subject)
    make = subject.context("inherit_from")
    batch = Batch({"image" if io.kind == "image" else "input_ids": inputs(io, 4)}, None, torch.arange(4))
    for arch in archs[:2]:
        teacher = build(subject, space, archs[0], io, seed=1) if make is None else make(io)
        for calibration in ((), (batch,)):
            student = build(subject, space, arch, io, seed=2)
            fresh, before = copy.deepcopy(student), copy.deepcopy(teacher)
            report = space.inherit(student, arch, teacher, calibration=calibration)
            if difference := same(dict(before.state_dict()), dict(teacher.state_dict()), "the teacher's state"):
                fail(f"inherit() changes the teacher: {difference}")
            changed = elements_changed(fresh, student)
            if not subject.tags.inherits:
                if report is not None or changed:
                    fail(f"inherits=False, and inherit() changes {changed} parameters and returns {report}")
                continue
            if report is None or not changed:
                fail(f"inherits=True, and inherit() changes {changed} parameters and returns {report} {told(arch)}")
            if not changed <= report.copied <= report.total == count_params(student):
                fail(f"{changed} of {count_params(student)} parameters changed, the report says {report}")
            if arch == archs[0] and make is None and report.copied == report.total:
                with torch.no_grad():
                    gap = float((logits(student, inputs(io, 2)) - logits(teacher, inputs(io, 2))).abs().max())
                if gap > 1e-4:
                    fail(f"all parameters are said to be copied from a twin, and the outputs differ by {gap:.3g}")
    for stranger_ in (built(SmallResNet), built(Mlp, 8)):
        student = build(subject, space, archs[0], io, seed=2)
        fresh = copy.deepcopy(student)
        if space.inherit(student, archs[0], stranger_) is None and elements_changed(fresh, student):
            fail(f"inherit() returns None for a {type(stranger_).__name__}, and changes the student")


def elements_changed(before: nn.Module, after: nn.Module) -> int:
    """Return how many elements of the parameters changed."""
    pairs = zip(before.named_parameters(), after.named_parameters(), strict=True)
    if [name for name, _ in before.named_parameters()] != [name for name, _ in after.named_parameters()]:
        fail("inherit() renames the student's parameters")
    return sum(int((first != second).sum()) for (_, first), (_, second) in pairs)


@check(Kind.SEARCH_SPACE, hint="Make extract() slice exactly what set_arch() uses, and copy; or drop the tag.")
def supernet_is_true(subject: Subject) -> None:
    """The tag `supernet` is true both ways: an extracted network equals the sliced one to 1e-6, or there is none."""
    space, io, archs = first_case(subject)
    if not subject.tags.supernet:
        try:
            space.supernet(io)
        except NotImplementedError:
            return
        fail("supernet=False, and supernet() raises no NotImplementedError")
    with seeded(subject.seed):
        net = space.supernet(io).eval()
    if not isinstance(net, Supernet):
        fail(f"supernet() returns a {type(net).__name__}, not a Supernet")
    x = inputs(io, 3)
    with torch.no_grad():
        for arch in archs:
            net.set_arch(arch)
            sliced = logits(net, x)
            alone = net.extract(arch).eval()
            gap = float((logits(alone, x) - sliced).abs().max())
            if gap > 1e-6 * max(1.0, float(sliced.abs().max())):
                fail(f"the extracted network differs from the sliced one by up to {gap:.3g} {told(arch)}")
            if count_params(alone) != space.cost(arch, io).params:
                fail(f"extracted: {count_params(alone)} parameters, cost(): {space.cost(arch, io).params} {told(arch)}")
            try:  # a search trains and saves what it builds, from the weights of what was extracted
                build(subject, space, arch, io, seed=1).load_state_dict(alone.state_dict())
            except RuntimeError as error:
                fail(f"extracted weights do not fit build(): {str(error).splitlines()[-1].strip()} {told(arch)}")
            mine = {parameter.data_ptr() for parameter in net.parameters()}
            if any(parameter.data_ptr() in mine for parameter in alone.parameters()):
                fail(f"the extracted network shares weights with the supernet {told(arch)}")


@check(Kind.SEARCH_SPACE, hint="Give the factory, its complete configuration as plain data, and the classes it needs.")
def modeling_source_builds_the_same_network(subject: Subject) -> None:
    """What modeling_source() describes is the network that build() gives, from JSON data by an importable function."""
    space = subject.create()
    for io, arch, model, x in networks(subject):
        source = space.modeling_source(arch, io)
        if source is None:
            skip("it has no modeling_source()")
        where = f"{source.factory.__module__}.{source.factory.__qualname__}"
        if "<" in where:
            fail(f"the factory {where} is no function of a module")
        twin = source.factory(json.loads(json.dumps(dict(source.config))), dict(source.parts))
        try:
            twin.load_state_dict(model.state_dict())
        except RuntimeError as error:
            fail(f"the weights of build() do not fit the network of {where}: {str(error).splitlines()[1].strip()}")
        with torch.no_grad():
            if difference := same(logits(twin.eval(), x), logits(model, x), "the output"):
                fail(f"with the same weights {difference} {told(arch)}")


@check(Kind.SEARCH_SPACE, thorough=True, hint="Keep to operators of ONNX; ask for no shape inside forward().")
def networks_export_to_onnx(subject: Subject) -> None:
    """Networks export to ONNX and compute the same there."""
    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxruntime") is None:
        skip("onnx or onnxruntime is not installed here: pip install 'nasdistill[onnx]'")
    import onnxruntime

    from nasdistill.bridge.onnx import export_onnx

    for io, arch, model, x in networks(subject)[:3]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            try:
                export_onnx(model, (x[:1],), path, dynamo=False, inputs=("x",))
            except Exception as error:
                fail(f"it does not export for {io}: {type(error).__name__}: {str(error).splitlines()[0]} {told(arch)}")
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(None, {"x": x[1:2].numpy()})[0])
        with torch.no_grad():
            expected = logits(model, x[1:2])
        gap = float((found - expected).abs().max())
        if gap > 1e-4 * max(1.0, float(expected.abs().max())):
            fail(f"the exported network differs by up to {gap:.3g} {told(arch)}")
