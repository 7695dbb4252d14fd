"""Files of tables, read as they are written: the meaning of no cell is guessed.

`read_table` reads CSV, JSON lines and Parquet; `texts`, `values`, `flags` and `labels` say what a
column must hold. So one table is the same in every format, or refused.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import numbers
import re
import reprlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sasa_lib.checks import as_list, first_line, text_fault

LONGEST_CELL = 2**31 - 1  # csv's own limit of 131,072 characters is a long text, not a fault
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
WORDS = {"": math.nan, "true": 1.0, "false": 0.0}
UNPACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": lambda packed: pa.CompressedInputStream(pa.BufferReader(packed), "zstd").read(),
}


def read_table(path: str | Path, kind: str | None = None) -> pd.DataFrame:
    """Read a CSV, JSON lines or Parquet file, compressed (.gz, .bz2, .xz, .zst) or not.

    Parameters
    ----------
    path : str or Path
        Text must be UTF-8.
    kind : {".csv", ".jsonl", ".parquet"}, optional
        Read it as if its name ended so.

    Returns
    -------
    pandas.DataFrame of dtype object
        Cells as they are in the file: of a CSV file every one is a str, and no word (NA, None,
        null) means that nothing is there. Gaps are None. Columns without a name, and the unnamed
        index that pandas writes, are left out.
    """
    path = Path(path)
    if kind is None:
        name = path.with_suffix("") if path.suffix.lower() in UNPACKERS else path
        kind = name.suffix.lower()
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if kind not in readers:
        wanted = ".csv, .jsonl or .parquet file (.gz, .bz2, .xz or .zst may follow)"
        said = "a folder, not a" if path.is_dir() else "not a"
        raise ValueError(f"{path}: {said} {wanted}")
    content = _content(path)
    try:
        table = readers[kind](content)
        if table.empty:
            raise ValueError("it has no rows")
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from None
    return table


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, compressed or not; ValueError says what is wrong."""
    content = _content(path)
    try:
        return _decoded(content)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def parse_json(text: str) -> Any:
    """Parse JSON; a key that is there twice is a ValueError, as only one value could be kept."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def from_arrow(table: pa.Table) -> pd.DataFrame:
    """Return a table's cells as Python objects; a short float is the decimal that it stands for.

    So 0.6 that was stored in 32 bits is 0.6 and not 0.6000000238, on the same side of a threshold
    as in a CSV file.
    """
    names = _names(table.column_names)
    return _frame(names, [_cells(column) for column in table.columns])


def renamed(frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Give columns other names, new name to the file's; one that had the new name goes."""
    if not isinstance(columns, Mapping):
        raise ValueError(f"columns must be a mapping of names, got a {type(columns).__name__}")
    missing = [source for source in columns.values() if source not in frame]
    if missing:
        raise ValueError(f"the file has no column {missing[0]!r}; it has {', '.join(frame)}")
    others = [name for name in frame if name not in columns and name not in columns.values()]
    named = {name: frame[source] for name, source in columns.items()}
    return pd.DataFrame(named | {name: frame[name] for name in others})


def texts(cells: Iterable[Any], what: str, *, empty: bool = False) -> list[str]:
    """Return texts, or raise ValueError that names the first row without one.

    Parameters
    ----------
    cells : iterable
    what : str
        What the messages call the column.
    empty : bool
        Texts may be empty, and a gap is an empty one. Otherwise whitespace is no text, and
        nothing but numbers is taken for another column.
    """
    found = ["" if empty and _is_gap(cell) else cell for cell in as_list(cells, what)]
    for row, text in enumerate(found):
        gap = not empty and (_is_gap(text) or (isinstance(text, str) and not text.strip()))
        if fault := "is empty" if gap else text_fault(text, empty=empty):
            raise ValueError(f"{what} of row {row} {fault}")
    if found and not empty and all(map(DECIMAL.fullmatch, found)):
        raise ValueError(f"{what} holds numbers only, the first is {found[0]}; it must be texts")
    return found


def values(cells: Iterable[Any], what: str) -> list[float]:
    """Return numbers in [0, 1], NaN for a gap, or raise ValueError that names the first other.

    Strings may be plain decimal numbers; true and false are 1 and 0.
    """
    found = []
    for row, cell in enumerate(as_list(cells, what)):
        number = _number(cell)
        if number is None or number < 0 or number > 1:
            raise ValueError(
                f"{what} must lie in [0, 1], but row {row} has {reprlib.repr(cell)}"
                + (", which is no number" if number is None else "")
            )
        found.append(number)
    return found


def flags(cells: Iterable[Any], what: str) -> list[bool | None]:
    """Return booleans, None for a gap; true/false, yes/no and 1/0 in any case, else ValueError."""
    found = []
    for row, cell in enumerate(as_list(cells, what)):
        text = cell.strip().lower() if isinstance(cell, str) else ""
        number = _number({"yes": 1, "no": 0}.get(text, cell))
        if number is None or (number not in (0, 1) and not math.isnan(number)):
            raise ValueError(
                f"{what} must be true or false, yes or no, 1 or 0, "
                f"but row {row} has {reprlib.repr(cell)}"
            )
        found.append(None if math.isnan(number) else bool(number))
    return found


def labels(cells: Iterable[Any], what: str) -> list[str | None]:
    """Return names as str, None for a gap or an empty one; 1 and 1.0 are both "1"."""
    found: list[str | None] = []
    for row, cell in enumerate(as_list(cells, what)):
        if _is_gap(cell) or cell == "":
            found.append(None)
            continue
        if not isinstance(cell, str | numbers.Real | Decimal):
            raise ValueError(
                f"{what} of row {row} must be a name or a number, got {type(cell).__name__}"
            )
        # pandas makes 1.0 of 1 where another row has a gap.
        label = re.sub(r"\A(-?\d+)\.0\Z", r"\1", str(cell))
        if fault := text_fault(label):
            raise ValueError(f"{what} of row {row} {fault}")
        found.append(label)
    return found


def _is_gap(cell: object) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _number(cell: object) -> float | None:
    """Return a cell's number, NaN of a gap, None of what is no number."""
    if isinstance(cell, str):
        text = cell.strip().lower()
        if text in WORDS:
            return WORDS[text]
        return float(text) if DECIMAL.fullmatch(text) else None
    if isinstance(cell, numbers.Real | Decimal):
        try:
            return float(cell)
        except OverflowError:
            return math.inf
    return math.nan if cell is None else None


def _content(path: Path) -> bytes:
    if path.is_dir():
        raise ValueError(f"{path}: a folder, not a file")
    try:
        packed = path.read_bytes()
        return UNPACKERS.get(path.suffix.lower(), bytes)(packed)
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}") from None
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from None


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[
            error.start
        ]  # which `content` has elsewhere, behind its byte order mark
        raise ValueError(
            f"line {line} is not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8"
        ) from None


def _read_csv(content: bytes) -> pd.DataFrame:
    text = re.sub(r"(\r*\n)\1+\Z", r"\1", _decoded(content))  # empty lines at the end
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        rows = _csv_rows(list(io.StringIO(text, newline="\n")))
    finally:
        csv.field_size_limit(limit)
    if not rows or not rows[0]:
        raise ValueError("it is empty, or its first line is")
    return _frame(_names(rows[0]), list(zip(*rows[1:], strict=True)))


def _csv_rows(lines: list[str]) -> list[list[str]]:
    """Cells of lines that were split at line feeds only, so that other line ends can be told."""
    rows: list[list[str]] = []
    end = ""
    reader = csv.reader(lines, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            fault = "a carriage return outside of quotes" if "new-line" in str(error) else error
            raise ValueError(f"line {first}: {fault}") from None
        if row is None:
            return rows
        if rows and len(row) != len(rows[0]):
            raise ValueError(
                f"line {first} has {len(row)} cells, but the header names {len(rows[0])} columns"
            )
        last = lines[reader.line_num - 1]
        ending = last[len(last.rstrip("\r\n")) :]
        end = end or ending
        # pandas writes a text that ends in a carriage return without quotes.
        if ending and ending != end:
            raise ValueError(
                f"line {reader.line_num} ends in {ending!r}, those before it in {end!r}; a "
                "carriage return that is text must be in quotes"
            )
        rows.append(row)


def _read_jsonl(content: bytes) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(_decoded(content).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            fault = getattr(error, "msg", first_line(error))
            raise ValueError(f"line {number} is no JSON object: {fault}") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no JSON object but a {type(row).__name__}")
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _frame(_names(names), [[row.get(name) for row in rows] for name in names])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        _names([key for key, _ in pairs])
    return found


def _read_parquet(content: bytes) -> pd.DataFrame:
    # Not pq.read_table, which would make columns of a path such as lang=en/texts.parquet.
    return from_arrow(pq.ParquetFile(pa.BufferReader(content)).read())


def _cells(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if kind in (pa.float16(), pa.float32()):
        return column.to_numpy().astype(str).astype(float).tolist()
    if not pa.types.is_struct(kind):
        return column.to_pylist()
    names = [field.name for field in kind]
    parts = [_cells(pc.struct_field(column, i)) for i in range(len(names))]
    rows = (dict(zip(names, row, strict=True)) for row in zip(*parts, strict=True))
    there = column.is_valid().to_pylist()
    return [row if valid else None for row, valid in zip(rows, there, strict=True)]


def _names(names: list[str]) -> list[str]:
    for name, count in Counter(names).items():
        if count > 1 and name:
            raise ValueError(f"the name {name!r} is there {count} times")
        if fault := text_fault(name, empty=True):
            raise ValueError(f"the name {name!r} {fault}")
    return names


def _frame(names: list[str], columns: list[Any]) -> pd.DataFrame:
    kept = {
        name: pd.Series(cells, dtype=object)
        for name, cells in zip(names, columns or [()] * len(names), strict=True)
        if name and not re.fullmatch(r"__index_level_\d+__", name)
    }
    return pd.DataFrame(kept)
