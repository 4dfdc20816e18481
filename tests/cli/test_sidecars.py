"""cosplace locate --write xmp: a list of changes, a confirmation, sidecars, and back again."""

import io
import re
import stat
from pathlib import Path

import pytest
from PIL import Image

from cosplace.cli import main, sidecars
from cosplace.photos.sidecars import EstimatedPosition, add_position, remove_position
from cosplace.photos.xmp import EXIF_NAMESPACE, read_xmp
from tests.indexed_city import queries, write_indexed_city
from tests.photos.test_sidecars import DARKTABLE

pytestmark = pytest.mark.slow  # make check has a minute; make test runs all


class Terminal(io.StringIO):
    """Standard input of a person."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_indexed_city(tmp_path_factory.mktemp("sidecars"))


@pytest.fixture
def photos(city: Path, tmp_path: Path) -> Path:
    """A folder of photos: one as it is, one with a sidecar, one with a position in EXIF, one that is damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, photo in zip(("a.jpg", "b.jpg"), queries(city), strict=False):
        (folder / name).write_bytes(photo.read_bytes())
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (37.0, 30.0, 0.0), 3: "W", 4: (122.0, 0.0, 0.0)}
    with Image.open(queries(city)[2]) as image:
        image.save(folder / "c.jpg", exif=exif)
    (folder / "d.jpg").write_bytes(b"\xff\xd8 damaged")
    (folder / "b.xmp").write_bytes(DARKTABLE)
    (folder / "b.xmp").chmod(0o600)
    return folder


def run(city: Path, photos: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    words = (str(photos), "--index", str(city / "index"), "--device", "cpu", "--write", "xmp", *words)
    code = main(["locate", *words])
    out, err = capsys.readouterr()
    return code, out, err


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_writing_and_undoing(city: Path, photos: Path, capsys, monkeypatch) -> None:
    before = contents(photos)
    code, out, _ = run(city, photos, capsys, "--min_confidence", "0", "--dry_run")
    assert code == 0 and contents(photos) == before
    listed = out.split("Sidecars:")[1]
    assert re.search(r"a\.jpg\n    new a\.jpg\.xmp: 37\.7\d+, -12[12]\.\d+  \w+.*%", listed)
    assert re.search(r"b\.jpg\n    add to b\.xmp: ", listed)
    assert "c.jpg\n    skipped: the photo has a position" in listed
    assert "d.jpg\n    skipped: the photo cannot be read" in listed
    assert "Nothing was written. 2 sidecars to write." in listed

    for answer in ("n\n", "", "what?\n"):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        code, out, err = run(city, photos, capsys, "--min_confidence", "0")
        assert code == 0 and "Nothing was written." in out and "Write 2 sidecars? [y/N]" in err
        assert contents(photos) == before

    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    code, out, _ = run(city, photos, capsys, "--min_confidence", "0")
    assert code == 0 and "2 sidecars written. To remove the positions again, repeat the command with --undo." in out
    after = contents(photos)
    assert set(after) - set(before) == {"a.jpg.xmp"}
    assert {name for name in before if after[name] != before[name]} == {"b.xmp"}
    assert remove_position(after["b.xmp"]) == before["b.xmp"] and remove_position(after["a.jpg.xmp"]) is None
    assert stat.S_IMODE((photos / "b.xmp").stat().st_mode) == 0o600
    found = read_xmp(after["a.jpg.xmp"])
    assert found[f"{{{EXIF_NAMESPACE}}}GPSProcessingMethod"].startswith("Estimated")

    # Again: own estimates are replaced.
    code, out, _ = run(city, photos, capsys, "--min_confidence", "0", "--yes")
    assert code == 0 and "2 sidecars written" in out and contents(photos) == after

    code, out, _ = run(city, photos, capsys, "--undo", "--dry_run")
    assert code == 0 and "2 sidecars to restore" in out and contents(photos) == after
    code, out, _ = run(city, photos, capsys, "--undo", "--yes")
    assert code == 0 and contents(photos) == before
    assert "delete a.jpg.xmp" in out and "remove the position from b.xmp" in out and "2 sidecars restored." in out
    code, out, _ = run(city, photos, capsys, "--undo", "--yes")
    assert code == 0 and "skipped: its sidecar has no estimated position" in out and contents(photos) == before


def test_sidecars_whose_photos_are_gone_are_restored_too(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    position = EstimatedPosition(latitude=1.0, longitude=2.0, radius_m=None, confidence=0.9, verdict="found")
    before = contents(photos)
    own = add_position(None, position)
    kept = {"rewritten.jpg.xmp": own.replace(b'"', b"'"), "other.jpg.xmp": DARKTABLE, "raw.cr2.xmp": own}
    for name, content in kept.items():
        (photos / name).write_bytes(content)
    (photos / "raw.cr2").write_bytes(b"a file that is not one of the photos")
    (photos / "sub").mkdir()
    added = {"gone.jpg.xmp": own, "sub/gone.jpg.xmp": own, "extended.xmp": add_position(DARKTABLE, position)}
    added |= {"b.xmp": add_position(DARKTABLE, position)}
    for name, content in added.items():
        (photos / name).write_bytes(content)
    (photos / "b.png").write_bytes(before["b.jpg"])  # so that b.xmp is no longer the sidecar of b.jpg alone
    words = ["locate", str(photos), "--index", "none", "--write", "xmp", "--undo"]
    assert main([*words, "--yes"]) == 0
    out = capsys.readouterr().out
    assert "4 sidecars restored." in out and "gone.jpg.xmp\n    delete gone.jpg.xmp" in out
    assert "rewritten.jpg.xmp\n    skipped: another program has written its sidecar again" in out
    assert not list((photos / "sub").iterdir())
    (photos / "sub").rmdir()
    for name in ("b.png", "raw.cr2"):
        (photos / name).unlink()
    assert contents(photos) == before | kept | {"extended.xmp": DARKTABLE}


def test_a_folder_whose_photos_are_all_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    position = EstimatedPosition(latitude=1.0, longitude=2.0, radius_m=None, confidence=0.9, verdict="found")
    (tmp_path / "gone.jpg.xmp").write_bytes(add_position(None, position))
    words = ["locate", str(tmp_path), "--index", "none", "--write", "xmp", "--undo", "--yes"]
    assert main(words) == 0 and "1 sidecar restored." in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert main(words) == 2 and "has no photos" in capsys.readouterr().err


def test_unknown_and_uncalibrated_answers_are_not_written(city: Path, photos: Path, capsys) -> None:
    before = contents(photos)
    code, out, _ = run(city, photos, capsys, "--min_confidence", "1", "--yes")
    assert code == 0 and "a.jpg\n    skipped: unknown" in out and "0 sidecars to write" in out
    words = [str(photos), "--index", str(city / "bare"), "--uncalibrated", "--min_confidence", "0", "--write", "xmp"]
    assert main(["locate", *words, "--yes"]) == 0
    assert "a.jpg\n    skipped: the index is not calibrated" in capsys.readouterr().out
    assert contents(photos) == before


def test_nothing_is_written_without_being_asked(city: Path, photos: Path, capsys, monkeypatch) -> None:
    before = contents(photos)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    code, _, err = run(city, photos, capsys, "--min_confidence", "0")
    assert code == 2 and err.count("\n") == 1 and "Add --yes or --dry_run." in err
    assert contents(photos) == before


def test_a_sidecar_that_changes_meanwhile_is_kept(city: Path, photos: Path, capsys, monkeypatch) -> None:
    def confirm(_: str) -> bool:
        (photos / "b.xmp").write_bytes(DARKTABLE + b"\n")
        (photos / "a.jpg.xmp").write_bytes(b"new")
        return True

    monkeypatch.setattr(sidecars, "_is_confirmed", confirm)
    code, out, _ = run(city, photos, capsys, "--min_confidence", "0")
    assert code == 0 and out.count("skipped: its sidecar has changed") == 2 and "0 sidecars written" in out
    assert (photos / "b.xmp").read_bytes() == DARKTABLE + b"\n" and (photos / "a.jpg.xmp").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--json"], "--write shows a list of changes as text"),
        (["--yes", "--dry_run"], "--dry_run and --yes contradict each other"),
    ],
)
def test_mistakes(city: Path, photos: Path, capsys, flags: list[str], message: str) -> None:
    code, out, err = run(city, photos, capsys, *flags)
    assert (code, out) == (2, "") and err.count("\n") == 1 and message in err
    code = main(["locate", str(photos), "--index", "x", "--undo"])
    assert code == 2 and "--undo has an effect only with --write" in capsys.readouterr().err
