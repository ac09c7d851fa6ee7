"""Who does the work: the search's own process, or worker processes that may die without harm.

Every worker is a pool of one (loky), so that a process that dies, hangs or grows too large is known to have done so on
one job: that job fails with the reason, the worker is started anew, and the others never notice. Latencies are measured
by one worker while the others are idle; a rung is finished before the next begins, so nothing trains beside a
measurement.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from nasdistill.errors import ISOLATED, NasdistillError, TrialFailure, one_line
from nasdistill.search.events import many
from nasdistill.search.work import Job, Outcome, StopSearch, Workbench, failure_text

_POLL = 0.1
"""Seconds between two looks at running workers."""

JobProgress = Callable[[Job, int, Mapping[str, float]], None]


class Crew(Protocol):
    """Does jobs."""

    def map(
        self, jobs: Sequence[Job], *, progress: JobProgress, should_stop: Callable[[], bool]
    ) -> Generator[tuple[Job, Outcome], None, None]:
        """Do all jobs and yield each with its outcome, as they finish.

        Raises:
            StopSearch: `should_stop` said so; jobs that were not yielded are not done.
        """

    def close(self) -> None:
        """Let go of everything."""


class Here:
    """Works in this process, one job after the other."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    def map(
        self, jobs: Sequence[Job], *, progress: JobProgress, should_stop: Callable[[], bool]
    ) -> Generator[tuple[Job, Outcome], None, None]:
        """Do all jobs in order; see :class:`Crew`."""
        for job in jobs:
            if should_stop():
                raise StopSearch

            def tell(epoch: int, terms: Mapping[str, float], job: Job = job) -> None:
                progress(job, epoch, terms)

            yield job, self.bench.do(job, progress=tell, should_stop=should_stop)

    def close(self) -> None:
        """Nothing to let go of."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker process needs to open the run by itself.

    Attributes:
        run: the run's folder; the configuration and the latency scale are read from it.
        host: arguments of :meth:`nasdistill.host.Host.load`.
        parent: process to die with.
    """

    run: Path
    host: Mapping[str, Any] = field(default_factory=dict)
    parent: int = field(default_factory=os.getpid)


class Workers:
    """Worker processes.

    Args:
        orders: what to open.
        count: how many processes.
        timeout: seconds that a job may take.
        memory_gb: GiB that a worker may use; None = an equal share of 80 % of the machine's.
        message: told how many processes start, which takes seconds.
    """

    def __init__(
        self,
        orders: Orders,
        count: int,
        *,
        timeout: float = 3600.0,
        memory_gb: float | None = None,
        message: Callable[[str], None] = lambda text: None,
    ) -> None:
        import psutil

        share = 0.8 * psutil.virtual_memory().total / count / 2**30
        self.timeout = timeout
        self.memory_gb = share if memory_gb is None else memory_gb
        self._message = message
        self._slots = [_Slot(orders, number) for number in range(count)]

    def map(
        self, jobs: Sequence[Job], *, progress: JobProgress, should_stop: Callable[[], bool]
    ) -> Generator[tuple[Job, Outcome], None, None]:
        """Do all jobs, each on the next free worker; see :class:`Crew`."""
        waiting = deque(jobs)
        # One process measures all latencies: they are told in the scale of one calibration, on an idle machine.
        slots = self._slots[:1] if any(job.kind == "latency" for job in jobs) else self._slots
        needed = slots[: len(jobs)]
        absent = sum(not slot.up for slot in needed)
        if absent:
            own = "a process of its own, which opens" if absent == 1 else "processes of their own, which open"
            self._message(f"starting {many(absent, 'worker')}: {own} the data and the teacher first")
        for slot in needed:
            slot.open()
        try:
            while waiting or any(slot.job for slot in slots):
                if should_stop():
                    raise StopSearch
                for slot in slots:
                    if slot.job is None and waiting:
                        slot.start(waiting.popleft())
                wait([slot.future for slot in slots if slot.future], timeout=_POLL, return_when=FIRST_COMPLETED)
                for slot in slots:
                    job = slot.job
                    outcome = slot.look(self.timeout, self.memory_gb)
                    if job is not None and outcome is not None:
                        yield job, outcome
        finally:
            for slot in slots:
                if slot.job is not None:
                    slot.kill()

    def pids(self) -> list[int]:
        """Return the process ids of the workers that are up."""
        return [slot.pid for slot in self._slots if slot.pid is not None]

    def close(self) -> None:
        """End all workers."""
        for slot in self._slots:
            slot.kill()


class _Slot:
    """One worker process and the job it is on."""

    def __init__(self, orders: Orders, number: int) -> None:
        self.orders = orders
        self.number = number
        self.pid: int | None = None
        self.job: Job | None = None
        self.future: Future[Any] | None = None
        self._executor: Any = None
        self._ready: Any = None
        self._since = 0.0

    @property
    def up(self) -> bool:
        """Whether the process was started."""
        return self._executor is not None

    def open(self) -> None:
        """Start the process, where it is not up; it opens the run while others do the same."""
        from loky import ProcessPoolExecutor

        if not self.up:
            self._executor = ProcessPoolExecutor(1, timeout=None, initializer=_settle, initargs=(self.orders,))
            self._ready = self._executor.submit(_ready, self.orders)

    def start(self, job: Job) -> None:
        """Put a job on the worker.

        Raises:
            NasdistillError: the process cannot open the run.
        """
        for attempt in (1, 2):
            self.open()
            try:
                self.pid = self._ready.result(timeout=600)
            except ISOLATED as error:
                self.kill()
                why = error if isinstance(error, NasdistillError) else one_line(error)
                raise NasdistillError(f"worker process {self.number} cannot open the run: {why}") from error
            try:
                self.future = self._executor.submit(_work, self.orders, job)
            except Exception:  # it died while it had nothing to do, which is no job's fault: a new one
                self.kill()
                if attempt == 2:
                    raise
            else:
                break
        self.job, self._since = job, time.monotonic()

    def look(self, timeout: float, memory_gb: float) -> Outcome | None:
        """Return the job's outcome when there is one, be it that the worker died or had to be killed."""
        if self.future is None:
            return None
        seconds = time.monotonic() - self._since
        if self.future.done():
            error = self.future.exception()
            if error is None:
                outcome: Outcome = self.future.result()
                self.job = self.future = None
                return outcome
            reason = _death(error)
        elif seconds > timeout:
            reason = f"no answer within {timeout:g} s"
        elif (used := self._memory()) > memory_gb:
            reason = f"used {used:.2f} GiB, more than its limit of {memory_gb:.2f} GiB"
        else:
            return None
        self.kill()
        return Outcome({}, failure_text(TrialFailure("worker", reason)), False, seconds)

    def _memory(self) -> float:
        """Return the GiB that the worker uses, 0 where that cannot be told."""
        import psutil

        try:
            return float(psutil.Process(self.pid).memory_info().rss) / 2**30
        except psutil.Error:
            return 0.0

    def kill(self) -> None:
        """End the process; the next job starts a new one."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, kill_workers=True)
        self._executor = self._ready = self.job = self.future = self.pid = None


def _death(error: BaseException) -> str:
    """Return how a worker process ended, from the pool's own account."""
    found = re.search(r"\{(.+)\}", str(error))
    if found is None:
        return f"process lost: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    how = found.group(1)
    return f"process killed by {how}" if how.startswith("SIG") else f"process ended by itself: {how}"


# ---- in the worker process ------------------------------------------------------------------------------------------

_benches: dict[Path, Workbench] = {}


def _settle(orders: Orders) -> None:
    """Leave Ctrl-C to the parent, do not outlive it, and write what is said into a log instead of on its terminal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = orders.run / "logs"
    log.mkdir(exist_ok=True)
    descriptor = os.open(log / f"worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    _share_no_locks()

    def watch() -> None:
        while os.getppid() == orders.parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()


def _share_no_locks() -> None:
    """Give progress bars (tqdm: teachers and tokenizers that load) a lock of this process alone.

    Theirs is a named semaphore, known to the parent's resource tracker. A worker is ended from outside and never gives
    it back, so that the tracker would complain of leaks on the user's terminal when the search ends.
    """
    if find_spec("tqdm") is not None:
        bars: Any = import_module("tqdm")
        bars.tqdm.set_lock(threading.RLock())


def _ready(orders: Orders) -> int:
    _bench(orders)
    return os.getpid()


def _work(orders: Orders, job: Job) -> Outcome:
    return _bench(orders).do(job)


def _bench(orders: Orders) -> Workbench:
    """Return the opened run; a process opens it once."""
    if orders.run not in _benches:
        from nasdistill.search.opening import open_bench

        _benches[orders.run] = open_bench(orders.run, orders.host)
    return _benches[orders.run]
