"""Parquet files are read as Arrow reads them, and those that hold far more than their size are refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from cosplace.assessment.run_files import read_query_results
from cosplace.errors import ConfigError, DatasetError
from cosplace.importing.table_files import read_raw_table
from cosplace.photos import parquet_files
from cosplace.photos.parquet_files import open_parquet
from cosplace.photos.tables import read_blocks, read_table

TEXTS = st.none() | st.text(max_size=6)
TYPES: dict[str, tuple[pa.DataType, st.SearchStrategy]] = {
    "text": (pa.string(), TEXTS),
    "large": (pa.large_string(), TEXTS),
    "bytes": (pa.binary(), st.none() | st.binary(max_size=4)),
    "coded": (pa.dictionary(pa.int32(), pa.string()), st.none() | st.sampled_from(["a", "b"])),
    "number": (pa.float64(), st.none() | st.floats(allow_nan=False)),
    "list": (pa.list_(pa.string()), st.none() | st.lists(TEXTS, max_size=3)),
    "lists": (pa.list_(pa.list_(pa.string())), st.none() | st.lists(st.lists(TEXTS, max_size=2), max_size=2)),
    "struct": (
        pa.struct([("x", pa.string()), ("y", pa.int64())]),
        st.none() | st.fixed_dictionaries({"x": TEXTS, "y": st.integers(-5, 5)}),
    ),
    "fixed": (pa.binary(2), st.none() | st.binary(min_size=2, max_size=2)),
}


@given(
    data=st.data(), num_rows=st.integers(0, 12), rows_per_group=st.integers(1, 12), is_coded=st.booleans(),
)  # fmt: skip
def test_tables_are_read_as_arrow_reads_them(
    data: st.DataObject, num_rows: int, rows_per_group: int, is_coded: bool
) -> None:
    columns = {
        name: pa.array(data.draw(st.lists(values, min_size=num_rows, max_size=num_rows)), kind)
        for name, (kind, values) in TYPES.items()
    }
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file, row_group_size=rows_per_group, use_dictionary=is_coded)
    with open_parquet(file) as table:
        assert table.read().to_pydict() == parquet.read_table(pa.BufferReader(file.getvalue())).to_pydict()


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "PLAIN"])
def test_encodings_of_other_programs(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    table = pa.table({"path": [f"{number}.jpg" for number in range(100)], "camera": ["a", "b"] * 50})
    parquet.write_table(table, path, use_dictionary=["camera"], column_encoding={"path": encoding})
    assert read_table(path, ("path", "camera")).equals(table)
    assert read_raw_table(path).columns == table.to_pydict()


def test_many_columns_that_say_nothing_are_read(tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    columns = {f"c{number}": pa.nulls(20_000, pa.float64()) for number in range(200)}
    parquet.write_table(pa.table({"path": [f"{number}.jpg" for number in range(20_000)]} | columns), path)
    with open_parquet(path) as table:
        assert table.metadata.num_columns == 201


def test_columns_of_the_same_name(tmp_path: Path) -> None:
    path = tmp_path / "twice.parquet"
    parquet.write_table(pa.table([pa.array(["a"]), pa.array([1.5]), pa.array(["b"])], names=["x", "x", "y"]), path)
    with open_parquet(path) as table:
        assert [column.to_pylist() for column in table.read().columns] == [["a"], [1.5], ["b"]]


def _repeated(text: str, num_rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.zeros(num_rows, np.int32), [text])


def _lists(values: pa.Array, length: int) -> pa.Array:
    return pa.ListArray.from_arrays(np.arange(0, len(values) + 1, length, dtype=np.int32), values)


BOMBS = {
    "a long text, repeated": lambda: {"path": _repeated("a" * 10_000, 10_000)},
    "a long text, repeated in lists": lambda: {
        "path": _repeated("a", 10), "predictions": _lists(_repeated("a" * 10_000, 10_000), 1000)
    },
    "a long text, repeated in a struct": lambda: {
        "path": _repeated("a", 10_000), "about": pa.StructArray.from_arrays([_repeated("a" * 10_000, 10_000)], ["x"])
    },
    "a long text, repeated in a map": lambda: {
        "path": _repeated("a", 10),
        "about": pa.MapArray.from_arrays(
            np.arange(0, 10_001, 1000, dtype=np.int32), pa.array(["k"] * 10_000), _repeated("a" * 10_000, 10_000)
        ),
    },
    "long bytes, repeated": lambda: {
        "path": _repeated("a", 10_000),
        "geometry": pa.DictionaryArray.from_arrays(np.zeros(10_000, np.int32), [b"a" * 10_000]),
    },
    "bytes of a fixed size, repeated": lambda: {
        "path": _repeated("a", 10_000), "x": pa.array([b"a" * 10_000] * 10_000, pa.binary(10_000))
    },
    "lists of a fixed size that are missing": lambda: {
        "path": _repeated("a", 50), "x": pa.nulls(50, pa.list_(pa.float64(), 1_000_000))
    },
    "many equal numbers": lambda: {"path": _repeated("a", 2_000_000), "latitude": pa.array(np.zeros(2_000_000))},
    "a text that is compressed well": lambda: {"path": ["a" * 40_000_000]},
}  # fmt: skip


def test_deep_columns_are_refused(tmp_path: Path) -> None:
    kind: pa.DataType = pa.int64()
    for _ in range(40):
        kind = pa.struct([("x", kind)])
    parquet.write_table(pa.table({"path": ["a"], "deep": pa.nulls(1, kind)}), tmp_path / "photos.parquet")
    with pytest.raises(DatasetError, match="more than 32 levels"):
        read_raw_table(tmp_path / "photos.parquet")


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosplace.photos.parquet_files.MAX_VALUES", 1_000_000)
    monkeypatch.setattr("cosplace.photos.parquet_files.MAX_BYTES", 1 << 24)


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize("kind", BOMBS)
def test_small_files_with_much_in_them_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    parquet.write_table(pa.table(BOMBS[kind]()), path, compression="zstd")
    assert path.stat().st_size < 50_000
    with (
        pytest.raises(pa.ArrowInvalid, match=r"bytes with \d+ .*at most \d+ are read"),
        open_parquet(path),
    ):
        pass
    with pytest.raises(DatasetError, match="at most"):
        read_raw_table(path)
    with pytest.raises(DatasetError, match="at most"):
        read_table(path)
    with pytest.raises(DatasetError, match="at most"):
        list(read_blocks(path, 100))
    with pytest.raises(ConfigError, match=r"queries\.parquet"):
        read_query_results(path.rename(tmp_path / "queries.parquet").parent)


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize("kind", [pa.string(), pa.large_binary(), pa.list_(pa.string()), "string_view"])
def test_texts_that_begin_with_the_one_before_are_counted(kind: pa.DataType | str, tmp_path: Path) -> None:
    """In this encoding, a text is the length that it shares with the one before, and the rest."""
    path = tmp_path / "photos.parquet"
    if kind == "string_view":
        if not hasattr(pa, kind):
            pytest.skip("this version of Arrow has no string_view")
        kind = pa.string_view()
    for length, is_read in ((200, True), (60_000, False)):
        texts: list[Any] = ["a" * length + str(number) for number in range(1000)]
        is_list = pa.types.is_list(kind)
        try:
            table = pa.table({"path": pa.array([[text] for text in texts] if is_list else texts).cast(kind)})
        except pa.ArrowNotImplementedError:
            pytest.skip("this version of Arrow cannot make a string_view")
        encoding = {"path.list.element" if is_list else "path": "DELTA_BYTE_ARRAY"}
        parquet.write_table(table, path, use_dictionary=False, column_encoding=encoding, compression="zstd")
        assert path.stat().st_size < 50_000
        if is_read:
            with open_parquet(path) as file:
                assert file.read() == table
            continue
        with pytest.raises(pa.ArrowInvalid, match=r"bytes of texts, at most"), open_parquet(path):
            pass


def test_parts_with_other_columns_are_refused(tmp_path: Path) -> None:
    """Arrow ends the process if it is asked for a column that a part of the file does not have."""
    path = tmp_path / "photos.parquet"
    parquet.write_table(pa.table({"path": ["a"], "x": ["b"]}), path, use_dictionary=False)
    one = parquet.read_metadata(path).row_group(0)
    assert one.num_columns == 2
    metadata = type("M", (), {"num_columns": 1, "num_row_groups": 1, "row_group": lambda *_: one})()
    column = type("S", (), {"column": lambda *_: None})()
    with pytest.raises(pa.ArrowInvalid, match="has 2 columns instead of 1"):
        parquet_files._check_stated(type("F", (), {"metadata": metadata, "schema": column})(), 100)


@pytest.mark.usefixtures("low_limits")
def test_limits_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    texts = np.random.Generator(np.random.Philox(key=0)).bytes(300_000).hex()
    table = pa.table({"path": [texts[start : start + 60_000] for start in range(0, len(texts), 60_000)] * 50})
    parquet.write_table(table, path, compression="none")
    assert table.nbytes > 1 << 24 and path.stat().st_size < 1_000_000
    assert len(read_table(path, ("path",))) == len(table)
