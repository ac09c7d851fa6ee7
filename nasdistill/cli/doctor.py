"""``nasdistill doctor``: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasdistill.errors import ISOLATED, NasdistillError, one_line

if TYPE_CHECKING:
    from nasdistill.host import Host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Look, report, and return 0 when a search can run here."""
    from nasdistill.cli import output
    from nasdistill.cli.common import quiet_host

    report = examine(quiet_host(args))
    if args.json:
        output.print_json(report)
    else:
        _print(report)
    return 0 if report["usable"] else 1


def examine(host: Host) -> dict[str, Any]:
    """Return everything the doctor knows.

    `usable` says whether a search can run: torch imports, at least one target works, no bundled plugin is broken, and
    the cache folder can be written to. `complaints` says in words why not.
    """
    report: dict[str, Any] = {
        "machine": _machine(),
        "torch": _torch(),
        "packages": _packages(),
        "extras": _extras(),
        "targets": _targets(host),
        "plugins": [
            {"name": item.name, "distribution": item.distribution, "version": item.version, "state": item.state}
            for item in host.plugins()
        ],
        "problems": [problem.to_json() for problem in host.problems],
        "cache": _cache(),
    }
    report["complaints"] = _complaints(report, host)
    report["usable"] = not report["complaints"]
    return report


def _machine() -> dict[str, Any]:
    """Return processor, cores, memory and clock control."""
    import platform

    processor = platform.processor() or platform.machine()
    features: list[str] = []
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            processor = value.strip()
        elif key.strip() in ("flags", "Features"):
            wanted = ("avx2", "avx512f", "avx512_vnni", "amx_tile", "asimd", "sve")
            features = [name for name in wanted if name in value.split()]
            break
    cores = os.cpu_count()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    memory = {
        key: int(value.split()[0]) // 1024
        for key, _, value in (line.partition(":") for line in _read("/proc/meminfo").splitlines())
        if key in ("MemTotal", "MemAvailable")
    }
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "processor": processor,
        "features": features,
        "cores": cores,
        "usable_cores": usable,
        "cpu_quota": _quota(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        "memory_mib": memory.get("MemTotal"),
        "available_memory_mib": memory.get("MemAvailable"),
        "memory_limit_mib": _memory_limit(),
    }


def _quota() -> float | None:
    """Return how many cores' worth of time a container allows, None without a limit."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _memory_limit() -> int | None:
    """Return a container's memory limit in MiB, None without one."""
    text = _read("/sys/fs/cgroup/memory.max").strip()
    return int(text) // 2**20 if text.isdigit() else None


def _read(path: str) -> str:
    """Return a small system file's text, empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _torch() -> dict[str, Any]:
    """Return what torch says of itself, or why it does not import."""
    try:
        import torch
    except Exception as error:  # a broken build may raise anything
        return {"ok": False, "problem": one_line(error)}
    accelerators = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return {
        "ok": True,
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "devices": [
            "cpu",
            *(torch.cuda.get_device_name(index) for index in accelerators),
        ],
    }


def _requirements() -> list[tuple[str, str | None]]:
    """Return (distribution, extra) for every requirement in this package's metadata; extra None means always."""
    import re
    from importlib import metadata

    try:
        lines = metadata.requires("nasdistill") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"""extra\s*==\s*['"]([^'"]+)['"]""", line)
        if name and name[0].lower() != "nasdistill":
            found.append((name[0], extra[1] if extra else None))
    return found


def _version(distribution: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> dict[str, str | None]:
    """Return the versions of what nasdistill always needs; None is missing."""
    names = ["nasdistill", *(name for name, extra in _requirements() if extra is None)]
    return {name: _version(name) for name in names}


def _extras() -> dict[str, dict[str, Any]]:
    """Return, for each extra a user may want, the versions of its packages and what to install."""
    found: dict[str, dict[str, Any]] = {}
    for name, extra in _requirements():
        if extra is None or extra in ("dev", "test"):
            continue
        entry = found.setdefault(extra, {"installed": True, "packages": {}, "install": f"nasdistill[{extra}]"})
        entry["packages"][name] = _version(name)
        entry["installed"] = entry["installed"] and entry["packages"][name] is not None
    return found


def _targets(host: Host) -> dict[str, dict[str, Any]]:
    """Return, for each target, whether it works here and why not."""
    from nasdistill.spec.component import Kind

    found: dict[str, dict[str, Any]] = {}
    for record in host.specs(Kind.TARGET):
        try:
            availability = host.create(Kind.TARGET, record.id).probe()
            found[record.id] = {"ok": availability.ok, "reason": availability.reason}
        except NasdistillError as error:
            found[record.id] = {"ok": False, "reason": str(error).replace("\n  ", "; ")}
        except ISOLATED as error:  # a plugin's probe must not raise; one that does is one more thing to report
            found[record.id] = {"ok": False, "reason": f"its probe failed: {one_line(error)}"}
    return found


def _cache() -> dict[str, Any]:
    """Return where the cache is, and whether it can be written to."""
    from nasdistill.files import cache_folder

    folder = cache_folder()
    existing = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    return {"folder": str(folder), "exists": folder.is_dir(), "writable": writable, "mib": round(size / 2**20, 1)}


def _complaints(report: dict[str, Any], host: Host) -> list[str]:
    """Return why a search cannot run here, as sentences with the next step."""
    found = []
    if not report["torch"]["ok"]:
        found.append(f"torch does not import ({report['torch']['problem']}): reinstall it")
    missing = [name for name, version in report["packages"].items() if version is None]
    if missing:
        found.append(f"not installed: {', '.join(missing)}: reinstall nasdistill")
    bundled = {plugin.name for plugin in host.plugins() if plugin.bundled}
    broken = sorted({problem.plugin for problem in host.problems if problem.plugin in bundled})
    if broken:
        found.append(f"bundled plugins with problems: {', '.join(broken)}: reinstall nasdistill")
    if not any(target["ok"] for target in report["targets"].values()):
        found.append("no target works here: see the reasons")
    if not report["cache"]["writable"]:
        found.append(f"{report['cache']['folder']} cannot be written to: set NASDISTILL_CACHE to a folder that can")
    return found


def _print(report: dict[str, Any]) -> None:
    from nasdistill.cli import output

    machine, torch = report["machine"], report["torch"]
    limits = []
    if machine["cpu_quota"] is not None:
        limits.append(f"limited to {machine['cpu_quota']:g} cores' time")
    if machine["governor"]:
        limits.append(f"governor {machine['governor']}")
    memory = f"{machine['available_memory_mib']} MiB free of {machine['memory_mib']} MiB"
    if machine["memory_limit_mib"] is not None:
        memory += f", limited to {machine['memory_limit_mib']} MiB"
    if torch["ok"]:
        torch_line = f"{torch['version']}, {torch['threads']} threads, devices: {', '.join(torch['devices'])}"
    else:
        torch_line = f"does not import: {torch['problem']}"
    cache = report["cache"]
    output.print_pairs(
        {
            "python": f"{machine['python']} on {machine['system']}",
            "processor": " ".join([machine["processor"], *machine["features"]]),
            "cores": ", ".join([f"{machine['usable_cores']} usable of {machine['cores']}", *limits]),
            "memory": memory,
            "torch": torch_line,
            "cache": f"{cache['folder']} ({cache['mib']} MiB{'' if cache['writable'] else ', not writable'})",
        }
    )
    versions = [(name, version or "missing") for name, version in report["packages"].items()]
    output.say("\n" + output.plain_table(("package", "version"), versions))
    extras = [
        (
            name,
            "yes" if extra["installed"] else f"no: pip install '{extra['install']}'",
            ", ".join(f"{package} {version or '(missing)'}" for package, version in extra["packages"].items()),
        )
        for name, extra in report["extras"].items()
    ]
    if extras:
        output.say("\n" + output.plain_table(("extra", "installed", "packages"), extras))
    targets = [(name, "yes" if item["ok"] else "no", item["reason"]) for name, item in report["targets"].items()]
    output.say("\n" + output.plain_table(("target", "works", "reason"), targets))
    if report["problems"]:
        output.say("\nplugin problems (nasdistill plugins list --problems):")
        for problem in report["problems"]:
            output.say(f"  {problem['plugin']} ({problem['distribution']} {problem['version']}): {problem['cause']}")
    output.say()
    for complaint in report["complaints"]:
        output.say(f"problem: {complaint}")
    if report["usable"]:
        output.say("A search can run here.")
