"""Compiled functions: caching on disk, signatures, fingerprints."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from cosplace import compiled
from cosplace.compiled import compiled_for, fingerprint


def twice(numbers):
    for place in range(len(numbers)):
        numbers[place] *= 2


def broken(numbers):
    numbers.no_such_thing()


def test_without_a_writable_cache_functions_are_compiled_in_memory(monkeypatch: pytest.MonkeyPatch):
    refused = []
    njit = compiled.njit

    def njit_without_folder(*arguments, cache: bool = False, **options):
        if cache:
            refused.append(arguments)
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*arguments, **options)

    monkeypatch.setattr(compiled, "njit", njit_without_folder)
    numbers = np.arange(5.0)
    compiled_for("void(float64[::1])")(twice)(numbers)
    assert numbers.tolist() == [0, 2, 4, 6, 8]
    assert refused == [("void(float64[::1])",)]


def test_damaged_cache_files_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    compiled_for("void(float64[::1])")(twice)
    cached = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert cached
    for path in cached:
        path.write_bytes(b"")
    numbers = np.ones(3)
    compiled_for("void(float64[::1])")(twice)(numbers)
    assert numbers.tolist() == [2, 2, 2]


def test_compile_errors_are_raised():
    with pytest.raises(Exception, match="no_such_thing"):
        compiled_for("void(float64[::1])")(broken)


def test_other_types_than_the_signature_are_refused():
    with pytest.raises(TypeError, match="No matching definition"):
        compiled_for("void(float64[::1])")(twice)(np.ones(3, np.float32))


def test_fingerprints_change_with_the_content_of_files(tmp_path: Path):
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("a = 1")
    other.write_text("b = 2")
    first = fingerprint([one, other])
    assert 0 <= first < 2**48
    assert fingerprint([other, one]) == first
    other.write_text("b = 3")
    assert fingerprint([one, other]) != first
