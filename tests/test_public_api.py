"""The public API: the names that `import cosplace` offers, imported when they are first used."""

import inspect
import subprocess
import sys

import pytest

import cosplace

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
    ],
)
def test_names_import_only_what_they_use(code: str, absent: tuple[str, ...]) -> None:
    program = f"{code}; import sys; print([name for name in {absent!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
