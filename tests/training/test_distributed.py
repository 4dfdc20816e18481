"""Several processes compute what one computes: layers, losses, exchange.  See distributed_checks.py."""

import json
from pathlib import Path

import pytest

from cosplace.cli import main
from cosplace.cli.distillation import run_distill
from cosplace.cli.finetuning import run_finetune
from cosplace.config.distillation import DistillConfig
from cosplace.config.finetuning import FinetuneConfig
from cosplace.config.values import from_values
from cosplace.errors import ConfigError
from cosplace.training.processes import part
from cosplace.training.torchrun import Job as TorchrunJob
from cosplace.training.torchrun import find_run, record_job, torchrun_command, torchrun_job
from tests.synthetic_dataset import write_dataset
from tests.training.distributed_checks import CHECKS
from tests.training.jobs import run_job

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("distributed_checks.py")


@pytest.fixture(
    scope="module",
    params=[pytest.param(2, id="2 processes"), pytest.param(4, id="4 processes", marks=pytest.mark.long)],
)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checks")
    run_job([str(SCRIPT), str(folder / "results.json")], request.param, folder)
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", CHECKS)
def test_several_processes_do_as_one(results: dict[str, str], name: str) -> None:
    assert not results[name], results[name]


@pytest.mark.parametrize(("total", "world_size"), [(32, 4), (7, 4), (3, 4), (5, 1)])
def test_parts_follow_each_other_and_are_equal(total: int, world_size: int) -> None:
    parts = [part(total, rank, world_size) for rank in range(world_size)]
    assert [row for one in parts for row in one] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# --- the job ---------------------------------------------------------------------------------------------------------


def job(name: str = "a", *, is_named: bool = True, num_restarts: int = 0) -> TorchrunJob:
    return TorchrunJob(
        rank=0, world_size=4, local_rank=0, local_world_size=2, name=name, is_named=is_named, num_restarts=num_restarts
    )


def test_variables_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("RANK", "1")  # other launchers set this one too
    assert torchrun_job() is None
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "city")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "5")
    found = torchrun_job()
    assert found == TorchrunJob(
        rank=3, world_size=4, local_rank=1, local_world_size=2, name="city", is_named=True, num_restarts=5
    )
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # that of all jobs without --rdzv-id
    unnamed = torchrun_job()
    assert unnamed is not None
    assert not unnamed.is_named
    assert unnamed.name not in ("none", "")
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(ConfigError, match="WORLD_SIZE must be a number, got 'many'"):
        torchrun_job()


def test_commands_that_train_in_one_process_refuse_several(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "city")
    with pytest.raises(ConfigError, match="`cosplace finetune` trains in one process, and torchrun started 2"):
        run_finetune(from_values(FinetuneConfig, {"dataset": str(tmp_path), "model": "imagenet"}))
    with pytest.raises(ConfigError, match="`cosplace distill` trains in one process, and torchrun started 2"):
        run_distill(from_values(DistillConfig, {"photos": str(tmp_path), "teacher": "cosplace_resnet18_512"}), {})


def test_a_run_that_is_refused_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "city")
    dataset = write_dataset(tmp_path / "city", num_places=2)
    assert main(["train", f"--dataset_folder={dataset}", "--imagenet_weights=none", "--nested_dims=9999"]) == 2
    assert capsys.readouterr().err
    assert not list((tmp_path / "logs").rglob("*"))


def test_the_run_of_a_job_is_found_again(tmp_path: Path) -> None:
    assert find_run(tmp_path, job()) is None
    for folder, name in (("1", "a"), ("2", "b"), ("3", "a")):
        (tmp_path / folder).mkdir()
        record_job(tmp_path / folder, job(name))
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "torchrun.json").write_text("{")  # of a process that was killed
    assert find_run(tmp_path, job()) == tmp_path / "3"
    assert find_run(tmp_path, job("b")) == tmp_path / "2"
    assert find_run(tmp_path, job("c")) is None
    # A finished run is not continued by a new job that has the same name, but by a job that restarts at its end.
    (tmp_path / "3" / "results.json").write_text("{}")
    assert find_run(tmp_path, job()) == tmp_path / "1"
    assert find_run(tmp_path, job(num_restarts=1)) == tmp_path / "3"


def test_the_command_that_resumes_starts_as_many_processes() -> None:
    assert torchrun_command(job()) == ["torchrun", "--nnodes=2", "--nproc_per_node=2"]
