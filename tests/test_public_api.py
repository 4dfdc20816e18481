"""The public API: the names that `import cosplace` offers, imported when they are first used."""

import inspect
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cosplace

ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    "scan_images", "partition", "GeoLocalizationNet", "MarginCosineProduct", "nearest", "find_positives", "recall_at",
    "evaluate", "train", "load_model", "open_index", "Localizer",
}  # fmt: skip


def test_these_names_are_public() -> None:
    assert set(cosplace.__all__) == NAMES <= set(dir(cosplace))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_public_names_are_documented_and_annotated(name: str) -> None:
    thing = getattr(cosplace, name)
    assert thing.__name__ == name and inspect.getdoc(thing)
    parameters = inspect.signature(thing).parameters.values()
    assert all(parameter.annotation is not parameter.empty for parameter in parameters)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Describer'"):
        cosplace.Describer  # noqa: B018


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import cosplace", ("torch", "numpy", "lancedb")),
        ("import cosplace; cosplace.scan_images", ("torch", "lancedb", "numba")),
        ("import cosplace; cosplace.partition", ("torch", "lancedb", "numba")),
        (
            "import cosplace.report.results, cosplace.localization.database_confidence",  # the last imports of eval
            ("torchvision", "torch._dynamo", "tensorboard", "lancedb", "cv2"),
        ),
    ],
)
def test_names_import_only_what_they_use(code: str, absent: tuple[str, ...]) -> None:
    program = f"{code}; import sys; print([name for name in {absent!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["", "locate", "serve", "index build", "eval", "train"])
def test_help_imports_few_modules(command: str) -> None:
    """145 to 165 of them with Python 3.11, 33 of which Python itself imports at its start; torch alone has 1,000."""
    program = (
        "import sys; from cosplace.cli import main\n"
        f"try: main({[*command.split(), '--help']!r})\n"
        "finally: print(len(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 250


def test_an_editable_install_works_in_the_folder_that_contains_the_clone(tmp_path: Path) -> None:
    """There, Python takes the folder cosplace/ of the clone for a package without files, unless it finds another."""
    pytest.importorskip("setuptools", minversion="77")
    clone, wheels = tmp_path / "cosplace", tmp_path / "wheels"
    for package in ("cosplace", "synthcity"):
        (clone / package).mkdir(parents=True)
        (clone / package / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    wheels.mkdir()
    build = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, wheels], cwd=clone, check=True, capture_output=True)
    (wheel,) = map(zipfile.ZipFile, wheels.glob("*.whl"))
    with wheel:
        (installed,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".pth"))
    code = f"import sys; sys.path.append({installed.strip()!r}); import cosplace; print(cosplace.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-S", "-c", code]  # without site: this checkout may be installed
    done = subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == f"{clone / 'cosplace' / '__init__.py'}\n"
