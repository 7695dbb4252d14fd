"""Run the cells of a sweep, on this machine or as tasks of Ray; scripts/sweep.py calls this."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from sweep_table import readable
from tqdm import tqdm

import notebooks

if TYPE_CHECKING:
    from sweep import Sweep

    from sasa_lib.engine.cluster import Pool

LIBRARY = ("sasa_lib/**/*.py", "data/*.jsonl", "data/*.safetensors", "scripts/notebooks.py")
ENGINE = "SASA_ENGINE"  # as in sasa_lib.engine.cluster, whose import takes seconds
POLL_SECONDS = 0.2
GRACE_SECONDS = 10  # in which an interrupted cell ends its kernel


def outstanding(run: Path, chain: Sequence[str]) -> list[str]:
    """Notebooks of a chain that are not up to date in a run's folder, in order.

    As for `make run`, a notebook is up to date if its executed copy is newer than the notebook,
    the library, the parameters, and the executed copies before it.

    Parameters
    ----------
    run : Path
        The folder.
    chain : sequence of str
        Names of notebooks.
    """
    library = [path for part in LIBRARY for path in notebooks.PROJECT.glob(part)]
    newest = max((path.stat().st_mtime for path in library), default=0.0)
    for i, notebook in enumerate(chain):
        executed = run / f"{notebook}.ipynb"
        source = notebooks.NOTEBOOKS / f"{notebook}.ipynb"
        parameters = run / "parameters" / f"{notebook}.json"
        newest = max(newest, source.stat().st_mtime, parameters.stat().st_mtime)
        if not executed.is_file() or executed.stat().st_mtime < newest:
            return list(chain[i:])
        newest = executed.stat().st_mtime
    return []


def run(sweep: Sweep) -> tuple[list[str], int]:
    """Run the cells that are not up to date, each in a process of its own, here or on Ray.

    Parameters
    ----------
    sweep : Sweep

    Returns
    -------
    done : list of str
        Cells that are up to date now.
    failed : int
        Cells that are not.
    """
    waiting = [cell for cell in sweep.cells if outstanding(sweep.folder / cell, sweep.chain)]
    done = [cell for cell in sweep.cells if cell not in waiting]
    at_once, cores = _share(sweep, len(waiting))
    threads = os.environ.get("OMP_NUM_THREADS") or str(int(cores))
    # A cell that asked the cluster for actors would wait for the place that it takes itself.
    environment = {"OMP_NUM_THREADS": threads, ENGINE: "local"}
    for name in ("SASA_CACHE", "SASA_STORE"):
        if place := os.environ.get(name):
            environment[name] = place if "://" in place else os.path.abspath(place)
    print(
        f"{len(sweep.cells)} cells of {', '.join(sweep.chain)}, {len(done)} of them up to date; "
        f"{'as tasks of Ray' if sweep.pool else f'{at_once} at a time'}, {threads} threads each",
        file=sys.stderr,
    )
    for cell in waiting:
        (sweep.folder / cell / "log.txt").unlink(missing_ok=True)
    failed = 0
    bar = tqdm(total=len(sweep.cells), initial=len(done), desc=sweep.folder.name, unit="cell")
    with bar, _on_ray(sweep.pool, cores) if sweep.pool else _here(at_once) as submit:
        cells: dict[Future, str] = {}
        while waiting or cells:
            while waiting and len(cells) < at_once:
                cell = waiting.pop(0)
                cells[submit(sweep.folder / cell, sweep.chain, environment)] = cell
            ended, _ = wait(cells, POLL_SECONDS, FIRST_COMPLETED)
            bar.set_postfix_str(", ".join(_stages(sweep, cells.values())), refresh=False)
            bar.refresh()
            for future in ended:
                cell = cells.pop(future)
                error = _error(sweep.folder / cell, future)
                if error is None:
                    done.append(cell)
                else:
                    failed += 1
                    values = sweep.cells[cell].items()
                    told = ", ".join(f"{axis} = {readable(value, True)}" for axis, value in values)
                    where = (sweep.folder / cell).relative_to(notebooks.PROJECT)
                    tqdm.write(f"FAILED {told}: {error} (see {where}/)", file=sys.stderr)
                bar.update()
    return [cell for cell in sweep.cells if cell in done], failed


def run_cell(folder: str, chain: Sequence[str]) -> None:
    """Execute the notebooks of one cell that are not up to date: the process that `run` starts.

    Parameters
    ----------
    folder : str
        The cell's folder within runs/.
    chain : sequence of str
        Names of notebooks.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # a task of Ray blocks it
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    run = notebooks.PROJECT / "runs" / folder
    try:
        # The cell of a sweep or a task that was killed may take a moment to end.
        with FileLock(run / ".lock"):
            for notebook in outstanding(run, chain):
                notebooks.execute(notebook, folder)
    except SystemExit as error:
        sys.exit(" ".join(str(error.code).split()))
    except KeyboardInterrupt:
        sys.exit("interrupted")


def _share(sweep: Sweep, waiting: int) -> tuple[int, float]:
    """How many cells to run at the same time, and the CPU cores for each."""
    machines, most = [_cores()], _cores() // 2
    if sweep.pool:
        import ray

        on_gpus = sweep.pool.device != "cpu"
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        machines = [node.get("CPU", 0) for node in nodes if "GPU" in node or not on_gpus]
        most = sweep.pool.size if on_gpus else int(sum(machines)) // 2
    at_once = max(1, min(sweep.jobs or most, waiting))
    return at_once, max(1, min(sum(machines) / at_once, max(machines, default=0)))


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _here(at_once: int) -> Iterator[Callable[..., Future]]:
    """What starts a cell on this machine; however this ends, the cells do not outlive it."""
    reading, writing = os.pipe()
    threads = ThreadPoolExecutor(at_once)
    try:
        yield partial(threads.submit, _process, stdin=reading)
    finally:
        os.close(writing)
        threads.shutdown(cancel_futures=True)
        os.close(reading)


@contextmanager
def _on_ray(pool: Pool, cores: float) -> Iterator[Callable[..., Future]]:
    """What starts a cell as a task of Ray; however this ends, the cells do not outlive it."""
    import ray

    from sasa_lib.engine.cluster import TASK_RETRIES

    # By value, so that a worker need not import this file and what it imports.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    task = ray.remote(
        num_cpus=1 if pool.gpus else int(cores),
        num_gpus=pool.gpus,
        max_retries=TASK_RETRIES,
    )(_process)
    started: list[Future] = []

    def submit(*arguments: Any) -> Future:
        started.append(task.remote(*arguments).future())
        return started[-1]

    try:
        yield submit
    finally:
        for future in started:
            ray.cancel(future.object_ref)
        wait(started, GRACE_SECONDS)


def _process(
    cell: Path, chain: Sequence[str], environment: dict[str, str], stdin: int = subprocess.PIPE
) -> int:
    """Run a cell in a process of its own, and return what that ended with."""
    script = cell.parents[2] / "scripts" / "sweep.py"
    # Appended, as what was killed may still write, too.
    with open(cell / "log.txt", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, str(script), "--cell", f"{cell.parent.name}/{cell.name}", *chain],
            stdin=stdin, stdout=log, stderr=subprocess.STDOUT, env=os.environ | environment,
        )  # fmt: skip
    try:
        # Ray interrupts a sleep, but not a wait.
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
    finally:
        # Its standard input ends, here or with this process, which tells it to end as well.
        if process.stdin:
            process.stdin.close()
        process.wait()
    return process.returncode


def _stages(sweep: Sweep, cells: Iterable[str]) -> list[str]:
    """Which notebook each cell is at that has begun."""
    paths = [sweep.folder / cell / "log.txt" for cell in cells]
    logs = [path.read_text(errors="replace") for path in paths if path.is_file()]
    stages = [re.findall(r"^== (\w+) ", log, re.MULTILINE) for log in logs]
    return [stage[-1] if stage else "starting" for stage in stages]


def _error(cell: Path, ended: Future) -> str | None:
    """Why a cell failed, in one line."""
    if ended.exception():
        told = str(ended.exception())
    elif ended.result() == 0:
        return None
    elif ended.result() < 0:
        return f"its process was killed by {signal.Signals(-ended.result()).name}"
    else:
        told = (cell / "log.txt").read_text(encoding="utf-8", errors="replace")
    last = next((line for line in reversed(told.split("\n")) if line.strip()), "no message")
    return textwrap.shorten(last, 400)


def _end_with(pipe: int) -> None:
    """Interrupt this process, and so the kernel, once the other end of a pipe is closed."""
    os.read(pipe, 1)  # not through sys.stdin, whose lock would be held at the exit
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE_SECONDS)
    os._exit(1)
