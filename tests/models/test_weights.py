import contextlib
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosplace.config.knobs import BACKBONES
from cosplace.errors import CheckpointError, ConfigError, CosPlaceError, DownloadError, StorageError
from cosplace.models.downloads import digest_record, download, file_sha256, part_of, recorded_digest, weights_folder
from cosplace.models.imagenet_files import available_imagenet_weights, imagenet_file, imagenet_url
from cosplace.models.weight_files import read_card, read_state_dict, write_weights
from tests.models.serving import Server, serve

BODY = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve(BODY) as state:
        yield state


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_line(error: pytest.ExceptionInfo[CosPlaceError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- names -----------------------------------------------------------------------------------------------------------


def test_imagenet_versions_are_torchvisions():
    versions = {backbone: available_imagenet_weights(backbone) for backbone in BACKBONES}
    assert versions["ResNet18"] == versions["VGG16"] == ("v1",)
    assert versions["ResNet50"] == versions["ResNet152"] == versions["EfficientNet_B1"] == ("v1", "v2")
    assert versions["ResNet18_Small"] == ()
    assert imagenet_url("resnet-18", "v1") == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert imagenet_url("ResNet50", "v2", base="http://x/y/") == "http://x/y/resnet50-11ad3fa6.pth"


def test_absent_imagenet_versions_name_what_exists():
    with pytest.raises(ConfigError, match="'v2' for VGG16: use --imagenet_weights v1 or none"):
        imagenet_url("VGG16", "v2")


# --- fetching --------------------------------------------------------------------------------------------------------


def test_a_file_is_fetched_once(server: Server, tmp_path: Path):
    path = download(f"{server.address}/weights.pth", tmp_path / "new", sha256=DIGEST)
    assert path == tmp_path / "new" / "weights.pth"
    assert path.read_bytes() == BODY
    assert download(f"{server.address}/weights.pth", tmp_path / "new", sha256=DIGEST[:10].upper()) == path
    assert len(server.ranges) == 1
    assert names_in(path.parent) == ["weights.pth"]


def test_the_digest_in_a_file_name_is_checked(server: Server, tmp_path: Path):
    right, wrong = f"w-{DIGEST[:8]}.pth", "w-0123abcd.pth"
    assert download(f"{server.address}/{right}", tmp_path).name == right
    with pytest.raises(
        DownloadError, match=rf"sha256 {DIGEST[:16]}\.\.\. instead of 0123abcd.*put the file at"
    ) as error:
        download(f"{server.address}/{wrong}", tmp_path)
    one_line(error)
    assert names_in(tmp_path) == [right]


def test_a_damaged_file_in_the_cache_is_fetched_anew(server: Server, tmp_path: Path):
    path = tmp_path / f"w-{DIGEST[:8]}.pth"
    path.write_bytes(b"half")
    assert download(f"{server.address}/{path.name}", tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("takes_ranges", [True, False])
@pytest.mark.parametrize("has_tags", [True, False])
def test_a_broken_connection_goes_on(server: Server, tmp_path: Path, takes_ranges: bool, has_tags: bool):
    server.breaks_after = [1_500_000, 0, 100]
    server.takes_ranges, server.has_tags = takes_ranges, has_tags
    path = download(f"{server.address}/weights.pth", tmp_path, sha256=DIGEST)
    assert path.read_bytes() == BODY
    goes_on = ["bytes=1500000-", "bytes=1500000-", "bytes=1500100-"]
    assert server.ranges == [None, *(goes_on if takes_ranges else ["bytes=1500000-", None, "bytes=100-"])]


def test_a_body_that_stays_truncated_is_refused_and_goes_on_later(server: Server, tmp_path: Path):
    server.breaks_after = [1000, 0, 0, 0]
    url = f"{server.address}/weights.pth"
    with pytest.raises(DownloadError, match="broke off 4 times, at last after 1000 of 3000000 bytes") as error:
        download(url, tmp_path)
    one_line(error)
    assert names_in(tmp_path) == ["weights.pth.part", "weights.pth.part.json"]
    assert download(url, tmp_path).read_bytes() == BODY
    assert server.ranges == [None, *["bytes=1000-"] * 4]
    assert names_in(tmp_path) == ["weights.pth", "weights.pth.sha256"]


def break_off(server: Server, url: str, folder: Path, sha256: str | None = None) -> None:
    """Leave the first 1000 bytes."""
    server.ranges.clear()
    server.breaks_after = [1000, 0, 0, 0]
    with pytest.raises(DownloadError, match="broke off"):
        download(url, folder, sha256=sha256)
    server.ranges.clear()
    server.breaks_after = []


def test_a_file_that_was_renewed_meanwhile_is_fetched_whole(server: Server, tmp_path: Path):
    url = f"{server.address}/weights.pth"
    break_off(server, url, tmp_path)
    server.body = BODY[::-1]
    assert download(url, tmp_path).read_bytes() == BODY[::-1]
    assert server.ranges == ["bytes=1000-"]  # the server answered with all of it


def test_without_tags_only_a_digest_lets_a_later_call_go_on(server: Server, tmp_path: Path):
    server.has_tags = False
    url = f"{server.address}/weights.pth"
    for sha256, first in ((None, None), (DIGEST, "bytes=1000-")):
        break_off(server, url, tmp_path, sha256)
        path = download(url, tmp_path, sha256=sha256)
        assert (path.read_bytes(), server.ranges[0]) == (BODY, first)
        path.unlink()
    # Two pieces that do not belong together are found out, and all is fetched.
    break_off(server, url, tmp_path, DIGEST)
    part_of(path).write_bytes(bytes(1000))
    assert download(url, tmp_path, sha256=DIGEST).read_bytes() == BODY
    assert server.ranges == ["bytes=1000-", None]


def test_a_part_that_is_too_long_is_no_beginning(server: Server, tmp_path: Path):
    url = f"{server.address}/weights.pth"
    break_off(server, url, tmp_path, DIGEST)
    part_of(tmp_path / "weights.pth").write_bytes(bytes(len(BODY) + 5))
    assert download(url, tmp_path, sha256=DIGEST).read_bytes() == BODY


def test_a_part_that_is_whole_only_lacks_its_name(server: Server, tmp_path: Path):
    url = f"{server.address}/weights.pth"
    break_off(server, url, tmp_path)
    part_of(tmp_path / "weights.pth").write_bytes(BODY)
    assert download(url, tmp_path).read_bytes() == BODY
    assert server.ranges == ["bytes=3000000-"]


def test_a_part_of_another_address_is_not_gone_on_from(server: Server, tmp_path: Path):
    break_off(server, f"{server.address}/old/weights.pth", tmp_path, DIGEST)
    assert download(f"{server.address}/new/weights.pth", tmp_path, sha256=DIGEST).read_bytes() == BODY
    assert server.ranges == [None]


def test_bodies_of_unknown_length_are_taken(server: Server, tmp_path: Path):
    server.says_length = False
    assert download(f"{server.address}/weights.pth", tmp_path, sha256=DIGEST).read_bytes() == BODY


@pytest.mark.parametrize("says_length", [True, False])
def test_huge_files_are_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says_length: bool):
    monkeypatch.setattr("cosplace.models.downloads.MAX_BYTES", 2 << 20)
    server.says_length = says_length
    with pytest.raises(DownloadError, match=r"larger than 0\.00195312 GiB") as error:
        download(f"{server.address}/weights.pth", tmp_path)
    one_line(error)
    assert names_in(tmp_path) == []


def test_the_first_digest_is_recorded_and_holds(server: Server, tmp_path: Path):
    url = f"{server.address}/weights.pth"
    path = download(url, tmp_path)
    assert digest_record(path).read_text() == f"{DIGEST}  weights.pth\n"
    assert recorded_digest(path) == DIGEST == file_sha256(path)
    path.write_bytes(BODY[:-1] + b"?")  # damaged on the disk
    assert download(url, tmp_path).read_bytes() == BODY
    path.unlink()
    server.body = BODY[::-1]
    with pytest.raises(DownloadError, match=r"as weights\.pth\.sha256 recorded: retry, or remove") as error:
        download(url, tmp_path)
    one_line(error)
    assert names_in(tmp_path) == ["weights.pth.sha256"]
    digest_record(path).unlink()
    assert download(url, tmp_path).read_bytes() == BODY[::-1]


def test_a_file_put_there_by_hand_is_taken(server: Server, tmp_path: Path):
    (tmp_path / "weights.pth").write_bytes(b"mine")
    assert download(f"{server.address}/weights.pth", tmp_path).read_bytes() == b"mine"
    assert server.ranges == []


def test_without_network_imagenet_says_how_to_go_on(tmp_path: Path):
    with pytest.raises(DownloadError, match=r"refused.*--imagenet_weights none or PATH") as error:
        imagenet_file("ResNet18", "v1", tmp_path, base="http://127.0.0.1:9")
    one_line(error)
    assert names_in(tmp_path) == []


def test_a_missing_file_says_how_to_go_on(server: Server, tmp_path: Path):
    server.status = 404
    with pytest.raises(DownloadError, match=r"answered 404 .*put the file at .*weights\.pth by hand") as error:
        download(f"{server.address}/weights.pth", tmp_path)
    one_line(error)


def test_a_folder_serves_as_a_mirror(tmp_path: Path):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "weights.pth").write_bytes(BODY)
    path = download((tmp_path / "mirror" / "weights.pth").as_uri(), tmp_path / "cache", sha256=DIGEST)
    assert path.read_bytes() == BODY


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_that_refuses_is_a_storage_error(server: Server, tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="choose another folder") as error:
        download(f"{server.address}/weights.pth", tmp_path)
    one_line(error)


def test_a_file_in_the_way_is_a_storage_error(server: Server, tmp_path: Path):
    (tmp_path / "cache").touch()
    with pytest.raises(StorageError, match="choose another folder"):
        download(f"{server.address}/weights.pth", tmp_path / "cache")


# --- several at once -------------------------------------------------------------------------------------------------

FETCH = """
import sys
from pathlib import Path
from cosplace.models.downloads import download
print("fetching", flush=True)
print(download(sys.argv[1], Path(sys.argv[2])).stat().st_size)
"""


def fetching_process(url: str, folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", FETCH, url, str(folder)], stdout=subprocess.PIPE, text=True)


def wait_until(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


@pytest.mark.slow
def test_of_two_processes_one_fetches_and_both_have_it(server: Server, tmp_path: Path):
    server.waits = threading.Event()
    url = f"{server.address}/weights.pth"
    first = fetching_process(url, tmp_path)
    wait_until(lambda: server.ranges and (tmp_path / "weights.pth.lock").exists())
    second = fetching_process(url, tmp_path)
    assert second.stdout is not None
    assert second.stdout.readline() == "fetching\n"
    time.sleep(0.2)
    assert not (tmp_path / "weights.pth").exists()
    server.waits.set()
    outputs = [process.communicate(timeout=30)[0] for process in (first, second)]
    assert [output.splitlines()[-1] for output in outputs] == ["3000000", "3000000"]
    assert len(server.ranges) == 1
    assert (tmp_path / "weights.pth").read_bytes() == BODY
    assert names_in(tmp_path) == ["weights.pth", "weights.pth.sha256"]


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_a_beginning_and_no_lock(server: Server, tmp_path: Path):
    server.waits = threading.Event()
    process = fetching_process(f"{server.address}/weights.pth", tmp_path)
    part = part_of(tmp_path / "weights.pth")
    wait_until(lambda: part.exists() and part.stat().st_size > 1_000_000)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    server.waits.set()
    server.ranges.clear()
    size = part.stat().st_size
    assert download(f"{server.address}/weights.pth", tmp_path).read_bytes() == BODY
    assert server.ranges == [f"bytes={size}-"]
    assert names_in(tmp_path) == ["weights.pth", "weights.pth.sha256"]


def test_many_threads_fetch_once(server: Server, tmp_path: Path):
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(download(f"{server.address}/weights.pth", tmp_path).read_bytes()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [BODY] * 8
    assert len(server.ranges) == 1


def test_the_one_that_waited_fetches_when_the_first_fails(server: Server, tmp_path: Path):
    server.waits = threading.Event()
    server.breaks_after = [1000, 0, 0, 0]

    def fail() -> None:
        with pytest.raises(DownloadError, match="broke off"):
            download(f"{server.address}/weights.pth", tmp_path)

    first = threading.Thread(target=fail)
    found: list[Path] = []
    second = threading.Thread(target=lambda: found.append(download(f"{server.address}/weights.pth", tmp_path)))
    first.start()
    wait_until(lambda: server.ranges)
    second.start()
    server.waits.set()
    first.join()
    second.join()
    assert found[0].read_bytes() == BODY


@pytest.mark.parametrize(
    "url", ["weights.pth", "gopher://host/weights.pth", "http://host with space/weights.pth", "http://127.0.0.1:9/"]
)
def test_impossible_addresses_are_download_errors(url: str, tmp_path: Path):
    with pytest.raises(DownloadError, match="Cannot fetch") as error:
        download(url, tmp_path)
    one_line(error)


def test_proxies_of_the_environment_are_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    # urllib keeps its first opener, and with it the proxies it saw then.
    monkeypatch.setattr(urllib.request, "_opener", None)
    assert download("http://nowhere.invalid/weights.pth", tmp_path).read_bytes() == BODY


def test_the_cache_lies_in_cosplace_home_else_where_torch_hub_keeps_weights(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("COSPLACE_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "weights"
    monkeypatch.delenv("COSPLACE_HOME")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    assert weights_folder() == tmp_path / "torch" / "hub" / "checkpoints"


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_state_dicts_are_read_without_wrappers(prefix: str, tmp_path: Path):
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


def test_missing_empty_and_foreign_files_are_told_apart(tmp_path: Path):
    (tmp_path / "empty.pth").touch()
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    for name, what in (
        ("absent.pth", "no file of weights"),
        ("empty.pth", "is empty"),
        ("photo.jpg", "no "),
        (".", "give a readable file"),
    ):
        with pytest.raises(CheckpointError, match=what) as error:
            read_state_dict(tmp_path / name)
        assert str(tmp_path) in one_line(error)


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_files_are_refused_wherever_they_end(legacy: bool, tmp_path: Path):
    path = tmp_path / "w.pth"
    content = {f"layer{i}.weight": torch.randn(20, 20) for i in range(5)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for size in np.random.default_rng(0).integers(1, len(whole) - 100, 40):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError) as error:
            read_state_dict(path)
        one_line(error)


def test_damaged_pickles_never_escape_as_other_errors(tmp_path: Path):
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
    "content, what",
    [
        ({}, "holds a dict without tensors"),
        ([torch.zeros(1)], "holds a list without tensors"),
        (torch.zeros(3), "holds a Tensor without tensors"),
        ({"epoch_num": 3, "model_state_dict": {"a": 1}}, "'epoch_num' is int"),
        ({"state_dict": {}}, "'state_dict' is dict"),
        ({3: torch.zeros(1)}, "'3' is Tensor"),
    ],
)
def test_anything_but_tensors_by_name_is_refused(content: object, what: str, tmp_path: Path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=what) as error:
        read_state_dict(tmp_path / "w.pth")
    one_line(error)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_state_dicts_are_taken_out_of_what_trainers_save_around_them(wrapper: str, tmp_path: Path):
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


# --- safetensors -----------------------------------------------------------------------------------------------------


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
def test_weights_come_back_bit_for_bit(name: str, tmp_path: Path):
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
def test_cards_come_back_and_files_are_reproducible(card: dict[str, str], tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("cards")
    card = {key: value for key, value in card.items() if (key + value).isprintable()}
    write_weights(folder / "a.safetensors", {"a": torch.ones(3)}, card)
    write_weights(folder / "b.safetensors", {"a": torch.ones(3)}, dict(reversed(card.items())))
    assert read_card(folder / "a.safetensors") == card
    assert torch.equal(read_state_dict(folder / "a.safetensors")["a"], torch.ones(3))
    assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()


def test_the_library_of_safetensors_reads_what_is_written_and_the_other_way(tmp_path: Path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5)}
    write_weights(tmp_path / "ours.safetensors", tensors, {"method": "cosplace"})
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert file.metadata() == {"method": "cosplace"}
        assert all(torch.equal(file.get_tensor(key), value) for key, value in tensors.items())
    save_file({f"module.{key}": value for key, value in tensors.items()}, tmp_path / "theirs", {"x": "y"})
    found = read_state_dict(tmp_path / "theirs")  # told from its content: it has no suffix
    assert read_card(tmp_path / "theirs") == {"x": "y"}
    assert all(torch.equal(found[key], value) for key, value in tensors.items())


def test_what_was_read_does_not_change_with_the_file(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    write_weights(path, {"a": torch.ones(5000)})
    found = read_state_dict(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(found["a"], torch.ones(5000))


def test_a_torch_file_is_read_whatever_it_is_called(tmp_path: Path):
    for legacy in (False, True):
        torch.save({"a": torch.ones(2)}, tmp_path / "w.safetensors", _use_new_zipfile_serialization=not legacy)
        assert torch.equal(read_state_dict(tmp_path / "w.safetensors")["a"], torch.ones(2))
        assert read_card(tmp_path / "w.safetensors") == {}


def test_truncated_safetensors_are_refused_wherever_they_end(tmp_path: Path):
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
def test_damaged_safetensors_never_escape_as_other_errors(place: int, value: int, tmp_path_factory):
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
def test_foreign_headers_are_refused(header: bytes, tmp_path: Path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError) as error:
        read_state_dict(path)
    assert str(path) in one_line(error)


def test_a_header_that_claims_to_be_huge_is_refused(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    path.write_bytes((1 << 60).to_bytes(8, "little") + b"{" + bytes(100))
    with pytest.raises(CheckpointError, match="truncated or no safetensors"):
        read_card(path)
    with pytest.raises(CheckpointError, match="There is no file"):
        read_card(tmp_path / "absent.safetensors")


def test_a_write_that_fails_keeps_what_was_there(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    write_weights(path, {"a": torch.ones(2)})
    with pytest.raises(TypeError):
        write_weights(path, {"a": torch.zeros(2)}, {"a": object()})
    assert torch.equal(read_state_dict(path)["a"], torch.ones(2))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        write_weights(tmp_path / "file" / "w.pth", {"a": torch.ones(2)})
