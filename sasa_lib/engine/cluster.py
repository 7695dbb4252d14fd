"""Which engine does the work: this process, or Ray's actors on this machine or a cluster.

Ray does what is hard: which actor gets what, how much is under way at once, and starting again
what died. Nothing here imports it before somebody asks for it.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from transformers import GenerationConfig, PreTrainedModel

from sasa_lib.checks import check_count
from sasa_lib.engine.identity import model_digest
from sasa_lib.engine.models import SPREAD, load_lm

ENGINES = ("local", "ray")
ENGINE = "SASA_ENGINE"  # the environment variable that names one where a call does not
ACTOR_GPUS = "SASA_ACTOR_GPUS"  # the environment variable that says how many hold one model
TASK_RETRIES = 16  # of work whose actor died: enough for a spot fleet, and an end to what kills it


@dataclass(frozen=True)
class Pool:
    """Actors that Ray keeps, each on one GPU or some where the cluster has any, else on one CPU.

    Attributes
    ----------
    size : int
        Number of actors.
    device : str
        The torch device of every actor, as it sees it: of several the first.
    gpus : int
        Of one actor; the model is spread over them.
    """

    size: int
    device: str
    gpus: int = 0

    def each(self, make: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> Iterator[Any]:
        """Do every item in some actor, and yield what came of it, in whatever order.

        Parameters
        ----------
        make : callable
            Called once in every actor; returns what does an item. It may be done twice, where an
            actor died, so it must not matter if it is. A language model in it is not sent: every
            actor loads its own, by name.
        items : sequence
            Anything that can be pickled, and so must be what comes of it.

        Raises
        ------
        Exception
            Whatever `make` or its function raised, with the actor's traceback as a note.
        """
        import ray
        import ray.data

        if not items:
            return
        try:
            made = ray.put(_pickled(make, self))
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise ValueError(
                f"engine='ray' cannot send this to other processes ({error}): use "
                "engine='local', or keep what cannot be pickled out of the method or scorer"
            ) from error
        rows = [{"item": ray.cloudpickle.dumps(item)} for item in items]
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            fn_constructor_args=(made,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=min(self.size, len(rows)), max_tasks_in_flight_per_actor=2
            ),
            num_cpus=1,
            num_gpus=self.gpus,
            max_restarts=-1,
            max_task_retries=TASK_RETRIES,
        )
        # Without prefetching, or the driver would hear of an item only when the next one is done.
        batches = done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        outcomes = iter(batches)
        try:
            # Closed, Ray stops at once: after an error, nobody wants the rest.
            with closing(outcomes):
                for batch in outcomes:
                    for outcome in batch["outcome"].to_pylist():
                        result, error = pickle.loads(outcome)
                        if error is not None:
                            raise error
                        yield result
        finally:
            # Cycles of Ray's own objects keep the actors, and their GPUs, until they are collected.
            del done, batches, outcomes
            gc.collect()


@dataclass(frozen=True)
class ModelCopy:
    """What an actor needs to have the driver's model: its name, not its weights.

    Attributes
    ----------
    name : str
        By which boundaries know the model.
    source, dtype, device : str
        What `sasa_lib.load_lm` takes.
    fingerprint : str
        Of the driver's model.
    generation_config : transformers.GenerationConfig
        The driver's own.
    """

    name: str
    source: str
    dtype: str
    device: str
    fingerprint: str
    generation_config: GenerationConfig

    @classmethod
    def of(cls, model: PreTrainedModel, pool: Pool) -> ModelCopy:
        """Describe a driver's model, for the actors of a pool."""
        name = model.name_or_path
        return cls(
            name,
            os.path.abspath(name) if os.path.isdir(name) else name,  # actors are elsewhere
            str(model.dtype).removeprefix("torch."),
            pool.device if pool.gpus < 2 else SPREAD,
            model_digest(model),
            model.generation_config,
        )

    def load(self) -> PreTrainedModel:
        """Load it, once in a process however often it is asked for."""
        if self.fingerprint not in _LOADED:
            model, _ = load_lm(self.source, device=self.device, dtype=self.dtype)
            if model_digest(model) != self.fingerprint:
                raise ValueError(
                    f"an actor that loads {self.name!r} gets other weights than the model that was "
                    "given: save the model to a folder that all machines see, and load it from "
                    "there"
                )
            model.name_or_path = self.name
            model.generation_config = self.generation_config
            _LOADED[self.fingerprint] = model
        return _LOADED[self.fingerprint]


_LOADED: dict[str, PreTrainedModel] = {}  # in an actor, which ends with its call


def pool(engine: str | None = None, actors: int | None = None) -> Pool | None:
    """Return the actors of an engine, or None where this process does the work.

    Parameters
    ----------
    engine : {"local", "ray"}, optional
        None is what the environment variable SASA_ENGINE says, and "local" without it. Ray joins
        the cluster that RAY_ADDRESS names, or starts on this machine.
    actors : int, optional
        For "ray": None is one for each GPU of the cluster, or each CPU if it has no GPU; or for
        as many GPUs as the environment variable SASA_ACTOR_GPUS says, over which each actor then
        spreads its model.

    Returns
    -------
    Pool or None

    Raises
    ------
    ImportError
        Ray is not installed.
    """
    named = engine is not None
    engine = engine if named else os.environ.get(ENGINE) or "local"
    if engine not in ENGINES:
        where = "" if named else f" in {ENGINE}"
        raise ValueError(f"unknown engine {engine!r}{where}; known are {', '.join(ENGINES)}")
    if actors is not None:
        actors = check_count("actors", actors)
    if engine == "local":
        if actors is not None:
            raise ValueError("actors are Ray's: give engine='ray' with them")
        return None
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            "engine='ray' needs Ray, which is not installed; install it by: "
            'pip install "sasa-lib[ray]"'
        ) from error
    if not ray.is_initialized():
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        address = os.environ.get("RAY_ADDRESS") or "local"
        try:
            with _interrupts_later():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ValueError(f"no Ray answers at RAY_ADDRESS={address}: {error}") from error
    # Its bars count blocks; ours count prompts.
    ray.data.DataContext.get_current().enable_progress_bars = False
    each = os.environ.get(ACTOR_GPUS) or "1"
    if not each.isdecimal() or int(each) < 1:
        raise ValueError(f"{ACTOR_GPUS} must be a whole number of at least 1, got {each!r}")
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = [int(machine.get("GPU", 0)) for machine in machines]
    if max(gpus, default=0):
        places = sum(has // int(each) for has in gpus)
        if not places:
            raise ValueError(f"{ACTOR_GPUS} is {each}, but no machine has more than {max(gpus)}")
        return Pool(actors or places, "cuda:0", int(each))
    if int(each) > 1:
        raise ValueError(f"{ACTOR_GPUS} is {each}, but no machine of the cluster has a GPU")
    cpus = sum(int(machine.get("CPU", 0)) for machine in machines)
    return Pool(actors or max(1, cpus), "cpu")


def _pickled(thing: object, pool: Pool) -> bytes:
    """Pickle what actors get; of a language model in it, such as a reward's, only its name."""
    import ray

    class Pickler(ray.cloudpickle.CloudPickler):
        def reducer_override(self, value: object) -> Any:
            if isinstance(value, PreTrainedModel) and value.get_output_embeddings() is not None:
                return ModelCopy.load, (ModelCopy.of(value, pool),)
            return super().reducer_override(value)

    file = io.BytesIO()
    Pickler(file).dump(thing)
    return file.getvalue()


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Hold back an interrupt, which may hang a process for ever while Ray starts in it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            raise KeyboardInterrupt


class _Actor:
    """What Ray Data keeps in every actor."""

    def __init__(self, made: Any) -> None:
        import ray

        # An error travels as a result: Ray would wrap it, and start the actor anew for ever.
        try:
            self.work = pickle.loads(ray.get(made))()
        except Exception as error:
            self.work = partial(_raise, _noted(error))

    def __call__(self, batch: pa.Table) -> pa.Table:
        (item,) = batch["item"].to_pylist()
        try:
            outcome = self.work(pickle.loads(item)), None
        except Exception as error:
            outcome = None, _noted(error)
        return pa.table({"outcome": pa.array([pickle.dumps(outcome)], pa.binary())})


def _noted(error: Exception) -> Exception:
    """Keep the traceback, which pickling drops, as a note of what can be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
        noted = error
    except Exception:  # whatever a class may do when it is pickled or made again
        noted = RuntimeError(f"{type(error).__name__}: {error}")
    if not any("in an actor of Ray" in note for note in getattr(error, "__notes__", ())):
        noted.add_note("in an actor of Ray:\n" + "".join(traceback.format_exception(error)))
    return noted


def _raise(error: Exception, item: object) -> None:
    raise error
