"""The command line: help, mistakes, suggestions, output, and the paper's commands from end to end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from cosplace.cli import console, main
from cosplace.cli.commands import COSPLACE
from cosplace.cli.console import Bars, log_to_terminal
from cosplace.cli.parser import parse_words
from cosplace.errors import ConfigError
from tests.synthetic_dataset import write_dataset, write_place

ROOT = Path(__file__).resolve().parents[2]
NETWORK = ["--backbone=resnet18-small", "--fc_output_dim=16"]
TESTING = ["--image_size=32", "--resize_test_imgs", "--num_workers=0", "--device=cpu"]
EVALUATION = [*NETWORK, *TESTING]
QUICK = [
    *EVALUATION, "--N=1", "--L=1", "--groups_num=1", "--min_images_per_class=4",
    "--batch_size=4", "--epochs_num=1", "--iterations_per_epoch=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def run(*arguments: object) -> tuple[int, list[Path]]:
    """Exit code, and what the command left in the current folder."""
    code = main([str(argument) for argument in arguments])
    return code, sorted(Path().rglob("*"))


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from cosplace.cli import main\n"
        "main(['train', '--help'])\n"
        "print('torch' in sys.modules, 'cosplace.cli.locate' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
    assert "--iterations_per_epoch" in done.stdout


def test_python_m_and_the_scripts_are_the_same_program() -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    texts = []
    for start in (["-m", "cosplace", "train"], [str(ROOT / "train.py")]):
        done = subprocess.run(
            [sys.executable, *start, "--help"], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
        )
        texts.append(done.stdout[done.stdout.index("Train a CosPlace model") :])
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("words", "code"), [([], 2), (["--help"], 0), (["index"], 2), (["index", "-h"], 0)])
def test_a_command_with_actions_prints_them(words: list[str], code: int, capsys: pytest.CaptureFixture) -> None:
    assert main(words) == code
    out, err = capsys.readouterr()
    assert err == ""
    for name in ("build", "calibrate") if words[:1] == ["index"] else ("train", "locate"):
        assert f"\n  {name} " in out


def test_version(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("cosplace 0.")


# --- mistakes: one line, exit code 2, nothing left behind ------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "--dataset_folder is required"),
        (["eval", "--queries_folder", "q"], "For two folders of photos, use --database_folder and --queries_folder."),
        (["train", "--dataset_folder", "nowhere"], "nowhere/train does not exist"),
        (["eval", "--dataset_folder", "nowhere"], "nowhere/test does not exist"),
        (["groups", "nowhere"], "nowhere does not exist"),
        (["groups"], "FOLDER is required (training photos"),
        (["train", "--backbone", "resnet19"], "Did you mean ResNet18"),
        (["train", "--batch_size", "0", "--dataset_folder", "x"], "--batch_size must be 2 or more, got 0"),
        (["train", "--batch_size", "many"], "--batch_size must be a whole number, got 'many'"),
        (["train", "--batch_size", "1.5e0"], "--batch_size must be a whole number, got '1.5e0'"),
        (["plan", "--photos", "1e8", "--exact_rows", "1e999"], "--exact_rows must be a whole number, got '1e999'"),
        (["train", "--batch_size"], "--batch_size needs a value"),
        (["train", "--use_amp16=yes"], "--use_amp16 takes no value, got 'yes'"),
        (["train", "--re", "x"], "--re could match --resume_train"),
        (["train", "somewhere"], "Unexpected argument 'somewhere'. Name a dataset as --dataset_folder somewhere."),
        (["train", "--device", "gpu"], "Unknown device 'gpu'"),
        (["eval", "--recall_values", "0", "--dataset_folder", "x"], "--recall_values must be 1 or more, got 0"),
        (["train", "--resume_train", "gone.pth"], "gone.pth does not exist"),
        (["index", "build", "photos"], "--model is required"),
        (["groups", f"{__file__}/photos"], f"{__file__} is a file, not a folder"),
        (["calibrate", "x"], "Unknown command 'calibrate'. Did you mean `cosplace index calibrate`?"),
        (["verify"], "Did you mean `cosplace zoo verify` or `cosplace index verify`?"),
        (["audit", "nowhere"], "nowhere is not a folder. Use the folder of a run"),
        (["import", __file__, "--to", "x", "--crs", "99999999"], "--crs: 99999999 is not a known coordinate system"),
        (["import", __file__, "--to", "x", "--column", "foo=bar"], "--column must be FIELD=NAME, got 'foo=bar'"),
        (["import", __file__, "--to", "x", "--origin", "north"], "--origin must be LAT,LON"),
        (["dataset", "export", "x", "--to", "y", "--format", "geojson", "--link"], "--link has an effect only with"),
        (["locate", "x.jpg", "--index", "i", "--precision", "3"], "--precision must be above 0 and up to 1, got 3"),
        (
            ["index", "--model", "x"],
            "Choose an action before --model: build, add, sync, remove, info, verify, compact, calibrate",
        ),
        (["eval", "--model", "a", "--resume_model", "b"], "--resume_model b contradicts --model a"),
        (["xyzzy"], "Unknown command 'xyzzy'. See `cosplace --help`."),
        (["--model", "x"], "Choose a command before --model. See `cosplace --help`."),
        (["index", "xyzzy"], "Unknown action 'xyzzy'. Choose from build, add, sync, remove, info, verify, compact"),
        (["panoramas", "x", "--to", "y", "--size", "640x480"], "got '640x480'. Separate numbers with spaces."),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    code, left = run(*arguments)
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert left == []


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["trian"], "Did you mean `train`?"),
        (["index", "bild"], "Did you mean `build`?"),
        (["train", "--itertions_per_epoch", "5"], "Did you mean --iterations_per_epoch?"),
        (["train", "--image-size", "5"], "Unknown flag --image-size. Did you mean --image_size?"),
        (["train", "--learning_rate", "5"], "Did you mean --lr?"),
        (["train", "--num_epochs", "5"], "Did you mean --epochs_num?"),
        (["index", "build", "x", "--modle", "y"], "Did you mean --model?"),
        (["eval", "--N", "5"], "--N belongs to `cosplace train` and `cosplace groups`, not to `cosplace eval`"),
        (["train", "--model", "x"], "Did you mean --resume_model?"),
        (["reproduce", "--test_set_folder", "x"], "Give the folder without a flag: `cosplace reproduce DATASET`"),
        (["validate", "--dataset_folder", "x"], "Give the folder without a flag: `cosplace validate DATASET`"),
        (["locate", "a.jpg", "--tiles", "x"], "--tiles belongs to `cosplace serve`"),
        (["index", "remove", "i", "7", "--dry_run"], "--dry_run belongs to `cosplace index sync`, `cosplace train`"),
        (["index", "remove", "i", "7", "--dry-run"], "--dry-run belongs to `cosplace index sync`, `cosplace train`"),
    ],
)
def test_misspelled_words_get_a_suggestion(arguments: list[str], suggestion: str, capsys) -> None:
    assert run(*arguments)[0] == 2
    assert suggestion in capsys.readouterr().err


def test_whole_numbers_may_have_an_exponent() -> None:
    words = ["--photos", "1e9", "--exact_rows", "1.5e7", "--shard_rows", "4_096"]
    config, _ = parse_words(COSPLACE.find_action("plan"), words, "cosplace plan", COSPLACE)
    assert (config.exact_rows, config.shard_rows) == (15_000_000, 4096) and isinstance(config.exact_rows, int)


def test_positional_arguments_may_stand_anywhere() -> None:
    add = COSPLACE.find_action("index").find_action("add")
    for words in (
        ["i", "photos", "--device", "cpu"], ["i", "--device", "cpu", "photos"], ["--device=cpu", "--", "i", "photos"],
    ):  # fmt: skip
        config, given = parse_words(add, words, "cosplace index add", COSPLACE)
        assert (config.index, config.photos, config.device.device) == ("i", Path("photos"), "cpu")
        assert set(given) == {"index", "photos", "device"}


def test_mistakes_in_the_data_are_one_line(dataset_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def rejected(message: str, *arguments: object) -> None:
        code, left = run(*arguments)
        error = capsys.readouterr().err.splitlines()[-1]
        assert code == 2
        assert error.startswith("error: ")
        assert message in error
        assert not [path for path in left if path.suffix == ".pth"]

    def weights(content: object, name: str) -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    empty = tmp_path / "empty"
    empty.mkdir()
    rejected("has no photos", "groups", empty)
    write_place(tmp_path / "few", 0, 0)
    rejected(
        "do not train on these photos",
        "train",
        f"--dataset_folder={dataset_folder}",
        f"--train_set_folder={tmp_path / 'few'}",
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "few" / "holiday.jpg")
    rejected("holiday.jpg: field 1 of the file name (utm_east)", "groups", tmp_path / "few")
    rejected("Recall@50 needs 50", "eval", f"--dataset_folder={dataset_folder}", *NETWORK, "--recall_values", 50)
    (tmp_path / "cut.pth").write_bytes(weights({"a": torch.zeros(1000)}, "whole.pth").read_bytes()[:700])
    for bad in (tmp_path / "cut.pth", tmp_path / "whole.pth", tmp_path / "few" / "holiday.jpg", tmp_path / "gone"):
        rejected(str(bad), "eval", f"--dataset_folder={dataset_folder}", "--resume_model", bad)
    rejected("v2", "eval", f"--dataset_folder={dataset_folder}", "--backbone=vgg16", "--imagenet_weights=v2")
    if not torch.cuda.is_available():
        rejected("--device cpu", "eval", f"--dataset_folder={dataset_folder}", *NETWORK, "--device=cuda")


@pytest.mark.parametrize(
    "arguments",
    [
        ["validate", "{}"], ["groups", "{}"], ["eval", "--test_set_folder", "{}"], ["eval", "--dataset_folder", "{}"],
        ["train", "--dataset_folder", "{}"], ["train", "--resume_train", "{}"], ["index", "info", "{}"],
        ["index", "verify", "{}"], ["index", "build", "{}", "--model", "x", "--to", "x"],
        ["locate", "{}", "--index", "x"],
        ["locate", "x.jpg", "--index", "{}"], ["serve", "--index", "{}"],
    ],
)  # fmt: skip
def test_a_path_that_the_system_refuses_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    path = "x" * 300  # longer than a name may be
    assert main([word.format(path) for word in arguments]) == 2
    assert re.fullmatch(r"(.*\n)?error: .*\n", capsys.readouterr().err)


def test_unreadable_photos_stop_an_evaluation_unless_skipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_dataset(tmp_path / "data", num_places=1)
    bad = sorted((folder / "test" / "database").iterdir())[3]
    bad.write_bytes(b"")
    arguments = ["eval", f"--dataset_folder={folder}", *NETWORK, "--device=cpu", "--num_workers=0"]
    assert run(*arguments)[0] == 2
    error = capsys.readouterr().err
    assert bad.name in error
    assert "--skip_unreadable" in error
    assert run(*arguments, "--skip_unreadable")[0] == 0
    assert f"1 photo could not be opened ({bad.name})" in capsys.readouterr().err
    assert "1 photo could not be opened" in next(Path("logs").rglob("report.html")).read_text()


def test_queries_without_positives_are_counted_in_the_terminal(
    dataset_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [*NETWORK, "--device=cpu", "--num_workers=0", "--recall_values=1", "--positive_dist_threshold=0.001"]
    assert run("eval", f"--dataset_folder={dataset_folder}", *words)[0] == 0
    error = capsys.readouterr().err
    assert error.count("queries have no positive and count as misses") == 1


# --- the paper's commands --------------------------------------------------------------------------------------------


def test_groups_as_text_and_json(dataset_folder: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["--N=2", "--L=1", "--groups_num=2", "--min_images_per_class=3"]
    assert run("groups", dataset_folder / "train", *flags, "--json")[0] == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert groups == [{"num_classes": 12, "num_images": 72}, {"num_classes": 12, "num_images": 72}]
    assert run("groups", dataset_folder / "train", *flags)[0] == 0
    text = capsys.readouterr().out
    assert "144 images, 144 in classes with at least 3 images" in text
    assert "hundreds of classes give better results" in text


def test_refused_groups_end_with_an_error_and_flags_that_work(
    dataset_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run("groups", dataset_folder / "train", "--no_cache")[0] == 2
    out, err = capsys.readouterr()
    assert "144 images, 0 in classes with at least 10 images" in out
    flags = re.search(r"These settings work: `(.*?)`", err)[1].split()
    assert run("groups", dataset_folder / "train", *flags)[0] == 0
    assert "These settings work" not in capsys.readouterr().out
    assert run("groups", dataset_folder / "train", "--json")[0] == 2
    content = json.loads(capsys.readouterr().out)
    assert "".join(f"--{name} {value} " for name, value in content["advised_parameters"].items()).split() == flags


def test_groups_warn_about_uneven_ranges_of_headings(dataset_folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("groups", dataset_folder / "train", "--alpha=40", "--N=1", "--groups_num=1", "--M=20")[0] == 0
    assert "Use `--alpha 36` or `--alpha 45` or `--L 3`" in capsys.readouterr().err


def test_eval_finds_the_splits_of_a_dataset_and_leaves_out_recalls(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for place in (1, 9):
        write_place(tmp_path / "pitts" / "images" / "test" / "database", place, 0)
    write_place(tmp_path / "pitts" / "images" / "test" / "queries", 1, 1)
    assert run("eval", f"--dataset_folder={tmp_path / 'pitts'}", *NETWORK, "--device=cpu", "--num_workers=0")[0] == 0
    out, err = capsys.readouterr()
    assert re.match(r"R@1: (100|0)\.0\n", out)
    assert "Recall@5, Recall@10 and Recall@20 are left out: the database has only 2 images." in err
    report = next(Path("logs").rglob("report.html"))
    assert "are left out: the database has only 2 images" in report.read_text()
    assert json.loads((report.parent / "results.json").read_text())["recalls"].keys() == {"1"}


def test_eval_without_report(dataset_folder: Path, capsys: pytest.CaptureFixture) -> None:
    evaluation = ["eval", f"--dataset_folder={dataset_folder}", *NETWORK, *TESTING]
    assert run(*evaluation, "--save_dir=with")[0] == 0
    *figures, written = capsys.readouterr().out.splitlines()
    assert written == f"report: {next(Path('logs/with').iterdir()) / 'report.html'}"
    assert run(*evaluation, "--save_dir=without", "--no_report")[0] == 0
    folder = next(Path("logs/without").iterdir())
    assert capsys.readouterr().out.splitlines() == [*figures, f"results: {folder / 'results.json'}"]
    assert (folder / "queries.parquet").exists() and not (folder / "report.html").exists()


def test_train_then_eval_gives_the_same_recalls(dataset_folder: Path, capsys: pytest.CaptureFixture) -> None:
    code, _ = run("train", f"--dataset_folder={dataset_folder}", *QUICK, "--save_dir=mine", "--num_preds_to_save=2")
    assert code == 0
    printed = capsys.readouterr().out.splitlines()
    folder = next(Path("logs/mine").iterdir())
    left = {path.name for path in folder.iterdir()}
    assert {"best_model.pth", "last_checkpoint.pth", "config.json", "metrics.jsonl", "info.log", "debug.log"} <= left
    assert {"report.html", "results.json", "preds"} <= left
    assert any(name.startswith("events.out.tfevents") for name in left)
    assert "group 0: 24 classes, 144 images" in (folder / "info.log").read_text()

    # Backbone and dimension are read from the weights.
    model = folder / "best_model.pth"
    evaluation = [
        "eval",
        f"--dataset_folder={dataset_folder}",
        f"--resume_model={model}",
        *TESTING,
        "--save_dir=evaluated",
    ]
    assert run(*evaluation)[0] == 0
    assert capsys.readouterr().out.splitlines()[0] == printed[0]
    results = json.loads(next(Path("logs/evaluated").rglob("results.json")).read_text())
    assert results["recalls"] == json.loads((folder / "results.json").read_text())["recalls"]
    assert (results["num_database"], results["num_queries"]) == (24, 12)

    assert run(*evaluation, "--backbone=ResNet50")[0] == 2
    assert "contradicts" in capsys.readouterr().err
    assert run(*evaluation, "--fc_output_dim=16")[0] == 0


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_dry_run_prints_estimates_and_writes_nothing(
    dataset_folder: Path, capsys: pytest.CaptureFixture, command: str
) -> None:
    flags = QUICK if command == "train" else EVALUATION
    code, left = run(command, f"--dataset_folder={dataset_folder}", *flags, "--dry_run")
    assert (code, left) == (0, [])
    printed = capsys.readouterr().out
    assert all(f"\n{word}: " in f"\n{printed}" for word in ("time", "memory", "disk"))


def test_old_spellings_and_layouts(
    dataset_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("SF_XL_PROCESSED_FOLDER", str(dataset_folder))
    words = [*QUICK, "--exp_name=old", "--back=RESNET18_SMALL"]
    config, _ = parse_words(COSPLACE.find_action("train"), words, "cosplace train", COSPLACE)
    assert (config.running.save_dir, config.model.backbone) == ("old", "ResNet18_Small")
    words = [*TESTING, "--fc_output_dim=16", "--back=RESNET18_SMALL", "--queries_folder=queries_v1"]
    assert run("eval", *words, "--exp_name", "old")[0] == 0
    assert len(list(Path("logs/old").iterdir())) == 1


def test_descriptors_are_stored_and_used_again(dataset_folder: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["eval", f"--dataset_folder={dataset_folder}", *EVALUATION, "--descriptors_folder=stored"]
    assert run(*arguments)[0] == 0
    first = capsys.readouterr().out.splitlines()[0]
    shards = {path: path.stat().st_mtime_ns for path in Path("stored").rglob("*.npy")}
    assert shards
    assert run(*arguments)[0] == 0
    assert capsys.readouterr().out.splitlines()[0] == first
    assert shards == {path: path.stat().st_mtime_ns for path in Path("stored").rglob("*.npy")}
    assert run(*arguments, "--seed=1")[0] == 2  # other random weights


@pytest.mark.slow
def test_reference_recall_of_a_random_network_on_real_photos(real_photos_folder: Path, capsys) -> None:
    arguments = ["--imagenet_weights=none", "--image_size=256", "--resize_test_imgs", "--device=cpu", "--no_report"]
    assert run("eval", f"--dataset_folder={real_photos_folder}", *arguments)[0] == 0
    recall1 = float(capsys.readouterr().out.split("R@1: ")[1].split(",")[0])
    assert 20 <= recall1 <= 34


# --- progress and interruptions --------------------------------------------------------------------------------------


def test_a_bar_is_cleared_before_an_error_is_printed(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bars = Bars()
    with pytest.raises(ConfigError), log_to_terminal():
        bars("training", 1, 5)
        raise ConfigError("stopped")
    shown = capsys.readouterr().err
    assert "training" in shown
    assert shown.endswith("\r")
    assert shown.split("\r")[-2].isspace()


@pytest.mark.parametrize("terminal", ["", "dumb"])  # a dumb one cannot clear a line
def test_without_a_terminal_progress_is_a_line_per_minute(
    terminal: str, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: bool(terminal))
    monkeypatch.setenv("TERM", terminal)
    bars = Bars()
    for done in range(1, 1001):  # one item per second
        bars(f"epoch {done // 30}", done, 10_000, "loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 16
    assert lines[0].endswith("epoch 2: 60 of 10,000, loss 0.5")


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """The handlers of a program in the foreground: a shell starts programs in the background without Ctrl+C."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_signals")
def test_city_renders_the_numbers_of_images_that_are_asked_for(monkeypatch, tmp_path: Path, capsys) -> None:
    pytest.importorskip("numba", reason="rendering the city needs numba")
    asked = []

    from synthcity.capture import CitySummary

    def build(folder: Path, settings, _progress) -> CitySummary:
        asked.append((folder, settings.images, settings.database_images, settings.num_queries))
        return CitySummary(folder=folder, counts={"train": 1}, num_written=1, num_found=0)

    monkeypatch.setattr("synthcity.capture.build_city", build)
    city = tmp_path / "town"
    assert main(["city", str(city), "--images", "24", "--database_images", "36", "--num_queries", "5"]) == 0
    assert asked == [(city, 24, 36, 5)]
    assert main(["city", str(city), "--database_images", "0"]) == 2
    assert "database_images must be a whole number from 1" in capsys.readouterr().err


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")]
)
@pytest.mark.parametrize(
    ("words", "function", "advice"),
    [
        (("city", "town"), "synthcity.capture.build_city", " Run the same command again to continue."),
        (("demo",), "cosplace.demo.train_on_city", " Run the same command again: .* training from the beginning."),
        (("groups", "photos"), "cosplace.training.groups.training_photos", ""),
    ],
)
def test_a_signal_ends_a_command_with_one_line(
    words: tuple[str, ...], function: str, advice: str, number: int, code: int, word: str, monkeypatch, capsys
) -> None:
    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        pytest.fail("the command went on")

    monkeypatch.setattr(function, stop)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert main(words) == code
    assert re.fullmatch(rf"{word}\.{advice}\n", capsys.readouterr().err)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
def test_an_interrupted_index_says_how_to_continue(dataset_folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("cosplace.cli.index._load_model", lambda *_: None)
    monkeypatch.setattr("cosplace.cli.index._size_note", lambda *_: "")
    stop = partial(os.kill, os.getpid(), signal.SIGINT)
    monkeypatch.setattr("cosplace.index.building.build_index", lambda *_, **__: stop())
    assert main(["index", "build", str(dataset_folder / "train"), "--model", "m.pth", "--to", "city"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "Interrupted. Run the same command again to continue."


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
def test_a_second_signal_ends_a_command_that_does_not_stop(monkeypatch) -> None:
    """A signal that follows at once is the same request: schedulers send it to a process and to its group."""
    ended: list[int] = []
    clock = iter([100.0, 100.5, 103.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    kill = os.kill
    with pytest.raises(console.Interruption), console.end_on_signals():
        try:
            kill(os.getpid(), signal.SIGTERM)
        finally:
            kill(os.getpid(), signal.SIGTERM)
            assert not ended
            monkeypatch.setattr(os, "kill", lambda _, number: ended.append(number))
            signal.raise_signal(signal.SIGTERM)
            assert ended == [signal.SIGTERM]
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
def test_a_signal_during_a_finalizer_or_compiled_code_is_not_lost(monkeypatch, capsys) -> None:
    """Python ignores exceptions in finalizers; compiled code may replace them."""

    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    def stop(*_: object, **__: object) -> None:
        Finalized()
        time.sleep(20)
        pytest.fail("the command went on")

    def replace_exception(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)
        except KeyboardInterrupt:
            raise ValueError("a step failed") from None

    for function in (stop, replace_exception):
        monkeypatch.setattr("cosplace.training.groups.training_photos", function)
        assert main(["groups", "photos"]) == 143
        assert capsys.readouterr().err == "Terminated.\n"


def test_an_interrupted_training_prints_how_to_resume(dataset_folder: Path, monkeypatch, capsys) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cosplace.training.loop.train_epoch", stop)
    monkeypatch.setattr(sys, "argv", ["cosplace"])  # else that of pytest, or of python -m pytest
    assert run("train", f"--dataset_folder={dataset_folder}", *QUICK)[0] == 130
    folder = next(Path("logs/default").iterdir())
    assert (folder / "last_checkpoint.pth").is_file()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"`cosplace train --resume_train {folder}`")
