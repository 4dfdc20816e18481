"""Fixtures that several modules use; others have an `address` of their own."""

import shutil
from pathlib import Path

import pytest

from cosplace.index.reader_copy import remove_reader_copies
from tests.index.index_samples import write_index


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 290 photos."""
    address = tmp_path_factory.mktemp("intact") / "index"
    write_index(address).close()
    return address


@pytest.fixture
def address(intact: Path, tmp_path: Path) -> Path:
    """A copy of it, without the copy for readers, which would be read instead of the tables."""
    copied = shutil.copytree(intact, tmp_path / "index")
    remove_reader_copies(str(copied))
    return copied
