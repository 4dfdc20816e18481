"""cosplace extract, and eval of its stores: processes of torchrun and of Slurm arrays, killed workers, messages."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cosplace.cli import main
from cosplace.config.extraction import StoreSettings
from cosplace.errors import CheckpointError
from cosplace.retrieval.shards import shard_name
from tests.assessment.test_provenance import SCHEMA, violations
from tests.retrieval.store_samples import contents, unit_rows, write_model, write_photos_folder, write_store
from tests.table_samples import write_named_dataset

NUM_PHOTOS = 26
ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--device=cpu", "--num_workers=0", "--shard_rows=5", "--infer_batch_size=4"]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.pth")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos_folder(tmp_path_factory.mktemp("photos"), NUM_PHOTOS).folder


def environment(**variables: object) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RANK", "WORLD_SIZE"))}
    more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""}
    return kept | more | {name: str(value) for name, value in variables.items()}


def start(*arguments: object, **variables: object) -> subprocess.Popen:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def torchrun(num_processes: int, *arguments: object) -> tuple[int, str, str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}", "-m", "cosplace"]
    process = start(*launcher, *arguments)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("num_photos", "rows"), [(1, 64), (4_096, 64), (4_500, 71), (262_145, 4_096), (41_000_000, 4_096)]
)
def test_few_photos_are_in_enough_shards_for_several_workers(num_photos: int, rows: int) -> None:
    assert StoreSettings().rows_of_shard(num_photos) == rows
    assert StoreSettings(shard_rows=5).rows_of_shard(num_photos) == 5


# --- extraction ------------------------------------------------------------------------------------------------------


def test_extract_status_verify(model: Path, photos: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["extract", str(photos), f"--model={model}", "--to=store", *QUICK]
    assert main(command) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("store: 26 of 26 photos (100%), 6 of 6 shards; 32 dimensions, float32, ")
    assert re.fullmatch(r"computed here: 26 photos in .* \([\d.]+ per second\)", out[1])
    before = contents(Path("store"))
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[1] == "nothing was left to compute"
    assert main(["extract", "--status", "--to=store", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["complete"], status["num_photos_finished"], status["num_shards"]) == (True, 26, 6)
    assert main(["extract", "--verify", "--to=store"]) == 0
    assert capsys.readouterr().out == "store: 6 shards compared with their checksums\n"

    # Without --shard_rows, it is that of the store.
    Path("store", shard_name(3)).unlink()
    assert main([word for word in command if "shard_rows" not in word]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("computed here: 5 photos")
    assert contents(Path("store")) == before

    damaged = bytearray(before[shard_name(2)])
    damaged[200] ^= 1
    Path("store", shard_name(2)).write_bytes(damaged)
    assert main(["extract", "--verify", "--to=store"]) == 2
    shown = capsys.readouterr()
    assert f"store/{shard_name(2)} has changed since it was written" in shown.out
    assert "1 damaged file of store removed. Run the same `cosplace extract` again" in shown.err
    assert main(["extract", "--status", "--to=store"]) == 0
    assert "21 of 26 photos (81%), 5 of 6 shards" in (out := capsys.readouterr().out)
    assert "no worker is active; run the same command again to continue" in out

    Path("store", shard_name(2)).write_bytes(damaged)
    assert main([*command, "--verify"]) == 0  # computes the damaged shard, and no other
    assert "computed here: 5 photos" in capsys.readouterr().out
    assert contents(Path("store")) == before


def test_a_refused_extraction_leaves_nothing(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(7):
        (texts / f"{number}.jpg").write_text("not a photo")
    words = [f"--model={model}", "--to=store", *QUICK]
    for _ in range(2):
        assert main(["extract", str(texts), *words]) == 2
        assert "0.jpg is not an image" in capsys.readouterr().err
        assert not Path("store").exists()

    def diverge(*_: object) -> None:
        raise CheckpointError("Descriptors are not finite.")

    with monkeypatch.context() as patch:
        patch.setattr("cosplace.retrieval.extraction._to_stored_dtype", diverge)
        assert main(["extract", str(photos), *words]) == 2
    assert not Path("store").exists()
    Path("store").mkdir()
    Path("store", "notes.txt").touch()
    assert main(["extract", str(texts), *words]) == 2
    assert [path.name for path in Path("store").iterdir()] == ["notes.txt"]
    assert main(["extract", str(photos), *words]) == 0


def test_a_failure_keeps_finished_shards(model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["extract", str(photos), f"--model={model}", "--to=store", *QUICK]
    calls = []

    def diverge(run, shard: range, descriptors):
        calls.append(shard)
        if len(calls) > 2:
            raise CheckpointError("Descriptors are not finite.")
        return descriptors

    with monkeypatch.context() as patch:
        patch.setattr("cosplace.retrieval.extraction._to_stored_dtype", diverge)
        assert main(words) == 2
    assert sum(path.name.startswith("descriptors-") for path in Path("store").iterdir()) == 2
    assert main(words) == 0


def test_photos_that_were_repaired(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images = write_photos_folder(tmp_path / "photos", 12)
    command = ["extract", str(images.folder), f"--model={model}", *QUICK]
    assert main([*command, "--to=expected"]) == 0
    good, status = images.path(7).read_bytes(), images.path(7).stat()
    images.path(7).write_bytes(good[:100])
    assert main([*command, "--to=store"]) == 0
    assert "1 photo could not be opened and was left out:" in capsys.readouterr().out
    assert main([*command, "--to=store"]) == 0
    assert "nothing was left to compute" in capsys.readouterr().out
    assert main([*command, "--to=store", "--retry_unreadable"]) == 0
    assert "computed here: 5 photos" in capsys.readouterr().out
    images.path(7).write_bytes(good)
    os.utime(images.path(7), ns=(status.st_atime_ns, status.st_mtime_ns))
    assert main([*command, "--to=store"]) == 0
    assert "computed here: 5 photos" in capsys.readouterr().out
    for number in range(3):
        assert Path("store", shard_name(number)).read_bytes() == Path("expected", shard_name(number)).read_bytes()
    assert main(["extract", "--verify", "--to=store"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to=s"], "DATASET is required"),
        (["photos", "--to=s"], "--model is required: a weights file, or a name from `cosplace zoo list`"),
        (["photos", "--model=x"], "--to is required"),
        (["nowhere", "--model=x", "--to=s"], "nowhere does not exist"),
        (["--to=nowhere", "--status"], "nowhere is not a store of descriptors. Create one with `cosplace extract`."),
        (["--to=nowhere", "--verify"], "nowhere is not a store of descriptors"),
        (["--to=s", "--status", "--verify"], "--status only prints"),
        (["photos", "--model=x", "--to=s", "--json"], "--json prints the result of --status or --verify"),
        (["photos", "--model=x", "--to=s", "--dtype=int4"], "--dtype must be float32, float16, int8 or binary"),
        (["photos", "--model=x", "--to=s", "--shard_rows=0"], "--shard_rows must be 1 or more, got 0"),
        (["photos", "--model=x", "--to=s", "--queries_folder=q"], "--queries_folder is for --part queries"),
        (["--to=xyz://bucket/store", "--status"], "Unknown storage 'xyz' (xyz://bucket/store)"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["extract", *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1 and shown.out == ""
    assert not list(Path().iterdir())


def test_help_imports_no_client() -> None:
    code = (
        "import sys; from cosplace.cli import main\n"
        "main(['extract', '--help']), main(['locate', '--help'])\n"
        "import cosplace.cli.extract, cosplace.cli.locate, cosplace.retrieval.store_extraction\n"
        "print([name for name in ('ray', 's3fs', 'boto3', 'obstore', 'fsspec.core') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    found = done.stdout.splitlines()[-1]
    assert found in ("[]", "['fsspec.core']")  # torch may import the latter


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_of_torchrun_and_of_a_slurm_array_write_the_files_of_one(model: Path, photos: Path) -> None:
    command = ["extract", photos, f"--model={model}", *QUICK]
    assert main([*map(str, command), "--to=alone"]) == 0
    code, out, err = torchrun(2, *command, "--to=torchrun")
    assert code == 0, err
    assert out.count("torchrun: 26 of 26 photos (100%)") == 1  # of the first rank
    assert contents(Path("torchrun")) == contents(Path("alone"))
    array = {"SLURM_ARRAY_TASK_COUNT": 2, "SLURM_ARRAY_TASK_MIN": 3}
    tasks = [start("-m", "cosplace", *command, "--to=slurm", SLURM_ARRAY_TASK_ID=3 + task, **array) for task in (0, 1)]
    for task in tasks:
        assert task.communicate() and task.returncode == 0
    assert contents(Path("slurm")) == contents(Path("alone"))


def listing(store: Path) -> frozenset[str]:
    return frozenset(path.name for path in store.iterdir()) if store.exists() else frozenset()


@pytest.mark.long
@pytest.mark.parametrize("kills", [3, 20])
def test_workers_that_are_killed_again_and_again(model: Path, tmp_path: Path, kills: int) -> None:
    """Three workers, of which a random one is killed at a random moment and replaced; the files are those of one."""
    photos = write_photos_folder(tmp_path / "photos", 200).folder
    command = ["extract", photos, f"--model={model}", *QUICK]
    assert main([*map(str, command), "--to=alone"]) == 0
    expected, moments, num_killed = contents(Path("alone")), random.Random(0), 0
    shards = [name for name in sorted(expected) if name.startswith("descriptors-")]

    def worker() -> subprocess.Popen:
        return start("-m", "cosplace", *command, "--to=store")

    workers = [worker() for _ in range(3)]
    while num_killed < kills:
        before = listing(Path("store"))
        while listing(Path("store")) == before and any(one.poll() is None for one in workers):
            time.sleep(0.02)  # until a worker has written something since the last one was killed
        time.sleep(moments.uniform(0, 0.3))
        number = moments.randrange(len(workers))
        workers[number].send_signal(signal.SIGKILL)
        workers[number].communicate()
        num_killed += workers[number].returncode == -signal.SIGKILL
        if len([name for name in listing(Path("store")) if name in expected]) > len(expected) // 2:
            for name in moments.sample(shards, len(shards) // 2):  # more work: files are lost
                Path("store", name).unlink(missing_ok=True)
        for number, one in enumerate(workers):
            if one.poll() is not None:
                one.communicate()
                workers[number] = worker()
    for one in workers:
        out, err = one.communicate()
        assert one.returncode == 0, out + err
    assert main([*map(str, command), "--to=store"]) == 0
    found = {name: content for name, content in contents(Path("store")).items() if not name.startswith(".")}
    assert found == expected


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """database, codes and queries of a dataset; and the dataset."""
    folder = tmp_path_factory.mktemp("stores")
    dataset = write_named_dataset(folder / "dataset", num_places=1) / "test"
    for to, part, dtype in (
        ("database", "database", "float32"), ("codes", "database", "int8"), ("queries", "queries", "float32")
    ):  # fmt: skip
        command = ["extract", dataset, f"--model={model}", f"--to={folder / to}", f"--part={part}", f"--dtype={dtype}"]
        assert main([*map(str, command), *QUICK]) == 0
    return folder


def evaluation(stores: Path, database: str = "database") -> list[str]:
    return ["eval", f"--database_store={stores / database}", f"--queries_store={stores / 'queries'}", "--device=cpu"]


def results(save_dir: str) -> dict:
    (path,) = Path("logs", save_dir).glob("*/results.json")
    return json.loads(path.read_text())


def same_results(first: dict, second: dict) -> bool:
    names = ("recalls", "intervals", "metrics")
    return all(first[name] == second[name] for name in names)


def test_eval_of_stores_is_eval_of_the_photos(stores: Path, model: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--recall_values", "1", "5", "--num_preds_to_save=0"]
    photos = ["eval", f"--test_set_folder={stores / 'dataset' / 'test'}", f"--model={model}", *QUICK[:2]]
    assert main([*photos, *options, "--infer_batch_size=4", "--save_dir=photos"]) == 0
    expected = capsys.readouterr().out.splitlines()
    assert main([*evaluation(stores), *options, "--save_dir=stores"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{stores / 'database'}: 24 photos, float32, 128 bytes per photo"
    assert shown[1] in expected  # recalls
    found = results("stores")
    assert same_results(found, results("photos"))
    assert list(violations(found["stores"], SCHEMA["properties"]["stores"])) == []
    assert found["stores"]["database"]["dtype"] == "float32"
    assert found["model"]["sha256"] == results("photos")["model"]["sha256"]
    assert main([*evaluation(stores, "codes"), *options, "--save_dir=codes"]) == 0
    assert "int8, 32 bytes per photo" in capsys.readouterr().out
    assert results("codes")["stores"]["database"]["bytes_per_photo"] == 32
    assert main(["runs", "logs"]) == 0
    assert main(["compare", *(str(path.parent) for path in sorted(Path("logs").glob("*/*/results.json")))]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_ranks_of_torchrun_find_what_one_process_finds(stores: Path, num_ranks: int) -> None:
    database = "codes" if num_ranks == 4 else "database"
    assert main([*evaluation(stores, database), "--save_dir=alone"]) == 0
    code, out, err = torchrun(num_ranks, *evaluation(stores, database), "--save_dir=ranks")
    assert code == 0, err
    assert out.count("R@1:") == 1
    assert same_results(results("ranks"), results("alone"))


@pytest.mark.slow
def test_ranks_with_different_settings_are_refused(stores: Path) -> None:
    """Two processes with other stores, as when machines are started by hand."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": 2}
    ranks = [
        start("-m", "cosplace", *evaluation(stores, database), RANK=rank, **common)
        for rank, database in enumerate(("database", "codes"))
    ]
    for rank, process in enumerate(ranks):
        _, err = process.communicate()
        assert process.returncode == 2, err
        assert "The ranks have different settings: database_store is " in err
        assert err.count("\n") == 1, rank
    assert not Path("logs").exists()


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--database_store=a"], "--database_store and --queries_store are used together. Add the other one."),
        (["--database_store=a", "--queries_store=b"], "a is not a store of descriptors"),
        (["--memory=1"], "--memory limits the search of a store. Add --database_store"),
        (["--database_store=a", "--queries_store=b", "--image_size=64"], "--image_size has no effect on stored"),
        (["--database_store=a", "--queries_store=b", "--model=m"], "has no effect on stored descriptors"),
    ],
)
def test_flags_of_eval_that_do_not_fit(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["eval", *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_too_little_memory_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_store(tmp_path / "database", unit_rows(60, 8))
    write_store(tmp_path / "queries", unit_rows(5, 8), offset_m=1, folder="/queries")
    command = ["eval", f"--database_store={tmp_path / 'database'}", f"--queries_store={tmp_path / 'queries'}"]
    assert main([*command, "--memory=0.01", "--device=cpu"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]  # after warnings
    assert error.startswith("error: --memory 0.01 is too small: this search needs ")
    suggested = re.search(r"--memory ([\d.]+)\.$", error)
    assert suggested is not None
    assert main([*command, f"--memory={suggested[1]}", "--device=cpu"]) == 0
    assert "R@1: 100.0" in capsys.readouterr().out
