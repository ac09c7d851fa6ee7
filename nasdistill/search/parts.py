"""The parts of a run, created from its configuration and checked against each other before anything is started."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nasdistill.errors import (
    ISOLATED,
    MismatchError,
    NasdistillError,
    TargetUnavailableError,
    UnknownComponentError,
    UsageError,
    one_line,
)
from nasdistill.files import cache_folder
from nasdistill.host import Host
from nasdistill.host.configcheck import search_setting
from nasdistill.interfaces import (
    Availability,
    Batch,
    ModelGeometry,
    Proxy,
    SamplerFactory,
    SearchSetting,
    SearchSpace,
    Strategy,
    Target,
    Task,
    Teacher,
    TeacherSession,
)
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.component import Kind, ProxyTags
from nasdistill.spec.config import RunConfig

if TYPE_CHECKING:
    from nasdistill.distill import TeacherCache


@dataclass(slots=True)
class Components:
    """The components a configuration names, created but not yet opened: cheap, and fails on any wrong name or
    option.
    """

    host: Host
    setting: SearchSetting
    task: Task
    teacher: Teacher
    teacher_reference: str
    locator: str
    spaces: dict[str, SearchSpace]
    targets: dict[str, Target]
    proxies: dict[str, tuple[Proxy, ProxyTags]]
    strategy: Strategy
    sampler: SamplerFactory


@dataclass(slots=True)
class Parts:
    """Everything a search works with, opened and checked."""

    components: Components
    config: RunConfig
    task: Task
    teacher: TeacherSession
    geometry: ModelGeometry
    device: str
    cache: TeacherCache | None = None
    calibration: tuple[Batch, ...] = field(default_factory=tuple)

    @property
    def host(self) -> Host:
        """The host."""
        return self.components.host

    @property
    def spaces(self) -> dict[str, SearchSpace]:
        """Prefix -> space."""
        return self.components.spaces

    def space_of(self, architecture: Architecture) -> SearchSpace:
        """Return the space an architecture belongs to."""
        return next(space for space in self.spaces.values() if space.id == architecture.space)


def create_components(config: RunConfig, host: Host) -> Components:
    """Create everything a configuration names.

    Raises:
        UsageError: an unknown name, a wrong option, the same component twice under two names, or a proxy that only has
            values within a pool.
    """
    teacher_name, locator = locate_teacher(host, config.teacher.name)
    for kind, items in (
        (Kind.SEARCH_SPACE, config.space),
        (Kind.TARGET, config.target),
        (Kind.PROXY, config.proxy),
    ):
        ids = [host.canonical(kind, item.name) for item in items]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise UsageError(f"the configuration names {', '.join(twice)} more than once")
    setting = search_setting(config, host)
    spaces: dict[str, SearchSpace] = {}
    for name, item in zip(setting.spaces, config.space, strict=True):
        spaces[name] = host.create(Kind.SEARCH_SPACE, item.name, item.options)
    targets = {}
    for item in config.target:
        target = host.create(Kind.TARGET, item.name, item.options)
        targets[target.id] = target
    proxies: dict[str, tuple[Proxy, ProxyTags]] = {}
    for name, item in zip(setting.proxies, config.proxy, strict=True):
        proxy = host.create(Kind.PROXY, item.name, item.options)
        tags = host.tags(Kind.PROXY, item.name)
        if tags.pool:
            # Candidates are scored and recorded one by one, and a later one would change what is recorded.
            raise UsageError(
                f"proxy {proxy.id} ranks a pool of candidates as a whole; a search scores them one by one",
                hint="Take it out of the configuration; nasdistill score ranks a pool with it.",
            )
        proxies[name] = (proxy, tags)
    for loss in config.objective.losses:
        host.create(Kind.LOSS, loss.name, loss.options)
    return Components(
        host=host,
        setting=setting,
        task=host.create(Kind.TASK, config.task.name, config.task.options),
        teacher=host.create(Kind.TEACHER, teacher_name, config.teacher.options),
        teacher_reference=config.teacher.name,
        locator=locator,
        spaces=spaces,
        targets=targets,
        proxies=proxies,
        strategy=host.create(Kind.STRATEGY, config.search.strategy, config.search.strategy_options),
        sampler=host.create(Kind.SAMPLER, config.search.sampler, config.search.sampler_options),
    )


def locate_teacher(host: Host, text: str) -> tuple[str, str]:
    """Split ``NAME:LOCATOR`` into a teacher's canonical id and its locator.

    Raises:
        UnknownComponentError: no such teacher; for a locator without its name (``resnet18``) the whole is suggested
            (``timm:resnet18``). Otherwise as :meth:`Host.locate`.
    """
    try:
        return host.locate(Kind.TEACHER, text)
    except UnknownComponentError as error:
        if (Path(text) / "config.json").is_file():  # a folder is no misspelt name, and the host has said what it is
            raise
        locator = text.rpartition(":")[2]
        known: dict[str, list[str]] = {}
        for spec in host.specs(Kind.TEACHER):
            # A provider that cannot be imported has nothing to suggest; what is wrong with it is not the question.
            with contextlib.suppress(Exception):
                for name in host.load(Kind.TEACHER, spec.name).locators():
                    known.setdefault(name, []).append(f"{spec.name}:{name}")
        # A whole name is what was meant; only without one are similar names worth showing.
        close = [locator] if locator in known else difflib.get_close_matches(locator, known, n=3, cutoff=0.75)
        if not close:
            raise
        meant = " or ".join(repr(name) for match in close for name in known[match])
        raise UnknownComponentError(
            f"no teacher named {text!r}. Did you mean {meant}?",
            hint="A teacher is written NAME:LOCATOR, such as timm:resnet18 or builtin:digits.",
        ) from error


def check_targets(components: Components) -> None:
    """Refuse targets that cannot be used here.

    Raises:
        TargetUnavailableError: naming the target, the reason and what to install.
    """
    for name, target in components.targets.items():
        try:
            availability = target.probe()
        except NasdistillError:
            raise
        except ISOLATED as error:
            availability = Availability(False, f"its probe failed: {one_line(error)}")
        if not availability.ok:
            raise TargetUnavailableError(
                f"target {name} cannot be used here: {availability.reason}",
                hint="nasdistill doctor shows which targets work; --target chooses others.",
            )


def choose_device(wanted: str) -> str:
    """Return the torch device for training.

    Raises:
        UsageError: no such device, or it is not there.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(wanted)
    except RuntimeError:
        raise UsageError(f"{wanted!r} is no device", hint="Set training.device to 'auto', 'cpu' or 'cuda'.") from None
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {wanted!r} is not available here", hint="Set training.device to 'cpu' or 'auto'.")
    return wanted


def open_parts(components: Components, config: RunConfig, *, message: Callable[[str], None]) -> Parts:
    """Read the data, open the teacher (training it on first use) and check that the parts fit.

    Raises:
        UsageError: data, teacher, task and spaces do not fit; both shapes are named.
    """
    from nasdistill.distill import TeacherCache
    from nasdistill.trace import describe

    task = components.task
    cache_dir = cache_folder()
    task.prepare(cache_dir, message)
    for name, space in components.spaces.items():
        reason = space.accepts(task.io)
        if reason is not None:
            raise MismatchError(f"space {name} does not fit the task ({task.io}): {reason}")
    device = choose_device(config.training.device)
    teacher = components.teacher.open(components.locator, task, cache_dir=cache_dir, device=device, progress=message)
    task.check(teacher.model, f"teacher {components.teacher_reference}")
    probe = next(task.batches("train", batch_size=2)).to(device)
    geometry = describe(teacher.model, lambda model: task.forward(model, probe), label=f"teacher {teacher.label}")
    cache = None
    if config.training.teacher_cache and teacher.cacheable:
        cache = TeacherCache(cache_dir / "teacher-outputs")
    calibration = tuple(batch for batch, _ in zip(task.batches("train", batch_size=64), range(2), strict=False))
    return Parts(components, config, task, teacher, geometry, device, cache, calibration)


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def space_summary(spaces: dict[str, SearchSpace]) -> list[dict[str, Any]]:
    """Return name and size of every space, for the plan."""
    return [{"space": name, "size": space.size(), "axes": len(space.axes())} for name, space in spaces.items()]
