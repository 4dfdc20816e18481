"""Checks that each process of a job makes: `python distributed_checks.py FILE`.

Writes {name of a check: "", or what is wrong}, of all processes, to FILE.  The judge is always the same computation on
the whole batch, which each process makes too, with torch's own layers or those of one process.
"""

import copy
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from cosplace.errors import ConfigError
from cosplace.progress import StopRequest
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.distributed_network import distribute
from cosplace.training.processes import OtherProcessError, Processes, checksum, join
from cosplace.training.split_classifier import SplitClassifier, own_state, whole_states
from cosplace.training.synced_batch_norm import SyncedForward
from cosplace.training.torchrun import torchrun_job

CHECKS: dict[str, Callable[[Processes], None]] = {}
BATCH = 9  # cannot be divided by 2 or 4


def check(function: Callable[[Processes], None]) -> Callable[[Processes], None]:
    CHECKS[function.__name__] = function
    return function


def random(*shape: int, seed: int = 0) -> Tensor:
    """The same numbers in each process."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def own(processes: Processes, rows: Tensor) -> Tensor:
    """The own part of rows of all."""
    part = processes.part(len(rows))
    return rows[part.start : part.stop]


def near(found: Tensor | None, expected: Tensor | None, what: str, tolerance: float = 2e-5) -> None:
    if expected is None or found is None:
        assert found is expected, what
        return
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")


# --- batch normalization ---------------------------------------------------------------------------------------------


@check
def batch_norm(processes: Processes) -> None:
    for number, (kind, shape, options) in enumerate(
        (
            (nn.BatchNorm2d, (BATCH, 5, 4, 3), {}),
            (nn.BatchNorm2d, (BATCH, 5, 4, 3), {"momentum": None}),
            (nn.BatchNorm2d, (BATCH, 5, 4, 3), {"affine": False, "eps": 0.1}),
            (nn.BatchNorm2d, (BATCH, 5, 1, 1), {"track_running_stats": False}),
            (nn.BatchNorm1d, (BATCH, 7), {"momentum": 0.3}),
            (nn.BatchNorm1d, (BATCH, 7, 2), {}),
        )
    ):
        whole = kind(shape[1], **options)
        if whole.affine:
            with torch.no_grad():
                whole.weight.copy_(random(shape[1], seed=1))
                whole.bias.copy_(random(shape[1], seed=2))
        parts = copy.deepcopy(whole)
        parts.__dict__["forward"] = SyncedForward(parts, processes)
        for turn in range(2):  # the second one continues with the statistics of the first one
            inputs = (3 * random(*shape, seed=10 * number + turn) + 20).requires_grad_()  # a mean far from 0
            if len(shape) == 4 and turn:
                inputs = inputs.detach().to(memory_format=torch.channels_last).requires_grad_()
            slopes = random(*shape, seed=99)
            outputs = whole(inputs)
            outputs.backward(slopes)
            mine = own(processes, inputs.detach()).clone().requires_grad_()
            found = parts(mine)
            found.backward(own(processes, slopes))
            near(found, own(processes, outputs), f"{number} outputs")
            near(mine.grad, own(processes, inputs.grad), f"{number} gradient of the inputs", 1e-4)
            processes.sum_gradients(parts.parameters())
            for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
                near(other.grad, one.grad, f"{number} gradient of the {name}", 1e-4)
                one.grad = other.grad = None
            for (name, one), other in zip(whole.named_buffers(), parts.buffers(), strict=True):
                near(other, one, f"{number} {name}")
        near(parts.eval()(inputs), whole.eval()(inputs), f"{number} eval")


@check
def batch_norm_of_bfloat16(processes: Processes) -> None:
    norm = nn.BatchNorm2d(4)
    expected = norm(random(BATCH, 4, 3, 3).bfloat16())
    norm.__dict__["forward"] = SyncedForward(norm, processes)
    found = norm(own(processes, random(BATCH, 4, 3, 3).bfloat16()))
    assert found.dtype == expected.dtype == torch.bfloat16
    near(found.float(), own(processes, expected).float(), "outputs", 0.01)


# --- networks --------------------------------------------------------------------------------------------------------


class Centered(nn.Module):
    """A layer that compares the images of a batch, which cannot be split."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs - inputs.mean(0)


def small_network(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), *layers, nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


@check
def network_with_random_layers(processes: Processes) -> None:
    whole = small_network(nn.Dropout(0.4), StochasticDepth(0.5, "row"))
    parts = copy.deepcopy(whole)
    if processes.rank:  # those of the main process count
        with torch.no_grad():
            for parameter in parts.parameters():
                parameter.zero_()
    distribute(parts, processes, BATCH, 8)  # type: ignore[arg-type]
    images = random(BATCH, 3, 8, 8)
    for _ in range(2):
        torch.manual_seed(7)
        expected = whole(images)
        torch.manual_seed(7)
        found = parts(own(processes, images))
        near(found, own(processes, expected), "outputs")
        expected.square().sum().backward()
        found.square().sum().backward()
        processes.sum_gradients(parts.parameters())
        for (name, one), other in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
            near(other[1].grad, one.grad, f"gradient of {name}", 1e-4)
            one.grad = other[1].grad = None
    for one, other in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        near(other, one, "state")


@check
def networks_that_cannot_be_split_are_refused(processes: Processes) -> None:
    for layer, said in (
        (Centered(), "differ by"), (nn.RReLU(), "random numbers"), (nn.BatchNorm3d(2), "BatchNorm3d"),
    ):  # fmt: skip
        try:
            distribute(small_network(layer), processes, BATCH, 8)  # type: ignore[arg-type]
        except OtherProcessError:
            assert not processes.is_main
        except ConfigError as error:
            assert said in str(error), str(error)
            assert "Train in one process" in str(error), str(error)
        else:
            raise AssertionError(f"{layer} was not refused")


# --- classifiers -----------------------------------------------------------------------------------------------------


@check
def split_classifier(processes: Processes) -> None:
    whole = MarginCosineProduct(6, 11, generator=torch.Generator().manual_seed(3))
    parts = SplitClassifier(whole, processes)
    optimizers = [torch.optim.Adam(one.parameters(), lr=0.01) for one in (whole, parts)]
    labels = torch.tensor([0, 10, 3, 3, 7, 1, 0, 5, 9])
    for turn in range(4):
        inputs = [random(BATCH, 6, seed=turn).requires_grad_() for _ in range(2)]
        dim = 6 if turn < 3 else 2  # the first dimensions, as with --nested_dims
        losses = []
        for classifier, optimizer, one in zip((whole, parts), optimizers, inputs, strict=True):
            optimizer.zero_grad()
            losses.append(classifier.loss(one[:, :dim], labels))
            (3 * losses[-1]).backward()
            optimizer.step()
        near(losses[1], losses[0], "loss")
        near(inputs[1].grad, inputs[0].grad, "gradient of the descriptors")
        near(parts.weight.grad, whole.weight.grad[parts.own.start : parts.own.stop], "gradient of the classes")
    expected, expected_moments = whole.state_dict(), optimizers[0].state_dict()
    (found,), (moments,) = whole_states([parts], [optimizers[1]])
    if processes.is_main:
        near(found["weight"], expected["weight"], "weights of the checkpoint")
        assert moments is not None
        for name, value in expected_moments["state"][0].items():
            near(moments["state"][0][name], value, f"{name} of the checkpoint")
    # A checkpoint of one process, with other weights, restored in several.
    other = SplitClassifier(MarginCosineProduct(6, 11), processes)
    other.load_state_dict(own_state(expected, other))
    optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
    optimizer.load_state_dict(own_state(expected_moments, other))
    near(other.weight, own(processes, whole.weight), "restored weights", 0.0)
    (state,) = optimizer.state.values()
    near(state["exp_avg"], own(processes, expected_moments["state"][0]["exp_avg"]), "restored moments", 0.0)
    try:
        own_state(MarginCosineProduct(6, 12).state_dict(), other)
    except ValueError as error:
        assert "[12, 6]" in str(error), str(error)
    else:
        raise AssertionError("a classifier of other classes was accepted")


# --- exchange --------------------------------------------------------------------------------------------------------


@check
def rows_and_gradients(processes: Processes) -> None:
    rows = random(BATCH, 4)
    mine = own(processes, rows).clone().requires_grad_()
    gathered = processes.gather_rows(mine, BATCH)
    assert torch.equal(gathered, rows)
    (gathered * random(BATCH, 4, seed=1)).sum().backward()
    assert torch.equal(mine.grad, own(processes, random(BATCH, 4, seed=1)))
    collected = processes.collect_rows(own(processes, rows), BATCH)
    assert torch.equal(collected, rows) if processes.is_main else collected is None

    sizes = (3, 9 << 20, 2, 1)  # one is larger than a bucket
    tensors = [torch.zeros(size, requires_grad=True) for size in sizes]
    for tensor in tensors[:-1]:
        tensor.grad = torch.full_like(tensor, processes.rank + 1.0)
    processes.sum_gradients(tensors)
    total = processes.world_size * (processes.world_size + 1) / 2
    assert all(bool((tensor.grad == total).all()) for tensor in tensors[:-1] if tensor.grad is not None)
    assert tensors[-1].grad is None


@check
def values(processes: Processes) -> None:
    found = processes.gather({"rank": processes.rank, "text": "ä" * processes.rank})
    assert found == [{"rank": rank, "text": "ä" * rank} for rank in range(processes.world_size)], found
    assert processes.broadcast(f"from {processes.rank}") == "from 0"
    assert checksum([torch.tensor([1.0]), torch.tensor([2.0])]) != checksum([torch.tensor([2.0]), torch.tensor([1.0])])
    assert checksum([torch.tensor(1.0)]) != checksum([torch.tensor(1.0).nextafter(torch.tensor(2.0))])
    parts = [list(range(BATCH))[one.start : one.stop] for one in processes_parts(processes)]
    assert [row for one in parts for row in one] == list(range(BATCH))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def processes_parts(processes: Processes) -> list[range]:
    return [range(*one) for one in processes.gather([processes.part(BATCH).start, processes.part(BATCH).stop])]


@check
def errors_end_all_at_once(processes: Processes) -> None:
    for failing in range(processes.world_size):
        mine = ValueError("mine") if processes.rank >= failing else None  # of several, that of the lowest rank
        try:
            processes.agree(mine)
        except OtherProcessError as error:
            assert processes.rank != failing
            assert str(failing) in str(error)
        except ValueError:
            assert processes.rank == failing
        else:
            raise AssertionError("no error")
        assert processes.ended_together
    assert processes.agree(is_due=processes.rank > 0) is False
    assert processes.agree(is_due=processes.is_main) is True
    assert not processes.ended_together


@check
def a_signal_to_one_stops_all(processes: Processes) -> None:
    def progress(task: str, done: int, total: int, note: str = "", /) -> None:
        if processes.rank == processes.world_size - 1 and done == 2:
            raise StopRequest("stop", 15)

    report = processes.reporting(progress)
    report("task", 1, 3)
    processes.agree()
    report("task", 2, 3)
    try:
        processes.agree()
    except StopRequest as stop:
        assert stop.signal_number == 15
    else:
        raise AssertionError("not stopped")
    assert processes.ended_together
    processes._request = None


@check
def work_of_the_main_process(processes: Processes) -> None:
    result = processes.on_main(lambda: ["result"])
    assert result == (["result"] if processes.is_main else None)
    assert processes.main_first(lambda: processes.rank) == processes.rank

    def fail() -> None:
        raise ValueError("of the main process")

    try:
        processes.on_main(fail)
    except ValueError:
        assert processes.is_main
    except OtherProcessError:
        assert not processes.is_main
    else:
        raise AssertionError("no error")


def main(file: Path) -> None:
    job = torchrun_job()
    assert job is not None
    with join(job, "cpu", 120.0) as processes:
        results = {}
        for name, function in CHECKS.items():
            try:
                function(processes)
                problem = ""
            except Exception:
                problem = traceback.format_exc()
                sys.stderr.write(f"{name} {problem}\n")  # the others may be waiting in the check until the time-out
            results[name] = "\n".join(filter(None, processes.gather(problem)))
        if processes.is_main:
            file.write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
