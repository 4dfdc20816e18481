"""The losses of a distillation against their formulas, written with loops in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosplace.training.distillation_losses import cosine_loss, similarity_loss


def unit_rows(seed: int, count: int, dimension: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dimension))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def plain_cosine_loss(student: np.ndarray, target: np.ndarray) -> float:
    return sum(1 - float(np.dot(s, t)) for s, t in zip(student, target, strict=True)) / len(student)


def plain_similarity_loss(student: np.ndarray, teacher: np.ndarray) -> float:
    total, count = 0.0, 0
    for i in range(len(student)):
        for j in range(len(student)):
            if i != j:
                total += (float(np.dot(student[i], student[j])) - float(np.dot(teacher[i], teacher[j]))) ** 2
                count += 1
    return total / count


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 12), st.integers(1, 9), st.integers(1, 20))
def test_losses_are_their_formulas(seed: int, count: int, dimension: int, teacher_dimension: int) -> None:
    student, target = unit_rows(seed, count, dimension), unit_rows(seed + 1, count, dimension)
    teacher = unit_rows(seed + 2, count, teacher_dimension)
    found = cosine_loss(torch.from_numpy(student), torch.from_numpy(target)).item()
    assert found == pytest.approx(plain_cosine_loss(student, target), abs=1e-12)
    found = similarity_loss(torch.from_numpy(student), torch.from_numpy(teacher)).item()
    assert found == pytest.approx(plain_similarity_loss(student, teacher), abs=1e-12)


def test_equal_similarities_are_equal_distances() -> None:
    """A rotation changes all descriptors and no distance."""
    teacher = unit_rows(0, 8, 5)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))
    student, target = torch.from_numpy(teacher @ rotation), torch.from_numpy(teacher)
    assert similarity_loss(student, target).item() == pytest.approx(0, abs=1e-20)
    assert cosine_loss(student, target).item() > 0.1
    half_squared_distance = (student - target).square().sum(1).mean() / 2
    assert cosine_loss(student, target).item() == pytest.approx(half_squared_distance.item())


def test_gradients_are_those_of_finite_differences() -> None:
    student = torch.from_numpy(unit_rows(0, 4, 3)).requires_grad_()
    target, teacher = torch.from_numpy(unit_rows(1, 4, 3)), torch.from_numpy(unit_rows(2, 4, 6))
    assert torch.autograd.gradcheck(lambda one: cosine_loss(one, target), student)
    assert torch.autograd.gradcheck(lambda one: similarity_loss(one, teacher), student)


def test_one_photo_has_no_pairs() -> None:
    one = torch.tensor([[0.6, 0.8]])
    assert similarity_loss(one, torch.tensor([[1.0]])).item() == 0
