"""Rows that are made once: a table in a folder, each row under the key of what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
from tqdm import tqdm
from upath import UPath

from sasa_lib.engine.cluster import Pool
from sasa_lib.engine.identity import key
from sasa_lib.engine.storage import atomic_file, listed, read_tables, write_table

Make = Callable[[list[Any]], pd.DataFrame]


class KeyedTable:
    """A table of which every row is made once, whoever asks for it, and whenever.

    Rows are written some at a time, each file whole or not at all, so that a kill loses no more
    than those. What two processes make at the same time is there twice, and read once.

    Parameters
    ----------
    folder : Path, UPath or None
        Named after all that a row depends on but its key. None: nothing is kept.
    columns : mapping from str to pyarrow.DataType
    """

    def __init__(self, folder: Path | UPath | None, columns: Mapping[str, pa.DataType]) -> None:
        self.folder = folder
        self.schema = pa.schema({"key": pa.string(), **columns})

    def fill(
        self,
        items: Mapping[str, Any],
        make: Make,
        *,
        at_once: int,
        pool: Callable[[], Pool | None] = lambda: None,
        maker: Callable[[], Make] | None = None,
        bar: tqdm | None = None,
    ) -> pd.DataFrame:
        """Return the rows of items, and make those that are not there.

        Parameters
        ----------
        items : mapping from the key of an item to the item
        make : callable
            From a list of items to a table of as many rows.
        at_once : int
            Items that are made together and kept in one file.
        pool : callable
            Called if something is missing; returns Ray's actors, or None.
        maker : callable
            Returns `make` where an actor calls it.
        bar : tqdm.tqdm, optional
            Told of every item that is there.

        Returns
        -------
        pandas.DataFrame
            Indexed by key, in the order of the items.
        """
        bar = bar if bar is not None else tqdm(disable=True)
        found = [self._there(items)]
        missing = [name for name in items if name not in found[0].index]
        bar.update(len(items) - len(missing))
        parts = [missing[start : start + at_once] for start in range(0, len(missing), at_once)]
        work = [(part, [items[name] for name in part]) for part in parts]
        actors = pool() if work else None
        done = actors.each(partial(_with_keys, maker), work) if actors else _made(make, work)
        with closing(done):  # or an error, as long as it is kept, would keep Ray's actors
            for names, rows in done:
                rows = rows.assign(key=names)[self.schema.names]
                if self.folder is not None:
                    with atomic_file(self.folder / f"{key(names)}.parquet") as temporary:
                        write_table(rows, temporary, self.schema)
                found.append(rows.set_index("key"))
                bar.update(len(names))
        return pd.concat([rows for rows in found if len(rows)] or found).loc[list(items)]

    def _there(self, items: Mapping[str, Any]) -> pd.DataFrame:
        files = [] if self.folder is None else listed(self.folder, "*.parquet")
        if not files:
            return self.schema.empty_table().to_pandas().set_index("key")
        wanted = ds.field("key").isin(list(items))
        table = read_tables(files, self.schema, filter=wanted)
        return table.drop_duplicates("key").set_index("key")


def _made(
    make: Make, work: Sequence[tuple[list[str], list[Any]]]
) -> Iterator[tuple[list[str], pd.DataFrame]]:
    for names, items in work:
        yield names, make(items)


def _with_keys(
    maker: Callable[[], Make],
) -> Callable[[tuple[list[str], list[Any]]], tuple[list[str], pd.DataFrame]]:
    """Return what an actor makes of some items, with their keys."""
    make = maker()
    return lambda work: (work[0], make(work[1]))
