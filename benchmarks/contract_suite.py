"""What the contract suite costs per bundled component, and which of its checks the zoo of broken components covers.

Every component is checked once in a warm process, on one thread; the seconds are those of its checks, imports that an
earlier component has paid for not included. The zoo (tests/zoo_KIND.py) is only counted here: that each of its members
fails its check and no other is a test.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from _common import finish, parser, say, start, table

from nasdistill.bridge import prepare_imports
from nasdistill.spec.component import Kind
from nasdistill.testing import all_checks, check_component, isolated_host


def main() -> None:
    options = parser(__doc__.splitlines()[0], seeds=1)
    options.add_argument("--thorough", action="store_true", help="the slow checks too")
    args = options.parse_args()
    start(args)
    prepare_imports()
    host = isolated_host()
    rows: list[dict[str, Any]] = []
    for record in host.specs():
        say(f"{record.kind.value} {record.id}")
        check_component(record.id, kind=record.kind, host=host, on_fail="record")  # imports and caches
        results = check_component(record.id, kind=record.kind, host=host, on_fail="record", thorough=args.thorough)
        count = Counter(item.status for item in results)
        rows.append(
            {
                "kind": record.kind.value, "component": record.id, "checks": len(results), "passed": count["passed"],
                "skipped": count["skipped"], "failed": count["failed"] + count["xpassed"],
                "examples": len({item.example for item in results if item.example} or {""}),
                "seconds": sum(item.seconds for item in results),
                "slowest": max(results, key=lambda item: item.seconds).check,
            }
        )  # fmt: skip
    zoo = coverage()
    finish(
        args,
        rows,
        [
            ("kind", "kind", ""), ("component", "component", ""), ("examples", "examples", "d"),
            ("checks", "checks", "d"), ("skipped", "skipped", "d"), ("failed", "failed", "d"),
            ("seconds", "seconds", ".2f"), ("slowest", "slowest", ""),
        ],
        {"zoo": zoo, "thorough": args.thorough},
    )  # fmt: skip
    print()
    print(
        table(
            zoo,
            [("kind", "kind", ""), ("checks", "checks", "d"), ("caught", "with a victim", "d"),
             ("sound", "sound", "d"), ("broken", "broken", "d")],
        )
    )  # fmt: skip


def coverage() -> list[dict[str, Any]]:
    """Count checks and zoo members per kind."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    rows = []
    common = {item.name for item in all_checks() if item.kind is None}
    for kind in (None, *Kind):
        name = f"zoo_{'common' if kind is None else kind.value}"
        checks = {item.name for item in all_checks() if item.kind is kind}
        zoo = importlib.import_module(name) if importlib.util.find_spec(name) else None
        broken = [] if zoo is None else zoo.BROKEN
        caught = {item.check for item in broken} & checks if kind else {item.check for item in broken} & common
        rows.append(
            {
                "kind": "every kind" if kind is None else kind.value, "checks": len(checks), "caught": len(caught),
                "sound": 0 if zoo is None else len(zoo.SOUND), "broken": len(broken),
            }
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
