"""Weights files: read without running code, written and read back bit for bit."""

import contextlib
import hashlib
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosplace.errors import CheckpointError, CosPlaceError, StorageError
from cosplace.models.weight_files import model_checksum, read_card, read_state_dict, write_weights


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_line(error: pytest.ExceptionInfo[CosPlaceError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_state_dicts_are_read_without_prefixes(prefix: str, tmp_path: Path):
    tensors = {"a.weight": torch.randn(3, 2), "b.module.bias": torch.arange(4)}
    torch.save({prefix + key: value for key, value in tensors.items()}, tmp_path / "w.pth")
    found = read_state_dict(tmp_path / "w.pth")
    assert list(found) == list(tensors)
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)


class Malicious:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_not_run(save, tmp_path: Path):
    trace = tmp_path / "trace"
    save({"backbone.0.weight": torch.zeros(1), "x": Malicious(trace)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="was not opened") as error:
        read_state_dict(tmp_path / "w.pth")
    one_line(error)
    assert not trace.exists()
    Malicious(trace).__reduce__()[0](trace)
    assert trace.exists()


def test_missing_empty_and_other_files_have_different_errors(tmp_path: Path):
    (tmp_path / "empty.pth").touch()
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    (tmp_path / "card.md").write_text("# A model\n\nIts weights are elsewhere.\n")
    for name, what in (
        ("absent.pth", "no weights file"),
        ("empty.pth", "is empty"),
        ("photo.jpg", "is not a weights file"),
        ("card.md", "is not a weights file"),
        (".", "Use a readable file"),
    ):
        with pytest.raises(CheckpointError, match=what) as error:
            read_state_dict(tmp_path / name)
        assert str(tmp_path) in one_line(error)


@pytest.mark.parametrize("legacy", [False, True])
def test_files_truncated_anywhere_are_refused(legacy: bool, tmp_path: Path):
    path = tmp_path / "w.pth"
    content = {f"layer{i}.weight": torch.randn(20, 20) for i in range(5)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for size in np.random.default_rng(0).integers(1, len(whole) - 100, 40):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError) as error:
            read_state_dict(path)
        one_line(error)


def test_damaged_pickles_raise_no_other_error(tmp_path: Path):
    path = tmp_path / "w.pth"
    torch.save({"weight": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except CheckpointError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "contains a dict without tensors"),
        ([torch.zeros(1)], "contains a list without tensors"),
        (torch.zeros(3), "contains a Tensor without tensors"),
        ({"epoch_num": 3, "model_state_dict": {"a": 1}}, "'epoch_num' is int"),
        ({"state_dict": {}}, "'state_dict' is dict"),
        ({3: torch.zeros(1)}, "'3' is Tensor"),
    ],
)
def test_anything_but_named_tensors_is_refused(content: object, message: str, tmp_path: Path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        read_state_dict(tmp_path / "w.pth")
    one_line(error)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_state_dicts_inside_a_checkpoint_are_found(wrapper: str, tmp_path: Path):
    torch.save({"epoch": 3, wrapper: {"module.a": torch.ones(2)}, "optimizer": {}}, tmp_path / "w.pth")
    found = read_state_dict(tmp_path / "w.pth")
    assert list(found) == ["a"]
    assert torch.equal(found["a"], torch.ones(2))


def test_compressed_archives_are_refused(tmp_path: Path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as whole,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in whole.infolist():
            small.writestr(entry.filename, whole.read(entry))
    with pytest.raises(CheckpointError, match="compressed archive") as error:
        read_state_dict(tmp_path / "small.pth")
    one_line(error)


# --- safetensors ------------------------------------------------------------------------------------------------------


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(4, 6, generator=generator)
    return {
        "a.weight": torch.randn(3, 2, 5, 5, generator=generator).to(memory_format=torch.channels_last),
        "a.bias": shared[:2],
        "a.same": shared.T,
        "half": torch.randn(7, generator=generator).half(),
        "bfloat": torch.randn(7, generator=generator).bfloat16(),
        "counter": torch.tensor(3),
        "empty": torch.zeros(0, 4),
    }


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "W.SAFETENSORS", "w.bin"])
def test_weights_are_read_back_bit_for_bit(name: str, tmp_path: Path):
    tensors = some_tensors()
    write_weights(tmp_path / "new" / name, tensors, {"backbone": "ResNet18"})
    found = read_state_dict(tmp_path / "new" / name)
    assert found.keys() == tensors.keys()
    for key, value in tensors.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)
    assert read_card(tmp_path / "new" / name) == (
        {"backbone": "ResNet18"} if name.lower().endswith(".safetensors") else {}
    )
    assert names_in(tmp_path / "new") == [name]


@settings(max_examples=50, deadline=None)
@given(card=st.dictionaries(st.text(), st.text(), max_size=6))
def test_cards_are_read_back_and_files_are_reproducible(card: dict[str, str], tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("cards")
    card = {key: value for key, value in card.items() if (key + value).isprintable()}
    write_weights(folder / "a.safetensors", {"a": torch.ones(3)}, card)
    write_weights(folder / "b.safetensors", {"a": torch.ones(3)}, dict(reversed(card.items())))
    assert read_card(folder / "a.safetensors") == card
    assert torch.equal(read_state_dict(folder / "a.safetensors")["a"], torch.ones(3))
    assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()


def test_files_are_interchangeable_with_the_safetensors_library(tmp_path: Path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5)}
    write_weights(tmp_path / "ours.safetensors", tensors, {"method": "cosplace"})
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert file.metadata() == {"method": "cosplace"}
        assert all(torch.equal(file.get_tensor(key), value) for key, value in tensors.items())
    save_file({f"module.{key}": value for key, value in tensors.items()}, tmp_path / "theirs", {"x": "y"})
    found = read_state_dict(tmp_path / "theirs")  # recognized by its content: it has no suffix
    assert read_card(tmp_path / "theirs") == {"x": "y"}
    assert all(torch.equal(found[key], value) for key, value in tensors.items())


def test_tensors_do_not_change_when_their_file_does(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    write_weights(path, {"a": torch.ones(5000)})
    found = read_state_dict(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(found["a"], torch.ones(5000))


def test_a_torch_file_is_read_under_any_name(tmp_path: Path):
    for legacy in (False, True):
        torch.save({"a": torch.ones(2)}, tmp_path / "w.safetensors", _use_new_zipfile_serialization=not legacy)
        assert torch.equal(read_state_dict(tmp_path / "w.safetensors")["a"], torch.ones(2))
        assert read_card(tmp_path / "w.safetensors") == {}


def test_safetensors_truncated_anywhere_are_refused(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    write_weights(path, some_tensors(), {"backbone": "ResNet18"})
    whole = path.read_bytes()
    for size in [*range(12), *np.random.default_rng(0).integers(12, len(whole) - 1, 40)]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError) as error:
            read_state_dict(path)
        assert str(path) in one_line(error)
        with contextlib.suppress(CheckpointError):
            assert read_card(path) == {"backbone": "ResNet18"}


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 700), value=st.integers(0, 255))
def test_damaged_safetensors_raise_no_other_error(place: int, value: int, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "w.safetensors"
    write_weights(path, some_tensors(), {"backbone": "ResNet18"})
    content = bytearray(path.read_bytes())
    content[place] = value
    path.write_bytes(content)
    for read in (read_state_dict, read_card):
        with contextlib.suppress(CheckpointError):
            read(path)


@pytest.mark.parametrize(
    "header",
    [b"{", b"[]", b"{}", b"nul", b'{"__metadata__": 3}', b'{"__metadata__": {"a": 1}}', b'{"a": 3}', b"[" * 50_000],
)
def test_invalid_headers_are_refused(header: bytes, tmp_path: Path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError) as error:
        read_state_dict(path)
    assert str(path) in one_line(error)


def test_a_huge_header_is_refused(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    path.write_bytes((1 << 60).to_bytes(8, "little") + b"{" + bytes(100))
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        read_card(path)
    with pytest.raises(CheckpointError, match="There is no weights file"):
        read_card(tmp_path / "absent.safetensors")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    write_weights(path, {"a": torch.ones(2)})
    with pytest.raises(TypeError):
        write_weights(path, {"a": torch.zeros(2)}, {"a": object()})
    assert torch.equal(read_state_dict(path)["a"], torch.ones(2))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        write_weights(tmp_path / "file" / "w.pth", {"a": torch.ones(2)})


# --- tensors that are not weights ------------------------------------------------------------------------------------


def not_finite(value: float) -> torch.Tensor:
    tensor = torch.zeros(3, 4)
    tensor[1, 2] = value
    return tensor


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (torch.ones(3, dtype=torch.complex64), "complex64"),
        (torch.ones(3, dtype=torch.complex128), "complex128"),
        (torch.ones(3, dtype=torch.bool), "bool"),
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.ones(3, device="meta"), "without values"),
        (not_finite(float("nan")), "not finite"),
        (not_finite(float("inf")), "not finite"),
        (not_finite(float("-inf")).half(), "not finite"),
        (not_finite(float("nan")).to(torch.float8_e4m3fn), "not finite"),
        (torch.ones(1).expand(10**6, 10**6), "declares tensors of 4000000000004 bytes"),
        (torch.ones(10**6, 10**6, device="meta"), "declares tensors"),
    ],
)
def test_tensors_that_are_not_weights_are_refused(tensor: torch.Tensor, problem: str, tmp_path: Path):
    path = tmp_path / "w.pth"
    torch.save({"bias": torch.ones(1), "layer.weight": tensor}, path)
    with pytest.raises(CheckpointError, match=problem) as error:
        read_state_dict(path)
    assert str(path) in one_line(error)
    assert "'layer.weight'" in one_line(error)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float32])
def test_safetensors_that_are_not_weights_are_refused(dtype: torch.dtype, tmp_path: Path):
    path = tmp_path / "w.safetensors"
    try:
        write_weights(path, {"a": torch.full((2,), float("nan"), dtype=dtype)})
    except KeyError:
        pytest.skip("this version of safetensors cannot write complex numbers")
    with pytest.raises(CheckpointError, match="complex64" if dtype.is_complex else "not finite"):
        read_state_dict(path)


def test_tied_weights_and_counters_are_read(tmp_path: Path):
    tied = torch.randn(500)
    tensors = {"a": tied, "b": tied, "num_batches_tracked": torch.tensor(7), "mask": torch.tensor([True, False])}
    torch.save(tensors, tmp_path / "w.pth")
    assert {key: value.tolist() for key, value in read_state_dict(tmp_path / "w.pth").items()} == {
        key: value.tolist() for key, value in tensors.items()
    }


@pytest.mark.skipif(os.name != "posix", reason="pipes are files on POSIX systems only")
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "w.pth")
    for read in (read_state_dict, read_card):
        with pytest.raises(CheckpointError, match="not a regular file"):
            read(tmp_path / "w.pth")


# --- checksums -------------------------------------------------------------------------------------------------------

STRUCTURE = """Network(
  (0): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), bias=False)
  (1): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
  (2): InstanceNorm2d(4, eps=1e-05, momentum=0.1, affine=False, bias=False, track_running_stats=False)
  (3): Sequential(
    (0): GroupNorm(2, 4, eps=1e-05, affine=True, bias=True)
    (1): LayerNorm((4,), eps=1e-06, elementwise_affine=True, bias=True)
    (2): LayerNorm2d((4, 2), eps=1e-05, elementwise_affine=False, bias=False)
    (3): RMSNorm((4,), eps=None, elementwise_affine=True)
  )
  (4): Linear(in_features=4, out_features=2, bias=True)
)"""


class Printed(torch.nn.Module):
    """A module with weights that prints as a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.register_buffer("weight", torch.arange(5.0))

    def __repr__(self) -> str:
        return self.text


def test_a_checksum_does_not_depend_on_how_torch_prints_layers():
    """Former versions of torch do not print whether a normalization has a bias."""
    former = re.sub(r"(affine=\w+), bias=\w+", r"\1", STRUCTURE)
    assert former.count("bias=") == 2
    assert model_checksum(Printed(former)) == model_checksum(Printed(STRUCTURE))
    # As stored in existing indexes: the text of torch 2.15, then names, types, shapes and values.
    value = torch.arange(5.0).numpy().tobytes()
    expected = hashlib.sha256(STRUCTURE.encode() + b"weight torch.float32 (5,)" + value).hexdigest()
    assert model_checksum(Printed(STRUCTURE)) == expected
    for other in (STRUCTURE.replace("eps=1e-05", "eps=1e-03"), STRUCTURE.replace("affine=True", "affine=False")):
        assert model_checksum(Printed(other)) != expected
