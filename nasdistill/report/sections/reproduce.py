"""On what machine and with what software the run was made, and how to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomli_w

from nasdistill.interfaces import Section
from nasdistill.report.markup import details, listed, pairs, paragraph, short, size
from nasdistill.report.svg import text


def toml_of(config: Mapping[str, Any]) -> str:
    """Return a configuration as the file that would give it; keys without a value are left out."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: clean(item) for key, item in value.items() if item is not None}
        return [clean(item) for item in value if item is not None] if isinstance(value, list | tuple) else value

    return tomli_w.dumps(clean(config))


def reproduce(run: Mapping[str, Any]) -> Section:
    """Return the machine, the versions, the seed, and the configuration with the command that uses it."""
    config, environment = run.get("config", {}), run.get("environment", {})
    cpu, system = environment.get("cpu", {}), environment.get("os", {})
    search = config.get("search", {})
    facts = {
        "machine": ", ".join(
            str(part) for part in (
                cpu.get("model"), f"{cpu.get('usable_cores')} usable cores" if cpu.get("usable_cores") else None,
                size(environment.get("memory_bytes")) if environment.get("memory_bytes") else None,
            ) if part
        ),
        "system": " ".join(str(system[key]) for key in ("system", "kernel", "machine") if system.get(key)),
        "Python": environment.get("python", ""),
        "threads": ", ".join(f"{key}={value}" for key, value in environment.get("threads", {}).items()),
        "task": (config.get("task") or {}).get("name", ""),
        "teacher": (config.get("teacher") or {}).get("name", ""),
        "teacher's hash": str(run.get("teacher_record", {}).get("fingerprint", ""))[:16],
        "data's hash": str(run.get("teacher_record", {}).get("task_fingerprint", ""))[:16],
        "search": ", ".join(f"{key} {search[key]}" for key in ("strategy", "sampler", "trials") if search.get(key)),
        "seed": search.get("seed", ""),
    }  # fmt: skip
    html = pairs({key: value for key, value in facts.items() if value not in ("", None)})
    packages = environment.get("packages", {})
    if packages:
        html += details("Packages", pairs(packages))
    plugins = [
        f"{item.get('plugin')} ({item.get('distribution')} {item.get('version')})"
        for item in environment.get("plugins", [])
    ]
    if plugins:
        html += details("Plugins", listed(plugins))
    if config:
        seed = search.get("seed", 0)
        command = f"nasdistill search config.toml --seed {seed}"
        html += paragraph(
            "Save the configuration below as config.toml; with the same packages and data this repeats the run:"
        )
        html += f"<pre><code>{text(command)}</code></pre>"
        html += details("config.toml, complete", f"<pre><code>{text(toml_of(config))}</code></pre>")
        html += paragraph(
            "Data order, initial weights and proposals follow from the seed. What is measured does not: with real "
            "latencies a repeated run may prune other candidates.",
            "note",
        )
    else:
        html += paragraph("The configuration is missing from the run's folder.")
    targets = ", ".join(short(name) for name in run["teacher"]["latency_ms"])
    return Section("Environment, and how to repeat it", html, {"targets": targets})
