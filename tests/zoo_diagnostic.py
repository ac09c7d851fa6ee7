"""Diagnostics that are sound but for one thing."""

from __future__ import annotations

import math

import torch
from zoo_base import Broken

from nasdistill.errors import MismatchError
from nasdistill.interfaces import Diagnostic, Example, Finding, Site
from nasdistill.spec.component import DiagnosticSpec
from nasdistill.trace import describe

LOGITS = Site("logits")


class Sound(Diagnostic):
    """How often models agree, and how sure each of them is."""

    def examine(self, models, task, batches, tracer):
        self.look(models, batches)
        outputs = {
            name: torch.cat([tracer(model, batch, frozenset({LOGITS})).logits for batch in batches])
            for name, model in models.items()
        }
        rows = [
            {"model": name, "confidence": float(logits.softmax(1).amax(1).mean())} for name, logits in outputs.items()
        ]
        predicted = [logits.argmax(1) for logits in outputs.values()]
        agreeing = torch.stack([item == predicted[0] for item in predicted]).all(0)
        return self.told({"agreement": float(agreeing.double().mean())}, rows)

    def look(self, models, batches):
        pass

    def told(self, values, rows):
        return Finding(values, {"confidence": rows}, {"confidence": self.figure(rows)}, self.text)

    def figure(self, rows):
        bar = {"type": "bar", "x": [row["model"] for row in rows], "y": [row["confidence"] for row in rows]}
        return {"data": [bar], "layout": {"yaxis": {"title": {"text": "confidence"}}}}

    text = "Where models agree and are sure, little is left to be taught."


class Sinks(Diagnostic):
    """How much attention the first token gets, layer by layer."""

    def examine(self, models, task, batches, tracer):
        rows = []
        for name, model in models.items():
            geometry = describe(model, lambda network: task.forward(network, batches[0]), name)
            sites = {site for site in geometry.sites if site.name == "q"}
            if not sites:
                raise MismatchError(f"{name} has no attention to look at")
            sites |= {Site("k", site.layer) for site in sites}
            traces = [tracer(model, batch, frozenset(sites)) for batch in batches]
            for layer in sorted({site.layer for site in sites}):
                share = torch.cat([trace[f"attention.{layer}"][..., 0].mean((1, 2)) for trace in traces]).mean()
                rows.append({"model": name, "layer": layer, "share": float(share)})
        return Finding(tables={"first token": rows}, text="A share far above 1 / tokens is a sink.")


class Chosen(Sound):
    """The same, of models of its choice."""

    examples = (Example(context={"models": {"teacher": "SmallResNet", "student": "Mlp"}}),)


class Empty(Sound):
    """Finds nothing."""

    def told(self, values, rows):
        return Finding(text="There is nothing to see.")


class Undefined(Sound):
    """Gives a value that is not defined."""

    def told(self, values, rows):
        return super().told({**values, "gap": math.nan}, rows)


class Tensors(Sound):
    """Gives tensors for numbers."""

    def told(self, values, rows):
        return super().told({name: torch.tensor(value) for name, value in values.items()}, rows)


class Ragged(Sound):
    """Has rows of different columns."""

    def told(self, values, rows):
        found = super().told(values, rows)
        return Finding(values, {"confidence": [*rows, {"model": "all"}]}, found.figures, found.text)


class Nested(Sound):
    """Has lists in its rows."""

    def told(self, values, rows):
        found = super().told(values, rows)
        return Finding(values, {"confidence": [{"models": [1, 2]}]}, found.figures, found.text)


class Misdrawn(Sound):
    """Draws what plotly does not know."""

    def figure(self, rows):
        return {"data": [{"type": "bars", "y": [1.0]}]}


class Tensorial(Sound):
    """Draws tensors."""

    def figure(self, rows):
        return {"data": [{"type": "bar", "y": torch.ones(2)}]}


class Silent(Sound):
    """Leaves the reader alone."""

    text = ""


class Switching(Sound):
    """Leaves the models in eval mode."""

    def look(self, models, batches):
        for model in models.values():
            model.eval()


class Hooking(Sound):
    """Leaves a hook behind."""

    def look(self, models, batches):
        for model in models.values():
            model.register_forward_hook(lambda *arguments: None)


class Whitening(Sound):
    """Normalises the images in their place."""

    def look(self, models, batches):
        for batch in batches:
            batch.image.sub_(batch.image.mean())


class Sampling(Sound):
    """Looks at a random part."""

    def told(self, values, rows):
        return super().told({"agreement": values["agreement"] + float(torch.rand(()))}, rows)


class Sensitive(Sound):
    """Needs gradients, and takes them for granted."""

    def look(self, models, batches):
        for model in models.values():
            image = batches[0].image.clone().requires_grad_()
            torch.autograd.grad(model(image).sum(), image)


class Comparing(Sound):
    """Takes two models for granted."""

    def look(self, models, batches):
        models["teacher"], models["student"]


class Attentive(Sinks):
    """Takes attention for granted."""

    def examine(self, models, task, batches, tracer):
        for model in models.values():
            model.blocks[0].heads  # noqa: B018
        return super().examine(models, task, batches, tracer)


class Labelled(Sound):
    """Takes labels for granted."""

    def look(self, models, batches):
        torch.cat([batch.labels for batch in batches])


def spec(name, cls):
    return DiagnosticSpec(name, f"{__name__}:{cls.__name__}", "one of the zoo", references=("original",))


SOUND = [spec("sound", Sound), spec("sinks", Sinks), spec("chosen", Chosen)]
BROKEN = [
    Broken("returns_a_finding", spec("empty", Empty), "neither values nor tables"),
    Broken("values_are_numbers", spec("undefined", Undefined), "'gap'"),
    Broken("values_are_numbers", spec("tensors", Tensors), "(Tensor)"),
    Broken("tables_are_flat", spec("ragged", Ragged), "has the columns model;"),
    Broken("tables_are_flat", spec("nested", Nested), "(list)"),
    Broken("figures_are_plotly", spec("misdrawn", Misdrawn), "plotly refuses"),
    Broken("figures_are_plotly", spec("tensorial", Tensorial), "not JSON"),
    Broken("says_how_to_read_it", spec("silent", Silent), "text is ''"),
    Broken("models_are_left_alone", spec("switching", Switching), "train/eval mode"),
    Broken("models_are_left_alone", spec("hooking", Hooking), "forward hooks"),
    Broken("batches_are_left_alone", spec("whitening", Whitening), "it changes image"),
    Broken("depends_on_what_it_sees_alone", spec("sampling", Sampling), "with other global seeds"),
    Broken("grad_mode_plays_no_part", spec("sensitive", Sensitive), "RuntimeError"),
    Broken("one_model_is_enough_or_refused", spec("comparing", Comparing), "alone it raises KeyError"),
    Broken("other_networks_work_or_are_refused", spec("attentive", Attentive), "AttributeError"),
    Broken("labels_may_be_missing", spec("labelled", Labelled), "TypeError"),
]
