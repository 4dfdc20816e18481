"""Folders with pipes, links, odd names and unknown suffixes, judged by the file system and Python's csv and json."""

import csv
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow.parquet import read_table

from cosplace import GeoLocalizationNet
from cosplace.cli import main
from cosplace.errors import ImageError
from cosplace.photos.opening import open_image
from cosplace.photos.scanning import scan_images
from tests.unusual_input.samples import (
    encoded,
    needs_posix,
    place_pixels,
    run,
    utm_name,
    within,
    write_model,
    write_photo,
    write_street,
)

pytestmark = pytest.mark.slow  # they run whole commands

CPU = "--device", "cpu"
ENCODING = "--num_workers", 0, *CPU
GROUPS = "--N", 1, "--L", 1, "--groups_num", 1, "--min_images_per_class", 1, "--no_cache", "--json"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.pth")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    folder = tmp_path_factory.mktemp("index")
    write_street(folder / "street", range(3))
    words = "index", "build", folder / "street", "--model", model, "--to", folder / "index", "--no_calibrate"
    assert main([*map(str, (*words, *ENCODING))]) == 0
    return folder / "index"


def scan(capsys: pytest.CaptureFixture, folder: Path) -> tuple[int, str]:
    """The number of photos that `cosplace groups` finds in a folder, and its warnings."""
    with within(20):
        code, out, err = run(capsys, "groups", folder, *GROUPS)
    assert code == 0
    return json.loads(out)["num_scanned"], err


# --- other files than photos -----------------------------------------------------------------------------------------


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # addresses of sockets are short


@needs_posix
@pytest.mark.parametrize(
    "make",
    [os.mkfifo, make_socket, lambda path: path.symlink_to(path.name), lambda path: path.symlink_to("/dev/zero")],
    ids=["pipe", "socket", "link to itself", "link to a device"],
)
def test_files_that_are_not_regular_are_skipped_and_named(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]
) -> None:
    """The file system: two of the three files are regular."""
    write_street(tmp_path / "train", range(2))
    monkeypatch.chdir(tmp_path / "train")
    odd = utm_name(37.7, -122.5, zone=10)
    make(tmp_path / "train" / odd)
    num_scanned, err = scan(capsys, tmp_path / "train")
    assert num_scanned == 2 and odd in err


@needs_posix
def test_a_socket_given_as_a_photo_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_socket(tmp_path / "photo.jpg")
    with pytest.raises(ImageError, match="it is a socket, not a file"):
        open_image(tmp_path / "photo.jpg")


def test_photos_with_other_suffixes_are_found_and_system_folders_left_out(tmp_path: Path, capsys) -> None:
    """The files that were written: six photos, and thumbnails of a NAS, of a recycle bin and of a hidden folder."""
    folder = tmp_path / "train"
    folder.mkdir()
    kinds = {".JPE": "JPEG", ".jfif": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".photo": "PNG", "": "JPEG"}
    for place, (suffix, kind) in enumerate(kinds.items()):
        name = utm_name(37.7, -122.4 - 0.001 * place, zone=10).removesuffix(".jpg")
        (folder / (name + suffix)).write_bytes(encoded(place_pixels(place), kind))
    for place, system in enumerate(("@eaDir", "#recycle", "$Recycle.Bin", ".thumbnails")):
        write_photo(folder / system, utm_name(37.8, -122.4 - 0.001 * place, zone=10), place)
    assert scan(capsys, folder)[0] == 6


# --- names -----------------------------------------------------------------------------------------------------------


@needs_posix
def test_a_line_break_in_a_name_leaves_out_this_photo_alone(tmp_path: Path, capsys) -> None:
    """The files that were written: two names without a line break."""
    write_street(tmp_path / "train", range(2))
    write_photo(tmp_path / "train", utm_name(37.7, -122.5, zone=10, note="two\nlines"))
    num_scanned, err = scan(capsys, tmp_path / "train")
    assert num_scanned == 2 and "line" in err


@needs_posix
@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--json", b"caf\xe9.jpg"), ("--csv", b"caf\xe9.jpg"), ("--csv", b"cr\rname.jpg"),
        ("--csv", b"\xff\xfe,\".jpg"), ("", b"caf\xe9.jpg"), ("", b"cr\rname.jpg"),
    ],
)  # fmt: skip
def test_photos_of_any_name_are_located(tmp_path: Path, capsys, index: Path, flag: str, name: bytes) -> None:
    """Python's json and csv read what is printed; it is UTF-8, and only in CSV a carriage return, between quotes."""
    photo = tmp_path / os.fsdecode(name)
    photo.write_bytes(encoded(place_pixels(1)))
    words = "--uncalibrated", "--min_confidence", 0, *CPU, *([flag] if flag else [])
    code, out, err = run(capsys, "locate", photo, "--index", index, *words)
    assert code == 0 and out.encode("utf-8") and ("\r" not in out + err or flag == "--csv")
    if flag == "--json":
        assert json.loads(out)["neighbours"][0]["id"] == 1
    elif flag == "--csv":
        (row,) = csv.DictReader(io.StringIO(out, newline=""))
        assert float(row["latitude"]) == pytest.approx(37.7, abs=1e-4)


@needs_posix
def test_a_folder_of_any_name_is_imported_and_indexed(tmp_path: Path, capsys, model: Path) -> None:
    """The files that were written: two photos.  An index itself needs a UTF-8 path, because of LanceDB."""
    odd = tmp_path / os.fsdecode(b"s\xff@t")
    write_street(odd, range(2))
    dataset = tmp_path / os.fsdecode(b"city\xfe")
    for _ in range(2):  # also where a table exists
        assert run(capsys, "import", odd, "--to", dataset)[0] == 0
    assert len(scan_images(dataset)) == 2
    words = "--model", model, *ENCODING
    code, out, _ = run(capsys, "index", "build", dataset, *words, "--to", tmp_path / "index")
    assert code == 0 and "2 photos" in out and "not found" not in out
    code, _, err = run(capsys, "index", "build", dataset, *words, "--to", tmp_path / os.fsdecode(b"i\xff"))
    assert code == 2 and "must be UTF-8" in err


# --- photos of other places ------------------------------------------------------------------------------------------


@needs_posix
def test_links_that_lead_outside_are_not_followed(tmp_path: Path, capsys) -> None:
    """The file system: two photos are in the folder, the third is behind a link that leads outside."""
    write_street(tmp_path / "train", range(2))
    secret = write_photo(tmp_path / "private", utm_name(37.8, -122.4, zone=10))
    (tmp_path / "train" / secret.name).symlink_to(secret)
    assert scan(capsys, tmp_path / "train")[0] == 2


@pytest.mark.parametrize("is_absolute", [False, True])
def test_a_list_of_photos_outside_the_folder_is_refused(tmp_path: Path, capsys, is_absolute: bool) -> None:
    """The file system: the listed photo exists, but not in the folder."""
    write_street(tmp_path / "train", range(1))
    secret = write_photo(tmp_path / "private", utm_name(37.8, -122.4, zone=10))
    line = str(secret) if is_absolute else f"../private/{secret.name}"
    (tmp_path / "train_images_paths.txt").write_text(line + "\n")
    code, _, err = run(capsys, "groups", tmp_path / "train", *GROUPS)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1


# --- photos that cost too much ---------------------------------------------------------------------------------------


def test_a_very_narrow_photo_is_left_out_and_named(tmp_path: Path, capsys, model: Path) -> None:
    """The formula: 3000 x 10 pixels are 72,000 x 240 = 17 megapixels after resizing, above the limit of 16."""
    write_street(tmp_path / "street", range(2))
    narrow = utm_name(37.8, -122.4, zone=10, note="narrow")
    (tmp_path / "street" / narrow).write_bytes(encoded(np.full((10, 3000, 3), 90, np.uint8)))
    words = "--model", model, "--to", tmp_path / "index", "--image_size", 240, "--no_calibrate", *ENCODING
    code, out, err = run(capsys, "index", "build", tmp_path / "street", *words)
    assert code == 0 and out.startswith("2 photos added") and narrow in out + err
    # Again, and with another one: now there is nothing else to describe.
    (tmp_path / "street" / narrow.replace("narrow", "other")).write_bytes(encoded(np.full((10, 3100, 3), 9, np.uint8)))
    for command in (
        ("build", tmp_path / "street", *words),
        ("add", tmp_path / "index", tmp_path / "street", *ENCODING),
        ("sync", tmp_path / "index", tmp_path / "street", *ENCODING),
    ):
        code, out, err = run(capsys, "index", *command)
        assert code == 0 and "Traceback" not in err
        assert narrow in out + err and narrow.replace("narrow", "other") in out + err


@needs_posix
def test_an_unreadable_folder_does_not_end_an_import(tmp_path: Path) -> None:
    capabilities = "-dac_override,-dac_read_search"  # with them, root may read everything
    as_user = ["setpriv", "--bounding-set", capabilities, "--inh-caps", capabilities] if os.geteuid() == 0 else []
    if as_user and shutil.which("setpriv") is None:
        pytest.skip("root without setpriv (util-linux) may read every folder")
    write_photo(tmp_path / "photos" / "b", utm_name(37.7, -122.4, zone=10))
    closed = tmp_path / "photos" / "a"
    closed.mkdir(mode=0)
    command = [
        *as_user,
        sys.executable,
        "-m",
        "cosplace",
        "import",
        str(tmp_path / "photos"),
        "--to",
        str(tmp_path / "city"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    closed.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert str(closed) in done.stdout + done.stderr
    assert len(read_table(tmp_path / "city" / "photos.parquet")) == 1


# --- errors ----------------------------------------------------------------------------------------------------------


def test_the_only_photo_that_cannot_be_read_is_its_own_reason(tmp_path, capsys, monkeypatch, model: Path) -> None:
    """The file system: the photo is empty."""
    monkeypatch.chdir(tmp_path)  # logs/ is created there
    for place in range(2):
        write_photo(tmp_path / "test" / "database", utm_name(37.7 + place / 100, -122.4, zone=10), place)
    write_photo(tmp_path / "test" / "queries", utm_name(37.7, -122.4, zone=10)).write_bytes(b"")
    words = "--model", model, "--recall_values", 1, *ENCODING
    code, _, err = run(capsys, "eval", "--test_set_folder", tmp_path / "test", *words)
    last = err.splitlines()[-1]
    assert code == 2 and re.match(rf"error: {re.escape(str(tmp_path))}/test/queries/\S+ is empty", last)


@pytest.mark.parametrize("command", [["locate"], ["index", "add"]])
def test_errors_advise_only_flags_of_the_command(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, index: Path, command: list[str]
) -> None:
    """The command's own --help lists its flags."""

    def forward(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    _, text, _ = run(capsys, *command, "--help")
    monkeypatch.setattr(GeoLocalizationNet, "forward", forward)
    photo = write_photo(tmp_path / "new", utm_name(37.9, -122.4, zone=10), place=9)
    if command == ["locate"]:
        words = photo, "--index", index, "--uncalibrated", *CPU
    else:
        words = index, photo.parent, *ENCODING
    code, _, err = run(capsys, *command, *words)
    assert code == 2 and "memory" in err
    assert set(re.findall(r"--\w+", err)) <= set(re.findall(r"--\w+", text))
