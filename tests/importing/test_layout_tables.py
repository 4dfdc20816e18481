"""Wrong tables of the field's datasets: positions elsewhere, photos that are listed twice, and empty cells."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosplace.config.importing import ImportSettings
from cosplace.errors import DatasetError
from cosplace.importing.import_run import run_import
from cosplace.importing.matlab_structs import read_struct
from cosplace.importing.report import REPORT_NAME
from cosplace.retrieval.dataset import open_retrieval_dataset
from tests.importing import layout_samples as samples
from tests.importing.test_dataset_layouts import counts, found, imported

pytestmark = pytest.mark.slow  # many files


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


# --- positions --------------------------------------------------------------------------------------------------------


def swap_positions(folder: Path, column: str) -> None:
    """Write north, then east, for the database or the queries of the dbStruct files in a folder."""
    for path in (folder / "datasets").glob("*.mat"):
        content = read_struct(path)
        utm = {"database_utm": content.database_utm, "query_utm": content.query_utm}
        utm[column] = utm[column][:, ::-1]
        samples.write_struct(path, content.database, utm["database_utm"], content.queries, utm["query_utm"])


@pytest.mark.parametrize("column", ["database_utm", "query_utm"])
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (samples.pittsburgh, r"pitts30k_test\.mat: .* latitude 4\.42, longitude -47\.\d+, but .* 40\.44, -80\.00\. Wr"),
        (
            samples.tokyo,
            r"tokyo247\.mat: .* latitude 3\.00, longitude 170\.60, but Tokyo is at 35\.68, 139\.76\. Write",
        ),
    ],
)
def test_positions_of_another_place_are_refused(
    tmp_path: Path, write: Callable[[Path], Path], message: str, column: str
) -> None:
    folder = write(tmp_path / "raw")
    swap_positions(folder, column)
    with pytest.raises(DatasetError, match=message):
        open_retrieval_dataset(folder)
    with pytest.raises(DatasetError, match=r"but .* is at"):
        imported(folder, tmp_path / "dataset")


def test_positions_that_are_all_unknown_are_not_compared_with_the_city(tmp_path: Path) -> None:
    folder = samples.pittsburgh(tmp_path / "raw")
    for path, unknown in zip(sorted((folder / "datasets").glob("*.mat")), (0.0, np.nan, np.inf), strict=True):
        content = read_struct(path)
        utm = np.full_like(content.query_utm, unknown)
        samples.write_struct(path, content.database, content.database_utm, content.queries, utm)
    records = found(folder)
    assert sum(np.isnan(record.latitude) for record in records) == 9
    with pytest.raises(DatasetError, match="all positions are unknown"):
        open_retrieval_dataset(folder)


def impossible_msls(folder: Path) -> str:
    samples.msls(folder)
    for part in ("database", "query"):
        table = folder / "train_val" / "cph" / part / "raw.csv"
        lines = table.read_text().splitlines()
        fields = lines[1].split(",")
        samples.write_lines(table, [lines[0], ",".join([*fields[:3], "999", *fields[4:]]), *lines[2:]])
    return "train_val/cph/database/images/cphd_0-k.jpg: position (999, 12.57) "


def impossible_pittsburgh(folder: Path) -> str:
    samples.pittsburgh(folder)
    path = folder / "datasets" / "pitts30k_test.mat"
    content = read_struct(path)
    content.database_utm[1] = content.query_utm[0] = np.inf
    samples.write_struct(path, content.database, content.database_utm, content.queries, content.query_utm)
    return "002/002000_pitch1_yaw2.jpg: position (inf, inf) "


def impossible_tokyo(folder: Path) -> str:
    samples.tokyo(folder)
    path = folder / "datasets" / "tokyo247.mat"
    content = read_struct(path)
    content.database_utm[:2] = np.inf
    samples.write_struct(path, content.database, content.database_utm, content.queries, content.query_utm)
    return f"{content.database[0].replace('.jpg', '.png')}: position (inf, inf) "


def impossible_gsv_cities(folder: Path) -> str:
    samples.gsv_cities(folder)
    first, second = sorted((folder / "Images" / "Paris").iterdir())[:2]
    new = first.with_name(first.name.replace("_48.", "_948."))
    first.rename(new)
    second.rename(second.with_name(second.name.replace("_2.35_", "_200.35_").replace("_48.", "_948.")))
    return f"Images/Paris/{new.name}: position (948.85, 2.35) "


def impossible_st_lucia(folder: Path) -> str:
    samples.st_lucia(folder)
    for drive in samples.DRIVES[::2]:
        path = folder / drive / "fGPS.txt"
        samples.write_lines(path, ["27.5,1520.99", *path.read_text().split()[1:]])
    return "100909_0845/frames/0001.jpg: position (-27.5, 1520.99) "


@pytest.mark.parametrize(
    "write", [impossible_msls, impossible_pittsburgh, impossible_tokyo, impossible_gsv_cities, impossible_st_lucia]
)
def test_positions_that_are_not_on_earth_are_listed(
    tmp_path: Path, write: Callable[[Path], str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "raw"
    first = write(folder)
    open_retrieval_dataset(folder)
    (warning,) = [message for message in warnings(caplog) if "not on Earth" in message]
    assert warning == f"{first}is not on Earth; it is unknown (and 1 other file or row)."
    result = run_import([folder], tmp_path / "dataset", ImportSettings())
    assert result.report.uncertain == {"position … is not on Earth; it is unknown": 2}
    path, _, reason = first.partition(": ")
    rows = [line for line in (tmp_path / "dataset" / REPORT_NAME).read_text().splitlines() if path in line]
    assert any(f'uncertain,"{reason}' in row for row in rows)


# --- photos that are listed twice -------------------------------------------------------------------------------------


def repeat_in_table(folder: Path, part: str, east: str = "") -> Path:
    """Append the first row of raw.csv of a part of Copenhagen, with another longitude or the same."""
    table = folder / "train_val" / "cph" / part / "raw.csv"
    fields = table.read_text().splitlines()[1].split(",")
    fields[2] = east or fields[2]
    table.write_text(table.read_text() + ",".join(fields) + "\n")
    return table


def repeat_in_structs(folder: Path, part: str, meters: float = 0) -> Path:
    """Append the first photo to each dbStruct file in a folder, some meters away or at the same position."""
    for path in (folder / "datasets").glob("*.mat"):
        content = read_struct(path)
        names = {"database": content.database, "query": content.queries}
        utm = {"database": content.database_utm, "query": content.query_utm}
        names[part].append(names[part][0])
        utm[part] = np.append(utm[part], utm[part][:1] + meters, axis=0)
        samples.write_struct(path, names["database"], utm["database"], names["query"], utm["query"])
    return path


@pytest.mark.parametrize("part", ["database", "query"])
@pytest.mark.parametrize(
    ("write", "repeat"),
    [
        (samples.msls, repeat_in_table),
        (samples.pittsburgh, repeat_in_structs),
        (samples.tokyo, repeat_in_structs),
    ],
)
def test_a_photo_that_is_listed_twice_is_used_once(
    tmp_path: Path,
    write: Callable[[Path], Path],
    repeat: Callable[[Path, str], Path],
    part: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = write(tmp_path / "raw")
    expected, photos = counts(open_retrieval_dataset(folder)), sorted(record.path for record in found(folder))
    table = repeat(folder, part)
    assert not warnings(caplog)
    assert counts(open_retrieval_dataset(folder)) == expected
    (warning,) = warnings(caplog)
    reason = "listed twice at the same position; only the first row is used"
    assert str(table.parent) in warning and warning.endswith(f": {reason}.")
    assert sorted(record.path for record in found(folder)) == photos
    result = run_import([folder], tmp_path / "dataset", ImportSettings())
    assert result.report.left_out[reason] == (3 if write is samples.pittsburgh else 1)


@pytest.mark.parametrize("part", ["database", "query"])
def test_a_photo_at_two_positions_is_refused(tmp_path: Path, part: str) -> None:
    """Also if only one of them makes it an official query of MSLS."""
    folders = [write(tmp_path / write.__name__) for write in (samples.msls, samples.pittsburgh, samples.tokyo)]
    repeat_in_table(folders[0], part, "12.9")
    repeat_in_structs(folders[1], part, 0.001)
    repeat_in_structs(folders[2], part, 100)
    key = {"database": "cphd_0-k", "query": "cphq_0-k"}[part]
    messages = (
        rf"cph/{part}/raw\.csv lists '{key}' at two positions: 55\.\d+, 12\.57\d* and 55\.\d+, 12\.9\. Remove",
        r"pitts30k_test\.mat lists '002/.*' at two positions: 588000, 44770\d0 and 588000\.001, 44770\d0\.001\. Remove",
        r"tokyo247\.mat lists '.*' at two positions: 38140\d, 394640\d and 38150\d, 394650\d\. Remove",
    )
    for folder, message in zip(folders, messages, strict=True):
        with pytest.raises(DatasetError, match=message):
            open_retrieval_dataset(folder)
        with pytest.raises(DatasetError, match="at two positions"):
            imported(folder, tmp_path / "dataset")


# --- empty cells -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["", " ", np.zeros((0, 0)), 3.0])
@pytest.mark.parametrize("field", ["dbImageFns", "qImageFns"])
def test_an_empty_cell_of_a_struct_is_named(tmp_path: Path, field: str, cell: Any) -> None:
    folder = samples.pittsburgh(tmp_path / "raw")
    path = folder / "datasets" / "pitts30k_test.mat"
    content = read_struct(path)
    {"dbImageFns": content.database, "qImageFns": content.queries}[field][1] = cell
    samples.write_struct(path, content.database, content.database_utm, content.queries, content.query_utm)
    with pytest.raises(DatasetError, match=rf"pitts30k_test\.mat: row 2 of {field} is empty or not a path\. Use"):
        open_retrieval_dataset(folder)
