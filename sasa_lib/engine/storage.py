"""Where results are kept: a folder of this machine, or an address that fsspec knows.

Everything appears under its name whole or not at all, wherever that is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
from filelock import FileLock, Timeout
from upath import UPath

from sasa_lib.texts.assets import AssetError, cache_dir

STORE = "SASA_STORE"  # the environment variable that names where runs keep what is long work


def place(folder: str | Path | UPath) -> Path | UPath:
    """Return a folder as a path: absolute, since Ray's actors have other working directories.

    Parameters
    ----------
    folder : str, Path or UPath
        A folder, or an address such as "s3://bucket/runs"; a `upath.UPath` if it needs options.
    """
    if isinstance(folder, Path) or "://" not in str(folder):
        return Path(folder).absolute()
    try:
        found = UPath(folder)
        found.fs  # noqa: B018  # made only now
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"cannot keep anything in {folder}: {error}; give a folder, or an address of fsspec"
        ) from error
    return found


def store(run: str | Path) -> Path | UPath:
    """Return where a notebook's run keeps generations, embeddings and judgements.

    Parameters
    ----------
    run : str or Path
        The run's folder: the answer, unless the environment variable SASA_STORE names an address,
        in which it has the place that it has in runs/.
    """
    address = os.environ.get(STORE)
    if not address:
        return Path(run)
    parts = Path(run).resolve().parts
    inside = parts[parts.index("runs") + 1 :] if "runs" in parts else parts[-1:]
    return place(address).joinpath(*inside)


@contextmanager
def atomic_file(target: Path | UPath) -> Iterator[Path | UPath]:
    """Yield a temporary path that becomes `target` when the block ends without an error."""
    temporary = unnamed(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        rename(temporary, target)
    except OSError as error:
        raise AssetError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def unnamed(target: Path | UPath) -> Path | UPath:
    """Return a temporary path beside `target`, which no other process has."""
    return target.with_name(f".{target.name}.{uuid4().hex}.tmp")


def rename(temporary: Path | UPath, target: Path | UPath) -> None:
    """Give a file its name; what had it before is replaced."""
    if isinstance(temporary, Path):
        temporary.replace(target)
    else:
        temporary.fs.mv(temporary.path, target.path)


def not_seen(folder: Path | UPath) -> AssetError:
    """Make the error of a folder that actors and their driver do not share."""
    return AssetError(
        f"what an actor wrote into {folder} is not to be seen here: give a folder on a disk that "
        "all machines of the cluster share, or the address of an object store"
    )


def listed(folder: Path | UPath, pattern: str) -> list[Path | UPath]:
    """Files of a folder, as they are now, in the order of their names."""
    if not isinstance(folder, Path):
        folder.fs.invalidate_cache()  # another process may have written
    return sorted(folder.glob(pattern), key=str)


@contextmanager
def alone(folder: Path | UPath) -> Iterator[None]:
    """Keep other processes off a folder. The lock of a killed process is nobody's.

    An address has no locks: there it keeps off only other processes of this machine.

    Raises
    ------
    RuntimeError
        Another process is at work there.
    AssetError
        The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / ".lock" if isinstance(folder, Path) else _lock_of(folder)
        held = FileLock(lock).acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(
            f"another process is at work on {folder}: wait until it has ended"
        ) from error
    except OSError as error:
        raise AssetError(f"cannot write {folder}: {error.strerror or error}") from error
    with held:
        _sweep(folder)
        try:
            yield
        finally:
            _sweep(folder)


def read_tables(
    files: Sequence[Path | UPath], schema: pa.Schema, **options: object
) -> pd.DataFrame:
    """Read Parquet files as one table.

    Parameters
    ----------
    files : sequence of Path or UPath
        All in one folder.
    schema : pyarrow.Schema
    **options
        For `pyarrow.dataset.Dataset.to_table`, such as filter and columns.
    """
    remote = bool(files) and not isinstance(files[0], Path)
    dataset = ds.dataset(
        [file.path if remote else str(file) for file in files],
        schema=schema,
        format="parquet",
        filesystem=files[0].fs if remote else None,
    )
    try:
        return dataset.to_table(**options).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"a file of {files[0].parent} cannot be read ({error}): if it is damaged, delete it, "
            "and what it held is made again"
        ) from error


def write_table(table: pd.DataFrame, file: Path | UPath, schema: pa.Schema | None = None) -> None:
    """Write a table as Parquet."""
    with file.open("wb") as out:
        table.to_parquet(out, index=False, schema=schema)


def _lock_of(folder: UPath) -> Path:
    locks = cache_dir() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return locks / hashlib.sha256(str(folder).encode()).hexdigest()[:16]


def _sweep(folder: Path | UPath) -> None:
    """Remove what killed processes were writing."""
    for left in listed(folder, ".*.tmp"):
        left.unlink(missing_ok=True)
