"""Fixtures of all tests: optional reference data, and isolation from the user's caches."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine may take long for any example, and no test is about time.  `.ci/run` always tries the same examples, so
# that a rare one does not stop a change that has nothing to do with it.
settings.register_profile(
    "cosplace",
    deadline=None,
    derandomize="COSPLACE_SAME_EXAMPLES" in os.environ,
    max_examples=int(os.environ.get("COSPLACE_EXAMPLES", "100")),  # of tests that name no number
)
settings.load_profile("cosplace")
# Ray would replace its processes that take a minute to start, again and again.
os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process runs one of them while the others have ended."""
    with_slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in with_slow)


SHARED = Path(os.environ.get("COSPLACE_REFERENCE", Path(__file__).resolve().parents[2] / "shared"))


def _optional_folder(folder: Path, what: str) -> Path:
    if not folder.is_dir():
        pytest.skip(f"{what} not found at {folder}. Set COSPLACE_REFERENCE to its parent folder")
    return folder


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """Numbers computed by the reference implementation."""
    return _optional_folder(SHARED / "reference", "reference numbers")


@pytest.fixture(scope="session")
def real_photos_folder() -> Path:
    """A part of SF-XS: real photos."""
    return _optional_folder(SHARED / "data" / "sf-xs-slice", "real photos")


@pytest.fixture(scope="session", autouse=True)
def cache_of_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """The cache of fixtures of several tests."""
    home = tmp_path_factory.mktemp("home")
    (home / "index_tables").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COSPLACE_HOME", str(home))
        yield home


@pytest.fixture(autouse=True)
def _separate_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, cache_of_fixtures: Path
) -> None:
    home = tmp_path_factory.mktemp("home")
    (home / "index_tables").symlink_to(cache_of_fixtures / "index_tables")  # trying each index of a fixture takes long
    monkeypatch.setenv("COSPLACE_HOME", str(home))
    monkeypatch.delenv("SF_XL_PROCESSED_FOLDER", raising=False)
