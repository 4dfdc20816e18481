"""The files of deploy/: each is read by its own program where that is installed, and fits to the others."""

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from cosplace.cli.commands import COSPLACE
from cosplace.cli.parser import leaf_commands, parse_words

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SCRIPTS = sorted(DEPLOY.glob("*.sh"))
COMMANDS = dict(leaf_commands(COSPLACE))


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"needs {program}")


def assert_valid_command(words: list[str]) -> None:
    """Parse a command line with the parser of the command; the files that it names need not exist."""
    length = 3 if f"cosplace {words[1]} {words[2]}" in COMMANDS else 2
    prog = " ".join(["cosplace", *words[1:length]])
    parse_words(COMMANDS[prog], words[length:], prog, COSPLACE)


# --- Dockerfile ------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Keyword and arguments of each instruction of the Dockerfile."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line.strip()]


def default_of(argument: str) -> str:
    (value,) = [text.partition("=")[2] for word, text in instructions() if word == "ARG" and text.startswith(argument)]
    return value


def run_instruction(number: int, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run an instruction RUN with programs that print their arguments."""
    for name in ("pip", "apt-get", "useradd", "chown", "rm", "mkdir"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (folder / name).chmod(0o755)
    script = [text for word, text in instructions() if word == "RUN"][number]
    return subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=False,
                          env={"PATH": f"{folder}:/usr/bin:/bin"} | variables)  # fmt: skip


def test_the_device_chooses_torch(tmp_path: Path) -> None:
    cpu = run_instruction(0, tmp_path, DEVICE="cpu").stdout
    cuda = run_instruction(0, tmp_path, DEVICE="cuda").stdout
    assert cpu.startswith("pip install") and "whl/cpu torch torchvision" in cpu
    assert cuda.strip() == "pip install --no-cache-dir --constraint constraints.txt torch torchvision"
    assert "gcc" in run_instruction(1, tmp_path, DEVICE="cuda").stdout
    assert run_instruction(1, tmp_path, DEVICE="cpu").stdout == ""


def test_an_unknown_device_ends_the_build(tmp_path: Path) -> None:
    done = run_instruction(0, tmp_path, DEVICE="gpu")
    assert done.returncode == 1 and done.stderr == "DEVICE must be cpu or cuda, got 'gpu'.\n" and not done.stdout


def test_what_is_installed(tmp_path: Path) -> None:
    done = run_instruction(2, tmp_path, EXTRAS="serve")
    assert "pip install --no-cache-dir --constraint constraints.txt .[serve]" in done.stdout and done.returncode == 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert default_of("DEVICE") == "cpu"
    assert "serve" in default_of("EXTRAS").split(",") and "serve" in project["optional-dependencies"]
    minimum = project["requires-python"].removeprefix(">=").split(".")
    assert [int(part) for part in default_of("PYTHON").split(".")] >= [int(part) for part in minimum]


def test_copied_files_exist_and_are_sent_to_the_build() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    sources = [source for word, text in instructions() if word == "COPY" for source in text.split()[:-1]]
    assert {"constraints.txt", "pyproject.toml", "cosplace", "synthcity"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists() and f"!{source}" in ignored, source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [project["project"]["readme"], *project["project"]["license-files"]]
    assert set(needed) <= set(sources)


@needs("hadolint")
def test_hadolint_accepts_the_dockerfile() -> None:
    done = subprocess.run(["hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# --- compose and nginx -----------------------------------------------------------------------------------------------


@pytest.fixture
def compose() -> dict:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def expanded(text: str) -> str:
    """Text with the defaults of its variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_services_refer_to_what_exists(compose: dict) -> None:
    services = compose["services"]
    assert set(services) == {"storage", "bucket", "build", "replica-1", "replica-2", "proxy"}
    for name, service in services.items():
        for other, condition in service.get("depends_on", {}).items():
            is_healthy = condition["condition"] == "service_healthy"
            assert other in services and ("healthcheck" in services[other] or not is_healthy), name
        for volume in service.get("volumes", []):
            source = expanded(volume).partition(":")[0]
            assert source in compose["volumes"] or source.startswith("./"), name
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert (DEPLOY / "nginx.conf").is_file() and "./nginx.conf:" in services["proxy"]["volumes"][0]
    assert [name for name, service in services.items() if "ports" in service] == ["proxy"]  # nothing else is reachable


def test_the_commands_of_services_are_valid(compose: dict) -> None:
    for name in ("build", "replica-1", "replica-2"):
        assert_valid_command(["cosplace", *shlex.split(expanded(compose["services"][name]["command"]))])
    replicas = [compose["services"][f"replica-{number}"] for number in (1, 2)]
    assert replicas[0] == replicas[1]
    built = shlex.split(compose["services"]["build"]["command"])
    served = shlex.split(replicas[0]["command"])
    assert built[built.index("--to") + 1] == served[served.index("--index") + 1]


def test_the_proxy_knows_the_replicas_and_their_limits(compose: dict) -> None:
    from cosplace.config.server import ServerOptions
    from cosplace.server import ServerSettings

    text = (DEPLOY / "nginx.conf").read_text()
    served = shlex.split(compose["services"]["replica-1"]["command"])
    port = served[served.index("--port") + 1]
    names = sorted(name for name in compose["services"] if name.startswith("replica"))
    assert re.findall(r"^ *server (\S+) max_fails", text, re.MULTILINE) == [f"{name}:{port}" for name in names]
    (listened,) = re.findall(r"listen (\d+);", text)
    assert compose["services"]["proxy"]["ports"][0].endswith(f":{listened}")
    (largest,) = re.findall(r"client_max_body_size (\d+)m;", text)
    assert int(largest) * 2**20 >= ServerSettings().max_body_bytes > (int(largest) - 2) * 2**20
    (answered,) = re.findall(r"proxy_read_timeout (\d+)s;", text)
    assert int(answered) > ServerOptions().time_limit_s


def compose_program() -> list[str] | None:
    """Docker Compose, version 2 or newer: the plugin of docker, or a program of its own."""
    for words in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(words[0]):
            done = subprocess.run([*words, "version", "--short"], capture_output=True, text=True, check=False)
            if done.returncode == 0 and int(done.stdout.strip().removeprefix("v").partition(".")[0]) >= 2:
                return words
    return None


def test_docker_compose_accepts_the_file(compose: dict) -> None:
    program = compose_program()
    if program is None:
        pytest.skip("needs Docker Compose 2")
    command = [*program, "--file", str(DEPLOY / "compose.yaml"), "--profile", "build", "config", "--format", "json"]
    keys = {"ACCESS_KEY": "key", "SECRET_KEY": "secret"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | keys)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["services"]
    assert set(found) == set(compose["services"])
    assert found["build"]["environment"]["AWS_SECRET_ACCESS_KEY"] == "secret"
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          env=os.environ | {"ACCESS_KEY": "", "SECRET_KEY": ""})  # fmt: skip
    assert done.returncode and "set ACCESS_KEY and SECRET_KEY" in done.stderr


# --- Slurm scripts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_can_be_parsed_and_explains_itself(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    assert os.access(path, os.X_OK)
    done = subprocess.run([path], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage: sbatch ")
    assert re.search(r"^#SBATCH --time=", path.read_text(), re.MULTILINE)


@needs("shellcheck")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_accepts_a_script(path: Path) -> None:
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
