"""Fixtures of all tests: where the optional reference data lies, and isolation from the user's own caches."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("COSPLACE_REFERENCE", Path(__file__).resolve().parents[2] / "shared"))


def _optional_folder(folder: Path, what: str) -> Path:
    if not folder.is_dir():
        pytest.skip(f"{what} not found at {folder}: set COSPLACE_REFERENCE to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """Numbers computed by the reference implementation."""
    return _optional_folder(SHARED / "reference", "reference numbers")


@pytest.fixture(scope="session")
def real_photos_folder() -> Path:
    """A slice of SF-XS: real street photos."""
    return _optional_folder(SHARED / "data" / "sf-xs-slice", "real photos")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSPLACE_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("SF_XL_PROCESSED_FOLDER", raising=False)
