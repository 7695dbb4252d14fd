"""Rows that are made once, also if those who make them are killed or are two."""

import os
import random
import signal
import time

import pandas as pd
import pyarrow as pa
import pytest
from upath import UPath

from sasa_lib.engine.table import KeyedTable

COLUMNS = {"square": pa.int64()}
ITEMS = {f"key {i}": i for i in range(60)}


def squares(numbers):
    return pd.DataFrame({"square": [number**2 for number in numbers]})


def check(rows, items=ITEMS):
    assert rows.index.tolist() == list(items)
    assert rows["square"].tolist() == [number**2 for number in items.values()]


def test_what_is_there_is_not_made_again(tmp_path):
    made = []

    def make(numbers):
        made.extend(numbers)
        return squares(numbers)

    few = dict(list(ITEMS.items())[20:40])
    check(KeyedTable(tmp_path, COLUMNS).fill(few, make, at_once=7), few)
    backwards = dict(reversed(ITEMS.items()))
    check(KeyedTable(tmp_path, COLUMNS).fill(backwards, make, at_once=7), backwards)
    assert sorted(made) == list(range(60))
    check(KeyedTable(tmp_path, COLUMNS).fill(ITEMS, None, at_once=1))


@pytest.mark.parametrize("folder", [None, "memory://bucket/table"])
def test_it_needs_no_folder_or_one_that_is_no_disk(folder):
    table = KeyedTable(folder and UPath(folder), COLUMNS)
    check(table.fill(ITEMS, squares, at_once=100))
    if folder:
        check(table.fill(ITEMS, None, at_once=1))


def test_no_item_is_no_row(tmp_path):
    assert KeyedTable(tmp_path, COLUMNS).fill({}, None, at_once=1).empty


def test_it_ends_whole_however_often_it_is_killed_and_however_many_fill_it(tmp_path):
    rng = random.Random(0)

    def slowly(numbers):
        time.sleep(0.02)
        return squares(numbers)

    for _ in range(12):
        workers = []
        for _ in range(2):  # at the same time
            worker = os.fork()
            if worker == 0:
                KeyedTable(tmp_path, COLUMNS).fill(ITEMS, slowly, at_once=3)
                os._exit(0)
            workers.append(worker)
        time.sleep(rng.uniform(0, 0.15))
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
    check(KeyedTable(tmp_path, COLUMNS).fill(ITEMS, squares, at_once=3))
    check(KeyedTable(tmp_path, COLUMNS).fill(ITEMS, None, at_once=3))
