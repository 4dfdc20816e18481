"""Losses with which a student learns the descriptors of a teacher.  Pure functions.

Legend: B batch, d dimensions of the student, D of the teacher.  All descriptors have length 1.
"""

from torch import Tensor


def cosine_loss(student: Tensor, target: Tensor) -> Tensor:
    """How far the descriptors are from their targets: mean over i of 1 - s_i . t_i, a value () from 0 to 2.

    student, target: (B, d).  For unit vectors this is half the mean of |s_i - t_i|^2, the loss of a student that
    matches the outputs of its teacher (Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, equation
    1), here descriptors.
    """
    return (1 - (student * target).sum(dim=1)).mean()


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """How far the similarities of the photos are from the teacher's: a value ().

        1 / (B (B - 1)) * sum over i != j of (s_i . s_j - t_i . t_j)^2

    student: (B, d), teacher: (B, D); d and D may differ.  Tung and Mori, "Similarity-Preserving Knowledge
    Distillation", ICCV 2019, equation 4, without its normalization of the rows, because the diagonal is 1 already; and
    the pairs of Park et al., "Relational Knowledge Distillation", CVPR 2019, equation 4: for unit vectors, s_i . s_j =
    1 - |s_i - s_j|^2 / 2, so equal similarities are equal distances.
    """
    difference = student @ student.T - teacher @ teacher.T  # (B, B)
    difference = difference - difference.diagonal().diag()
    return difference.square().sum() / max(1, len(student) * (len(student) - 1))
