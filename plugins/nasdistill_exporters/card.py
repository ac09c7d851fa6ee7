"""The model card of an exported student: what it is, where it comes from, what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nasdistill.interfaces import ExportRequest
from nasdistill.spec.measurement import TargetReport
from nasdistill_exporters.heads import HfHead


def model_card(request: ExportRequest, head: HfHead, *, trust: bool) -> str:
    """Return ``README.md``, from the provenance alone; what is not known is left out.

    Args:
        request: the student.
        head: what it answers.
        trust: the folder has code of its own.
    """
    facts = request.provenance
    task, teacher = facts.get("task") or {}, facts.get("teacher") or {}
    metric = (task.get("metric") or {}).get("name", "score")
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: {head.pipeline}\ntags:\n- nasdistill\n- distillation\n---",
        f"# Student {request.name}",
        f"{head.what} ({request.io}) from the search space `{request.architecture.space}`, found by "
        "architecture search and trained by distillation.",
        _usage(request, head, task.get("preprocessing") or {}, trust),
        *_measured(facts, metric),
        "## Lineage",
        _table(("", ""), _lineage(request, facts, task, teacher)),
        "The complete record stands in `provenance.json`, the architecture in `config.json`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _usage(request: ExportRequest, head: HfHead, preprocessing: Mapping[str, Any], trust: bool) -> str:
    needs = (
        "The folder holds the network's code (`trust_remote_code`); it needs torch, numpy and transformers, nothing "
        "else."
        if trust
        else "An ordinary model of transformers: the folder holds no code."
    )
    trusted = ", trust_remote_code=True" if trust else ""  # the tokenizer's class reads the model's configuration
    opening = f"{head.auto}.from_pretrained(folder{trusted}).eval()"
    after = ""
    if request.io.kind == "image":
        size = ", ".join(map(str, request.io.shape))
        code = [f"from transformers import {head.auto}", "", 'folder = "path/to/this/folder"', f"model = {opening}"]
        code += [f"logits = model(torch.zeros(1, {size})).logits"]
    else:
        known = (request.folder / "tokenizer_config.json").exists()
        names = f"{head.auto}, AutoTokenizer" if known else head.auto
        code = [f"from transformers import {names}", "", 'folder = "path/to/this/folder"', f"model = {opening}"]
        if known:
            code += [f"tokenizer = AutoTokenizer.from_pretrained(folder{trusted})"]
            texts = '["a text", "another one"]'
            if preprocessing.get("pairs"):
                texts += ', ["what goes with it", "its partner"]'  # the second texts
            code += [f'inputs = tokenizer({texts}, padding=True, return_tensors="pt")']
        else:
            length = request.io.shape[0]
            code += [f"ids = torch.zeros(1, {length}, dtype=torch.long)  # of the tokenizer that was trained with"]
            code += ['inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}']
        if known and request.io.head == "causal_lm":
            code += ["made = model.generate(**inputs, max_new_tokens=8)"]
            code += ["texts = tokenizer.batch_decode(made, skip_special_tokens=True)"]
            after = "\n\nThe tokenizer fills up on the left, as `generate` needs it when several texts share a batch."
            if not trust:
                after += (
                    " `model(...)` itself counts positions from the first column: for logits of several texts at once, "
                    'set `tokenizer.padding_side = "right"` before.'
                )
        else:
            code += ["outputs = model(**inputs)"]
            code += (
                ["embeddings = outputs.pooler_output" if trust else "hidden = outputs.last_hidden_state"]
                if (request.io.head == "embedding")
                else ["logits = outputs.logits"]
            )
    text = "\n".join(["## Use", "", needs, "", "```python", "import torch", *code, "```"]) + after
    if "mean" in preprocessing and "size" in preprocessing:
        text += (
            f"\n\nInputs are `(pixel * {preprocessing.get('scale')} - mean) / std` per channel, with mean "
            f"`{preprocessing.get('mean')}` and std `{preprocessing.get('std')}`, after resizing to "
            f"{' x '.join(map(str, preprocessing.get('size', [])))}."
        )
    if request.io.head == "embedding":
        text += "\n\nA sentence's vector is the mean of the hidden states over its real tokens; compare by cosine."
    return text


def _measured(facts: Mapping[str, Any], metric: str) -> list[str]:
    """Return the part with scores, cost and latencies, nothing where nothing was measured."""
    found = [_table(("", "value"), _scores(facts, metric)), _latencies(facts)]
    return ["## Measured", *found] if any(found) else []


def _scores(facts: Mapping[str, Any], metric: str) -> list[tuple[str, str]]:
    rows = []
    for split in ("validation", "test"):
        score = (facts.get(split) or {}).get("score")
        if score is not None:
            rows.append((f"{split} {metric}", f"{score:.4f}"))
    cost = facts.get("cost") or {}
    rows += [(name, f"{cost[name]:,}") for name in ("params", "macs") if cost.get(name) is not None]
    return rows


def _latencies(facts: Mapping[str, Any]) -> str:
    """Return the table of latencies, one row per target."""
    rows = []
    for name, value in sorted((facts.get("targets") or {}).items()):
        report = TargetReport.from_json(value)
        latency = report.latency
        runtime = ", ".join(str(report.info[key]) for key in ("runtime", "threads") if key in report.info)
        span = f"{latency.low_ms:.4g} to {latency.high_ms:.4g}"
        rows.append(
            (f"`{name}`", f"{latency.value_ms:.4g}", span, latency.clock, str(latency.pairs), latency.quality, runtime)
        )
    if not rows:
        return ""
    head = ("target", "latency, ms", "95 % interval", "clock", "rounds", "quality", "runtime, threads")
    return _table(head, rows) + "\n\nOne sample per call, on the machine of the search."


def _lineage(
    request: ExportRequest, facts: Mapping[str, Any], task: Mapping[str, Any], teacher: Mapping[str, Any]
) -> list[tuple[str, str]]:
    objective, training = facts.get("objective") or {}, facts.get("training") or {}
    losses = [f"{item['name']} x {item['weight']}" for item in objective.get("losses", ())]
    if objective:
        losses.insert(0, f"labels x {objective.get('task_weight')}")
    software = facts.get("software") or {}
    rows = [
        ("architecture", f"`{request.architecture.fingerprint}`"),
        ("teacher", f"`{teacher['name']}`" if teacher.get("name") else ""),
        ("teacher's hash", f"`{teacher['fingerprint']}`" if teacher.get("fingerprint") else ""),
        ("task", f"`{task['name']}`" if task.get("name") else ""),
        ("data's hash", f"`{task['fingerprint']}`" if task.get("fingerprint") else ""),
        ("losses", ", ".join(losses)),
        ("epochs", _text(facts.get("epochs"))),
        ("seed", _text(facts.get("seed"))),
        ("optimiser", f"`{json.dumps(training, sort_keys=True)}`" if training else ""),
        ("nasdistill", _text(software.get("nasdistill"))),
    ]
    return [(name, value) for name, value in rows if value]


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table, nothing for no rows."""
    if not rows:
        return ""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
