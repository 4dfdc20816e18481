"""Commands whose streams are closed or on a full disk, and in other locales."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.synthetic_dataset import write_dataset

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")


def run(redirected: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell, with some of its streams redirected."""
    line = ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-m", "cosplace", *words]
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONUNBUFFERED", "OMP_WAIT_POLICY")
    }
    return subprocess.run(line, capture_output=True, text=True, check=False, env=inherited | variables)


def test_a_command_without_stderr_works(tmp_path: Path) -> None:
    write_dataset(tmp_path / "city", num_places=2)
    words = "import", f"{tmp_path}/city/test/database", "--to", f"{tmp_path}/photos", "--dry_run"
    done = run("2>&-", *words)
    assert done.returncode == 0 and "24 photos would be added" in done.stdout


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-"])
def test_an_error_without_streams_has_its_exit_code(closed: str) -> None:
    assert run(closed, "zoo", "info", "nothing").returncode == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("word", ["--help", "--version", "protocols"])
def test_a_full_disk_is_reported_in_one_line(word: str, unbuffered: str) -> None:
    done = run(">/dev/full", word, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 2
    problem = "Cannot write the output: No space left on device"
    assert done.stderr == f"error: {problem}. Free some space, or use another disk.\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_command_works_with_stderr_on_a_full_disk(tmp_path: Path, unbuffered: str) -> None:
    variables = {"PYTHONUNBUFFERED": unbuffered, "COSPLACE_HOME": str(tmp_path)}
    for words, code in (
        (("protocols",), 0),
        (("protocols", "--log_format=json"), 0),
        (("zoo", "info", "nothing"), 2),
    ):
        expected = run("", *words, **variables)
        done = run("2>/dev/full", *words, **variables)
        assert (done.returncode, done.stdout) == (expected.returncode, expected.stdout)
        assert done.returncode == code
    assert run(">/dev/full 2>&1", "protocols", **variables).returncode == 2


def test_log_lines_are_lost_on_a_full_disk() -> None:
    code = (
        "import functools, logging, sys; sys.argv = ['cosplace', 'protocols']\n"
        "from cosplace.cli import main, reproduce\n"
        "log, show = logging.getLogger('cosplace'), reproduce.run_protocols\n"
        "show_all = lambda config: (log.warning('a warning'), show(config))\n"
        "reproduce.run_protocols = functools.wraps(show)(show_all)\n"
        "main()"
    )
    line = ["sh", "-c", 'exec "$@" 2>/dev/full', "sh", sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == run("", "protocols").stdout != ""


@pytest.mark.slow
def test_no_library_complains_in_a_turkish_locale(tmp_path: Path) -> None:
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/tr_TR").exists():
        pytest.skip("needs the sources of locales")
    subprocess.run(["localedef", "-i", "tr_TR", "-f", "UTF-8", tmp_path / "tr_TR.UTF-8"], check=True)
    write_dataset(tmp_path / "city", num_places=1)
    locale = {"LOCPATH": str(tmp_path), "LC_ALL": "tr_TR.UTF-8"}
    done = run("", "groups", f"{tmp_path}/city/train", "--min_images_per_class", "1", **locale)
    assert "libgomp" not in done.stderr


def test_names_are_utf_8_in_any_locale(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rows = ["name,latitude,longitude"]
    for number in range(3):
        Image.new("RGB", (64, 64), (60 * number, 0, 0)).save(photos / f"Zürich 東{number}.jpg")
        rows.append(f"Zürich 東{number}.jpg,45.{number},7.5")
    (tmp_path / "positions.csv").write_text("\n".join(rows), encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    sources = f"{photos}", f"{tmp_path}/positions.csv"
    done = run("", "import", *sources, "--to", f"{tmp_path}/city", **ascii_only)
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in (tmp_path / "city").rglob("*.jpg")} == {f"Zürich 東{number}" for number in range(3)}
    done = run("", "validate", f"{tmp_path}/city", "--json", **ascii_only)
    assert done.returncode == 0 and json.loads(done.stdout)


def test_a_process_that_cannot_use_utf_8_says_so() -> None:
    code = "from cosplace.cli import main; main(['--version'])"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | ascii_only
    )
    assert done.stderr == "error: File names are read as ascii, not as UTF-8. Set PYTHONUTF8=1.\n" and not done.stdout
