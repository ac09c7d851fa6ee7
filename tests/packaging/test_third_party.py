"""Distributions of others, installed beside the wheel: a search with all five parts of one; an old one that stays."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from toys_search import write_digits

from nasdistill.spec.component import Kind

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "third_party_plugin"
HERE = Path(__file__).parent

FROZEN_SHA256 = {
    "frozen_api1": "361ff77f557f692dccc0f2b9b9aba2006db93ca0ba900ce40650d74eb7def6cb",
    "frozen_api1_more": "0579582ec26219f969099eeee20baf24341e250bd3f96babd2295e5cb00b9504",
}
"""Of every file of the packages that were written against plugin API 1.

NEVER edit these packages, and never update a hash for one: they stand for what people have installed and will not
update. When one stops working, nasdistill has broken its plugins; mend nasdistill, or raise PLUGIN_API and go on
serving the version before (see nasdistill/host/apiversion.py). A later interface gets a frozen package of its own.
"""

SEARCH = """
schema_version = 1

[task]
name = "image_classification"
options = { data = "digits.npz" }

[teacher]
name = "timm:test_resnet"

[[space]]
name = "acme:metaformer"
options = { width = [16, 32], depth = [1, 2], ratio = [1, 2], patch = [2], mixers = ["acme:relu"] }

[[target]]
name = "acme:bf16_cpu"

[[proxy]]
name = "gradsign"

[objective]
task_weight = 1.0

[[objective.losses]]
name = "dkd"
weight = 0.1

[training]
batch_size = 40
checkpoint_seconds = 0.0

[latency]
max_seconds = 0.3
min_pairs = 3
max_pairs = 5
final_pairs = 5

[search]
strategy = "funnel"
strategy_options = { round_size = 4, keep_proxies = 1.0, keep_latency = 1.0, short_epochs = 2, full_epochs = 20, full_per_round = 1, full_final = 2, max_latency_ratio = 1000.0 }
sampler = "random"
baselines = "none"
trials = 4
"""  # noqa: E501

# With the plugin there: go on with the run; exports, and what the student answers.
RESUME_AND_EXPORT = """
import contextlib, io, json
import nasdistill, torch
from nasdistill.cli import main

out = io.StringIO()
with contextlib.redirect_stdout(out):
    assert main(["resume", "run", "--json"]) == 0
run = nasdistill.load("run")
student = run.best()
for to in ("torch", "onnx", "hf"):
    student.export(to, f"exported-{to}")
again = nasdistill.load("exported-torch")
image = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)
with torch.no_grad():
    first, second = student.model()(image), again.model()(image)
assert torch.equal(first, second)
arch = again.architecture
print(json.dumps({"logits": first.tolist(), "space": arch.space, "mixer": arch.params["block00.mixer"],
                  "result": json.loads(out.getvalue().splitlines()[-1])}))
"""

# Without it: messages where it is needed, and the exports that do not need it.
WITHOUT = """
import contextlib, importlib.util, io, json
import nasdistill, torch
from nasdistill.errors import NasdistillError

assert importlib.util.find_spec("nasdistill_acme") is None
found = {}
for name, load in {
    "student": lambda: nasdistill.load("exported-torch").model(),
    "run": lambda: nasdistill.load("run").best().model(),
}.items():
    try:
        load()
    except NasdistillError as error:
        found[name] = [type(error).__name__, str(error)]
found["score"] = nasdistill.load("exported-torch").score
from nasdistill.cli import main
said = io.StringIO()
with contextlib.redirect_stderr(said):
    found["resume"] = [main(["resume", "cut"])]
found["resume"].append(said.getvalue())
image = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)
import onnxruntime
session = onnxruntime.InferenceSession("exported-onnx/model.onnx", providers=["CPUExecutionProvider"])
found["onnx"] = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0].tolist()
from nasdistill.bridge import prepare_imports
prepare_imports()
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained("exported-hf", trust_remote_code=True).eval()
with torch.no_grad():
    found["hf"] = model(image).logits.tolist()
print(json.dumps(found))
"""

RESTORED = """
import json
import nasdistill, torch

image = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)
with torch.no_grad():
    print(json.dumps(nasdistill.load("exported-torch").model()(image).tolist()))
"""


def last_json(text: str):
    return json.loads(text.strip().splitlines()[-1])


INTERRUPTED = """
import os, signal, sys
from nasdistill.cli import main
from nasdistill.store import RunDirectory

note = RunDirectory.event

def then_press(run, kind, **facts):
    note(run, kind, **facts)
    if facts.get("state") == "complete":
        os.kill(os.getpid(), signal.SIGINT)

RunDirectory.event = then_press
sys.exit(main(["search", "search.toml", "--out", "run", "--seed", "0", "--json"]))
"""


def interrupt(clean) -> None:
    """Start the search, which presses Ctrl-C itself at its first complete trial, and see it end as it says."""
    done = clean.run("-c", INTERRUPTED, ok=False)
    assert done.returncode == 130, done.stderr
    assert "nasdistill resume run" in done.stderr
    assert not (clean.folder / "run" / "final.json").exists(), "there was more to do"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send")
def test_a_search_with_five_parts_of_another_distribution(clean, build_wheels):
    """Search by name, interrupt, resume, export, load; uninstall, be told what is missing; install again."""
    (wheel,) = build_wheels(EXAMPLE)
    clean.install(wheel)
    write_digits(clean.folder / "digits.npz")
    (clean.folder / "search.toml").write_text(SEARCH, encoding="utf-8")

    interrupt(clean)
    shutil.copytree(clean.folder / "run", clean.folder / "cut")
    made = last_json(clean.run("-c", RESUME_AND_EXPORT).stdout)
    result = made["result"]
    assert result["state"] == "finished"
    assert result["front"]
    assert result["trials"]["failed"] == 0
    assert "gradsign" in result["proxies"]
    assert all(set(student["latency_ms"]) == {"acme:bf16_cpu"} for student in result["front"])
    config = json.loads((clean.folder / "run" / "config.json").read_text())
    assert [loss["name"] for loss in config["objective"]["losses"]] == ["dkd"]
    history = [json.loads(p.read_text()).get("history") for p in (clean.folder / "run").glob("trials/*/outcome.json")]
    assert "dkd" in json.dumps(history)

    assert made["space"] == "acme:metaformer"
    assert made["mixer"] == "acme:relu"

    clean.uninstall("nasdistill-acme")
    without = last_json(clean.run("-c", WITHOUT).stdout)
    for name in ("student", "run"):
        kind, text = without[name]
        assert kind == "UnknownComponentError"
        assert text == (
            "search space 'acme:metaformer' comes from plugin 'acme' (nasdistill-acme 1.2.0), which is not installed "
            "here\n  Install 'nasdistill-acme==1.2.0', or another version of it."
        )
    assert without["score"] is not None
    for name in ("onnx", "hf"):  # these stand alone
        torch.testing.assert_close(torch.tensor(without[name]), torch.tensor(made["logits"]), atol=1e-4, rtol=1e-4)
    code, text = without["resume"]
    assert code == 2
    assert "started with plugin 'acme' (nasdistill-acme 1.2.0), which is not installed here" in text
    assert "Install 'nasdistill-acme==1.2.0'." in text

    clean.install(wheel)
    assert last_json(clean.run("-c", RESTORED).stdout) == made["logits"]


@pytest.mark.slow
def test_the_examples_own_tests(clean, copied):
    """Contract and exact values, as its README says."""
    folder = copied(EXAMPLE)
    clean.install(folder)
    done = clean.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", folder)
    assert "failed" not in done.stdout
    assert " passed" in done.stdout


def content_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


@pytest.mark.parametrize("package", FROZEN_SHA256)
def test_the_frozen_packages_were_not_edited(package):
    assert content_hash(HERE / package) == FROZEN_SHA256[package], "read what stands below FROZEN_SHA256"


FROZEN_SEARCH = """
schema_version = 1
task = { name = "bars" }
teacher = { name = "edges:long" }
space = [{ name = "pooled" }]
target = [{ name = "counted" }]
proxy = [{ name = "margin" }]
objective = { task_weight = 1.0, losses = [{ name = "l1", weight = 0.1 }] }
search = { strategy = "pairs", sampler = "uniform", trials = 4, baselines = "none" }
"""

FROZEN_USE = """
import contextlib, io, json
from pathlib import Path
from nasdistill.cli import main
from nasdistill.host import Host
from nasdistill.testing import check_plugin

def said(*words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(list(words))
    assert code == 0, (words, code, out.getvalue())
    return out.getvalue()

host = Host.load()
assert not host.problems, host.problems
plugins = ("frozen1", "frozen1_more")
results = {name: check_plugin(name, host=host, on_fail="record") for name in plugins}
print(json.dumps({
    "kinds": {name: sorted(r.kind.value for r in host.specs() if r.plugin == name) for name in plugins},
    "passed": {name: sum(r.status == "passed" for r in found) for name, found in results.items()},
    "broken": [str(r) for found in results.values() for r in found if not r.ok],
    "api": [p.api for p in host.plugins() if p.name in plugins],
    "sampled": json.loads(said("spaces", "sample", "pooled", "-n", "3", "--seed", "1", "--json")),
    "scored": json.loads(said("score", "--space", "pooled", "--sample", "3", "--proxy", "margin", "--proxy", "params",
                              "--seed", "1", "--json")),
    "measured": json.loads(said("measure", "--space", "pooled", "--target", "counted", "--json")),
    "hello": said("frozen", "--name", "you"),
    "searched": json.loads(said("search", "frozen.toml", "--out", "frozen", "--json").splitlines()[-1]),
    "report": Path("frozen/report/index.html").read_text(encoding="utf-8"),
}))
"""


@pytest.mark.slow
def test_packages_written_against_api_1_keep_working(clean, build_wheels, copied):
    """All sixteen kinds: load, pass their checks, and are of use: sampled, scored, timed, called, searched with."""
    clean.install(*build_wheels(*(copied(HERE / package) for package in FROZEN_SHA256)))
    (clean.folder / "frozen.toml").write_text(FROZEN_SEARCH, encoding="utf-8")
    found = last_json(clean.run("-c", FROZEN_USE).stdout)
    assert found["broken"] == []
    assert found["passed"]["frozen1"] > 80
    assert found["passed"]["frozen1_more"] > 150
    assert found["api"] == [1, 1]
    assert found["kinds"] == {
        "frozen1": ["attention", "command", "exporter", "loss", "proxy", "sampler", "search_space", "target"],
        "frozen1_more": [
            "data_reducer", "diagnostic", "recipe", "report_section", "strategy", "task", "teacher", "transform",
        ],
    }  # fmt: skip
    assert sorted(found["kinds"]["frozen1"] + found["kinds"]["frozen1_more"]) == sorted(kind.value for kind in Kind)
    assert "frozen1:pooled" in json.dumps(found["sampled"])
    assert all(item["scores"]["margin"] > 0 for item in found["scored"])
    assert "frozen1:counted" in json.dumps(found["measured"])
    assert found["hello"] == "hello you\n"
    assert found["searched"]["trials"]["complete"] == 2
    assert found["searched"]["front"]
    assert "Frozen names" in found["report"]
