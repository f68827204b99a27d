"""Who runs the batches of a campaign: processes of this machine, or Ray's workers wherever they are. The rows are the same.

Rows come in any order. A batch whose worker process dies is tried once more alone, and is then a row with its error.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from service.cli.console import fail
from simulators.campaign import Job, error_row, run_job

ENGINES = ("local", "ray")
AHEAD = 4
"""Batches that are handed out for each worker, so that none waits for its next."""
DIED = "the worker process died (out of memory?)"

Rows = Generator[dict[str, Any]]


def check_engine(engine: str) -> None:
    """End the program with one line unless `engine` is known and can run here."""
    if engine not in ENGINES:
        fail(f"--engine {engine}: unknown; use {' or '.join(ENGINES)}")
    if engine == "ray":
        try:
            import ray  # noqa: F401  # pyright: ignore[reportMissingImports,reportUnusedImport]
        except ImportError:
            fail("--engine ray: this needs ray: pip install 'celltwin[ray]'; or use local")


def run_all(work: Sequence[Job], engine: str, workers: int) -> Rows:
    """The row of every job, in the order in which they finish. Closing the generator stops what still runs."""
    if not work:
        return
    if engine == "ray":
        yield from _ray(work, workers)
    elif workers == 1:
        yield from map(run_job, work)
    else:
        yield from _local(work, min(workers, len(work)))


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _local(work: Sequence[Job], workers: int) -> Rows:
    waiting = deque(work)
    while waiting:
        pool, running = _pool(workers), dict[Future[dict[str, Any]], Job]()
        try:
            while waiting or running:
                while waiting and len(running) < AHEAD * workers:
                    running[pool.submit(run_job, waiting[0])] = waiting[0]
                    waiting.popleft()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    row = future.result()
                    del running[future]
                    yield row
        except BrokenProcessPool:  # one of those that ran has taken the pool with it
            for future, job in running.items():
                whole = future.done() and not future.cancelled() and future.exception() is None
                yield future.result() if whole else _alone(job)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _alone(job: Job) -> dict[str, Any]:
    with _pool(1) as pool:
        try:
            return pool.submit(run_job, job).result()
        except BrokenProcessPool:
            return error_row(job, DIED)


def _at(path: Sequence[str], job: Job) -> dict[str, Any]:
    """Run a job where this program's modules, and a user's own, may have to be found first."""
    sys.path += [p for p in path if p not in sys.path]
    return run_job(job)


def _ray(work: Sequence[Job], workers: int) -> Rows:
    """On the cluster of RAY_ADDRESS if that is set, else on one of `workers` processes that is started and stopped here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # as the processes of `local`: not below all else that runs here
    import ray  # pyright: ignore[reportMissingImports]

    begun = not ray.is_initialized()
    if begun:
        own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="ERROR", **own)
    try:
        remote = ray.remote(num_cpus=1, max_retries=1)(_at)
        waiting, running = deque(work), dict[Any, Job]()
        lanes = AHEAD * max(1, int(ray.cluster_resources().get("CPU", workers)))
        path = [p or os.getcwd() for p in sys.path]  # noqa: PTH109
        while waiting or running:
            while waiting and len(running) < lanes:
                running[remote.remote(path, waiting[0])] = waiting[0]
                waiting.popleft()
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                job = running.pop(reference)
                try:
                    row = ray.get(reference)
                except ray.exceptions.RayError as error:
                    died = isinstance(error, ray.exceptions.WorkerCrashedError)
                    row = error_row(job, DIED if died else f"{type(error).__name__}: {error}".splitlines()[0])
                yield row
    finally:
        if begun:
            ray.shutdown()
