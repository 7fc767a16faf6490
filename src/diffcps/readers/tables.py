"""Tables: CSV and Parquet, one row per step, numbers in columns (extra `parquet`).

A field is one column (`reward`), several numbered ones (`observation_0`, `observation_1`, ...; also `obs_0`, `obs.0`,
`obs[0]`), or in Parquet one column of lists. LeRobot's names are known: `observation.state` and other vectors below
`observation.`, `action`, `next.reward`, `episode_index`. Whatever else the columns are called, `FIELD=COLUMNS` says
what they are.

Missing values become NaN. The file is read column by column, in
pieces.
"""

from __future__ import annotations

import csv
import fnmatch
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffcps.readers.hashes import sha256_of_file
from diffcps.readers.layout import ABSENT, first_line, refuse_riddles
from diffcps.readers.names import listed, natural_order, nearest
from diffcps.readers.parts import choose_keys
from diffcps.readers.rows import FIELDS, PIECE_ROWS, RawRows
from diffcps.types import UserError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.csv

SPELLINGS = {
    "observation": ("observations", "observation", "obs"),
    "action": ("actions", "action"),
    "reward": ("rewards", "reward", "next.reward"),
    "terminal": ("terminals", "terminal"),
    "timeout": ("timeouts", "timeout"),
    "next_observation": ("next_observations", "next_observation", "next_obs"),
    "episode": ("episode", "episode_id", "episode_index"),
}
"""The names that a field may have, alone or followed by a number."""
VECTORS = ("observation", "action", "next_observation")
"""Fields with several numbers a row; the others are one column of one number."""
BLOCK = 1 << 20
"""Bytes of a file that are read at a time."""


class Table(NamedTuple):
    """A table file and its columns."""

    path: Path
    source: str
    types: dict[str, pyarrow.DataType]
    """Column -> its type. In CSV: bool, double, or string for what is no number."""
    rows: int
    delimiter: str | None
    """Of a CSV file; None for Parquet."""


class TableColumn(NamedTuple):
    """Columns of a table side by side, as one array that stays in the file."""

    table: Table
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    """Numbers per row of each."""
    shape: tuple[int, ...]
    dtype: np.dtype
    """As in the file; pieces with missing values are float64."""

    def pieces(self, rows: int) -> Iterator[np.ndarray]:
        """As in `Column`. Raises `UserError` where the file is damaged or a list has another length."""
        for batch in _batches(self.table, self.names, rows):
            blocks = [
                _numbers(batch.column(name), size, name, self.table.source)
                for name, size in zip(self.names, self.sizes, strict=True)
            ]
            piece = np.concatenate(blocks, axis=1) if len(blocks) > 1 else blocks[0]
            if self.dtype.kind == "i" and piece.dtype.kind == "f" and np.isfinite(piece).all():
                piece = piece.astype(self.dtype)  # whole numbers of a CSV file, which are parsed as real ones
            yield piece.reshape(len(piece), *self.shape[1:])


def read_table(
    path: Path, source: str, columns: tuple[str, ...] = (), observation_keys: tuple[str, ...] = ()
) -> RawRows:
    """The rows of a .csv or .parquet file. `source` is how messages call it.

    `columns` say which columns a field is, for those that are not called so: `FIELD=COLUMNS`, where FIELD is one of
    `FIELDS` or `episode` and COLUMNS are names, or patterns with * and ?, separated by commas, as in
    `observation=x,y,speed_*`; a pattern stands for its columns in natural order. `observation_keys` choose among the
    columns called observation.NAME, in their order.

    observation, action and next_observation are (n, size), the others (n,). Columns that are no field are ignored and
    named. Raises `UserError` where the extra `parquet` is missing; the file is missing, damaged or empty; a CSV file
    has no header; a named column does not exist or holds no numbers; or observations or actions are not found.
    """
    sha256 = sha256_of_file(path, source)
    try:
        import pyarrow  # noqa: F401 (asked for here, where there is one message for all that needs it)
    except ImportError as error:
        raise UserError(f"{source}: tables need the extra `parquet`: pip install 'diffcps[parquet]'") from error
    table = _open_csv(path, source) if path.suffix.lower() == ".csv" else _open_parquet(path, source)
    absent = [column.removesuffix(f"={ABSENT}") for column in columns if column.endswith(f"={ABSENT}")]
    columns = tuple(column for column in columns if not column.endswith(f"={ABSENT}"))
    fields, notes = _assign(table, columns, observation_keys)
    fields = {field: names for field, names in fields.items() if field not in absent}
    used = {name for names in fields.values() for name in names}
    unread = tuple(name for name in table.types if name not in used)
    refuse_riddles(unread, {*fields, *absent}, source)
    if table.delimiter is not None:
        table = _parse_csv(table, fields)
    if table.rows == 0:
        raise UserError(f"{source}: the table has no rows; the file is empty")
    values = {field: _column(table, field, names) for field, names in fields.items()}
    return RawRows(
        observation=values["observation"],
        action=values["action"],
        reward=values.get("reward"),
        terminal=values.get("terminal"),
        timeout=values.get("timeout"),
        next_observation=values.get("next_observation"),
        names={field: _short(fields[field]) for field in FIELDS if field in fields},
        sha256=sha256,
        episode=_episodes(values["episode"]) if "episode" in values else None,
        ignored=unread,
        notes=notes,
    )


# --- Which columns are which field ---


def _assign(
    table: Table, columns: tuple[str, ...], observation_keys: tuple[str, ...]
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Field -> its columns, and what was decided, in words."""
    fields = _named(table, columns)
    if observation_keys and "observation" in fields:
        raise UserError(
            f"{table.source}: `--columns` and `--observation-keys` both name observations; give one of them"
        )
    taken = {name for names in fields.values() for name in names}
    free = [name for name in table.types if name not in taken]
    keys, notes = observation_keys, ()
    for field in SPELLINGS:
        if field in fields:
            continue
        found = () if field == "observation" and observation_keys else _spelled(field, free, table.source)
        if not found and field in ("observation", "next_observation"):
            found, keys, said = _below(table, field, free, keys)
            notes += said if field == "observation" else ()
        if found:
            fields[field] = found
    for field in ("observation", "action"):
        if field not in fields:
            raise UserError(
                f"{table.source}: no columns of `{field}` (`{field}_0`, `{field}_1`, ...); there is "
                f"{listed(table.types)}; name them, for example `--columns {field}=first,second`"
            )
    return fields, notes


def _named(table: Table, columns: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """What `columns` say: field -> its columns."""
    fields: dict[str, tuple[str, ...]] = {}
    for entry in columns:
        field, equals, patterns = (text.strip() for text in entry.partition("="))
        if not equals or not patterns:
            raise UserError(f"{table.source}: `--columns {entry}` must be FIELD=COLUMNS, as in observation=x,y,speed_*")
        if field not in SPELLINGS:
            raise UserError(f"{table.source}: `--columns {entry}`: no field `{field}`; {nearest(field, SPELLINGS)}")
        if field in fields:
            raise UserError(f"{table.source}: `--columns` names `{field}` twice; separate its columns by commas")
        found: list[str] = []
        for pattern in (text.strip() for text in patterns.split(",")):
            names = [pattern] if pattern in table.types else []
            if not names and ("*" in pattern or "?" in pattern):  # brackets belong to names, as in obs[0]
                escaped = pattern.replace("[", "[[]")
                names = natural_order(name for name in table.types if fnmatch.fnmatchcase(name, escaped))
            if not names:
                raise UserError(f"{table.source}: no column `{pattern}` for `{field}`; {nearest(pattern, table.types)}")
            found += [name for name in names if name not in found]
        fields[field] = tuple(found)
    return fields


def _spelled(field: str, names: list[str], source: str) -> tuple[str, ...]:
    """The columns with one of the field's names, alone or numbered; empty where there are none."""
    groups: dict[str, dict[int, str]] = {}
    for spelling in SPELLINGS[field]:
        for name in names:
            if name == spelling:
                groups[name] = {0: name}
            elif field in VECTORS and (number := re.fullmatch(rf"{spelling}([_.]?)(\d+)|{spelling}(\[)(\d+)\]", name)):
                group = groups.setdefault(f"{spelling}{number[1] or number[3] or ''}0", {})
                if (twin := group.setdefault(int(number[2] or number[4]), name)) != name:
                    raise UserError(f"{source}: `{twin}` and `{name}` have one number; rename or drop one of them")
    if not groups:
        return ()
    if len(groups) > 1:
        (first, *_), (second, *_) = (list(group.values()) for group in list(groups.values())[:2])
        raise UserError(
            f"{source}: both `{first}` and `{second}` may be `{field}`; say which with `--columns {field}={first}`"
        )
    (group,) = groups.values()
    numbers = sorted(group)
    if numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        missing = next(i for i in range(0 if numbers[0] > 1 else numbers[0], numbers[-1]) if i not in group)
        raise UserError(
            f"{source}: the columns of `{field}` lack number {missing} (there is {listed(group[i] for i in numbers)}); "
            f"if that is right, name them, for example `--columns {field}={group[numbers[0]]},...`"
        )
    return tuple(group[number] for number in numbers)


def _below(
    table: Table, field: str, names: list[str], keys: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The columns observation.NAME of a field, their keys, and what was decided."""
    for spelling in SPELLINGS[field]:
        if sizes := {
            name.removeprefix(f"{spelling}."): _size(table, name) for name in names if name.startswith(f"{spelling}.")
        }:
            parts = choose_keys(sizes, keys, table.source, spelling)
            return tuple(f"{spelling}.{key}" for key in parts.keys), parts.keys, parts.notes
    if keys and field == "observation":
        raise UserError(
            f"{table.source}: `--observation-keys` chooses among columns called observation.NAME, and there are none; "
            f"use `--columns observation={','.join(keys)}`"
        )
    return (), keys, ()


def _column(table: Table, field: str, names: tuple[str, ...]) -> TableColumn:
    """The columns of a field as one array."""
    import pyarrow

    sizes, dtypes = [], []
    for name in names:
        if field == "episode" and _is_text(table.types[name]):
            sizes.append(1)
            dtypes.append(np.dtype(object))
            continue
        if (size := _size(table, name)) is None:
            raise UserError(f"{table.source}: `{name}` is of type {table.types[name]}; `{field}` needs numbers")
        sizes.append(size)
        dtypes.append(_flat(pyarrow.array([], _item_type(table.types[name]))).dtype)
    if field not in VECTORS and sum(sizes) != 1:
        raise UserError(
            f"{table.source}: `{field}` is {_short(names)}, {sum(sizes)} numbers a row; it must be one number"
        )
    shape = (table.rows, sum(sizes)) if field in VECTORS else (table.rows,)
    return TableColumn(table, names, tuple(sizes), shape, np.result_type(*dtypes))


def _episodes(column: TableColumn) -> np.ndarray:
    """A number for each row (n,), int32, another one for each value of a column of numbers or texts."""
    codes: dict[float | str, int] = {}
    found = np.empty(column.shape[0], np.int32)
    start, name = 0, column.names[0]
    for batch in _batches(column.table, column.names, PIECE_ROWS):
        values = batch.column(name)
        if values.null_count:
            row = start + int(np.flatnonzero(~np.asarray(values.is_valid()))[0])
            raise UserError(f"{column.table.source}: `{name}` is missing at row {row}; every row belongs to an episode")
        found[start : start + len(values)] = [codes.setdefault(value, len(codes)) for value in values.to_pylist()]
        start += len(values)
    return found


def _short(names: tuple[str, ...]) -> str:
    """What messages call a field."""
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, ..., {names[-1]}"


# --- Numbers of Arrow arrays ---


def _is_list(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as kinds

    return kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)


def _is_text(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as kinds

    return (
        kinds.is_string(kind)
        or kinds.is_large_string(kind)
        or (kinds.is_dictionary(kind) and _is_text(kind.value_type))
    )


def _item_type(kind: pyarrow.DataType) -> pyarrow.DataType:
    return kind.value_type if _is_list(kind) else kind


def _size(table: Table, name: str) -> int | None:
    """Numbers per row of a column; None where it is no number and no vector. Of a list it is the first one's length."""
    import pyarrow.types as kinds

    kind = table.types[name]
    item = _item_type(kind)
    if not (kinds.is_boolean(item) or kinds.is_integer(item) or kinds.is_floating(item)):
        return None
    if not _is_list(kind):
        return 1
    if kinds.is_fixed_size_list(kind):
        return kind.list_size
    for batch in _batches(table, (name,), 1):
        if batch.column(0).null_count == 0:
            return len(batch.column(0)[0])
    return 0


def _numbers(array: pyarrow.Array, size: int, name: str, source: str) -> np.ndarray:
    """An array as (rows, size), missing values as NaN. Raises `UserError` where a list has another length."""
    from pyarrow.compute import call_function

    if not _is_list(array.type):
        return _flat(array)[:, None]
    valid = np.asarray(array.is_valid())
    lengths = np.asarray(call_function("list_value_length", [array.drop_null()]))
    if (lengths != size).any():
        raise UserError(
            f"{source}: `{name}` has lists of {size} numbers and of {lengths[lengths != size][0]}; one size is needed"
        )
    values = _flat(array.drop_null().flatten()).reshape(-1, size)
    if valid.all():
        return values
    found = np.full((len(valid), size), np.nan)
    found[valid] = values
    return found


def _flat(array: pyarrow.Array) -> np.ndarray:
    import pyarrow

    if array.null_count:
        array = array.cast(pyarrow.float64())
    return array.to_numpy(zero_copy_only=False)


# --- Files ---


def _open_parquet(path: Path, source: str) -> Table:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(source, error) from error
    return Table(path, source, _by_name(schema.names, schema.types, source), rows, None)


def _open_csv(path: Path, source: str) -> Table:
    """The header and what the first block says of the types; `rows` are not known yet."""
    import pyarrow

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = file.readline()
            delimiter = max(",;\t", key=line.count)
            names = [name.strip() for name in next(csv.reader([line.lstrip("# ")], delimiter=delimiter), [])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise _damaged(source, error) from error
    if names and all(_is_number(name) for name in names):
        raise UserError(
            f"{source}: the first line holds numbers ({names[0]}, ...) and no names; put a header on top, such as "
            "observation_0,observation_1,action_0,reward,terminal"
        )
    names = [name or f"(column {place})" for place, name in enumerate(names)]
    table = Table(path, source, _by_name(names, [pyarrow.null()] * len(names), source), 0, delimiter)
    if not names:
        raise UserError(f"{source}: the file is empty; it needs a header and one row per step")
    types = {}
    try:
        with _csv_reader(table, tuple(names), {}) as reader:
            for field in reader.schema:
                numeric = pyarrow.types.is_integer(field.type) or pyarrow.types.is_boolean(field.type)
                real = pyarrow.types.is_floating(field.type) or pyarrow.types.is_null(field.type)
                types[field.name] = field.type if numeric else pyarrow.float64() if real else pyarrow.string()
    except (pyarrow.ArrowException, OSError) as error:
        if "Empty CSV" in str(error):
            raise UserError(f"{source}: the table has no rows; the file is empty") from error
        raise _damaged(source, error) from error
    return table._replace(types=types)


def _parse_csv(table: Table, fields: Mapping[str, tuple[str, ...]]) -> Table:
    """The table with its number of rows: every value that is used is parsed once.

    A column is of whole numbers where the first block is written so and all values are whole: the first block alone
    does not say what comes later.
    """
    import pyarrow

    used = tuple(dict.fromkeys(name for names in fields.values() for name in names))
    whole = {name for name in used if pyarrow.types.is_integer(table.types[name])}
    rows = 0
    for batch in _batches(table, used, PIECE_ROWS):
        rows += len(batch)
        for name in sorted(whole):
            values = _flat(batch.column(name))
            if not (np.isfinite(values) & (values == np.floor(values))).all():
                whole.discard(name)
    kinds = {
        name: pyarrow.float64() for name in used if pyarrow.types.is_integer(table.types[name]) and name not in whole
    }
    return table._replace(types=table.types | kinds, rows=rows)


def _batches(table: Table, names: tuple[str, ...], rows: int) -> Iterator[pyarrow.RecordBatch]:
    """Some columns of a table, at most `rows` rows at a time, a block of the file after the other."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        if table.delimiter is None:
            with ParquetFile(table.path, buffer_size=BLOCK, pre_buffer=False) as file:
                yield from file.iter_batches(batch_size=rows, columns=list(names))
        else:
            integer = {name for name in names if pyarrow.types.is_integer(table.types[name])}
            types = {name: pyarrow.float64() if name in integer else table.types[name] for name in names}
            with _csv_reader(table, names, types) as reader:
                for batch in reader:
                    for start in range(0, len(batch), rows):
                        yield batch.slice(start, rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(table.source, error) from error


def _csv_reader(
    table: Table, names: tuple[str, ...], types: Mapping[str, pyarrow.DataType]
) -> pyarrow.csv.CSVStreamingReader:
    from pyarrow import csv as arrow

    return arrow.open_csv(
        table.path,
        arrow.ReadOptions(block_size=BLOCK, skip_rows=1, column_names=list(table.types)),
        arrow.ParseOptions(delimiter=table.delimiter),
        arrow.ConvertOptions(include_columns=list(names), column_types=types),
    )


def _by_name(names: list[str], types: list[pyarrow.DataType], source: str) -> dict[str, pyarrow.DataType]:
    if len(found := dict(zip(names, types, strict=True))) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{source}: two columns are called `{twice}`; rename one of them")
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _damaged(source: str, error: Exception) -> UserError:
    return UserError(
        f"{source}: not a readable table ({first_line(error)}); it may be truncated or of another form, write it again"
    )
