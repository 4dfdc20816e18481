"""A classifier split by classes over processes, each of which has some rows of its weights and of Adam's moments.

As partial FC with all classes (An et al., "Partial FC", ICCV workshops 2021), in two exchanges: of the log-sums of the
parts and the logits of the true classes, (K + 1) x B numbers, and of the gradient of the descriptors, B x D numbers.
The loss is that of the whole classifier (`cosface`).  Checkpoints hold the whole classifier, so that a run can continue
with another number of processes.  Legend: B batch, C own classes, D descriptor dimension, K processes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from cosplace.device import at_least_float32
from cosplace.errors import ConfigError
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.cosface_gradient import NORM_EPS, class_logits, gradients_of_product
from cosplace.training.processes import Processes


class SplitClassifier(MarginCosineProduct):
    """The own classes of a classifier; `weight` is (C, D).  whole: the classifier that is split."""

    def __init__(self, whole: MarginCosineProduct, processes: Processes) -> None:
        nn.Module.__init__(self)
        self.processes = processes
        self.total = whole.out_features  # classes of all processes
        self.own = processes.part(self.total)
        self.in_features, self.out_features, self.s, self.m = whole.in_features, len(self.own), whole.s, whole.m
        self.weight = nn.Parameter(whole.weight.detach()[self.own.start : self.own.stop].clone())

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Not possible: no process has all logits."""
        raise ConfigError("A classifier that is split over processes has no logits. Use its loss.")

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy () of descriptors (B, D) and labels (B,) of the whole batch, the same in each process."""
        inputs, weight = at_least_float32(inputs), at_least_float32(self._weight_of(inputs))
        return _SplitLoss.apply(inputs, weight, labels, self.s, self.m, self.own.start, self.processes)


class _SplitLoss(Function):
    """`cosface_gradient` with the sums over classes taken over all processes.

    If a number is not finite, log-sums or gradients are not finite in any process; so all of them skip a step of mixed
    precision together.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes arguments by position
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        labels: Tensor,
        s: float,
        m: float,
        first: int,
        processes: Processes,
    ) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            input_norms = torch.linalg.vector_norm(inputs, dim=1, keepdim=True)  # (B, 1)
            input_scales = s / input_norms.clamp(min=NORM_EPS)
            scaled = inputs * input_scales  # (B, D)
            logits, norms = class_logits(scaled, weight)  # (B, C), (C,)
            divisors = norms.clamp(min=NORM_EPS)

            # Without waiting for the device to tell which labels are own ones: others use column 0, with weight 0.
            columns = labels - first
            is_own = (columns >= 0) & (columns < len(weight))  # (B,)
            index = torch.where(is_own, columns, 0).unsqueeze(1)  # (B, 1)
            is_own = is_own.unsqueeze(1).to(logits)  # (B, 1)
            own_right = logits.gather(1, index) * is_own  # (B, 1)
            slopes = logits.scatter_add(1, index, -s * m * is_own)  # (B, C), with margin

            table = logits.new_zeros(processes.world_size + 1, len(inputs))
            table[processes.rank] = slopes.logsumexp(1)
            table[-1] = own_right[:, 0]
            processes.add_up(table)
            right, log_sums = table[-1].unsqueeze(1), table[:-1].logsumexp(0).unsqueeze(1)  # (B, 1)
            loss = (log_sums - (right - s * m)).mean()
            slopes.sub_(log_sums).exp_().scatter_add_(1, index, -is_own).div_(len(inputs))

            logits.mul_(slopes)
            of_inputs = logits.sum(1, keepdim=True).masked_fill_(input_norms < NORM_EPS, 0.0)  # (B, 1), own part
            of_classes = (logits.sum(0) / divisors / divisors).masked_fill_(norms < NORM_EPS, 0.0)  # (C,)
            slopes.div_(divisors)
        ctx.save_for_backward(weight, slopes, scaled, input_scales, of_inputs / s**2, of_classes)
        ctx.processes = processes
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, slopes, scaled, input_scales, of_inputs, of_classes = ctx.saved_tensors
        with torch.autocast(weight.device.type, enabled=False):
            by_scaled, by_weight = gradients_of_product(
                weight, slopes, of_classes * gradient, scaled * gradient, needs=ctx.needs_input_grad[:2]
            )
            by_inputs = by_scaled.addcmul_(scaled, of_inputs, value=-1).mul_(input_scales * gradient)
            ctx.processes.add_up(by_inputs)
        return by_inputs, by_weight, None, None, None, None, None


# --- checkpoints -----------------------------------------------------------------------------------------------------


def whole_states(
    classifiers: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer | None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any] | None]]:
    """State dicts of classifiers and their optimizers with all classes; of split ones, in the main process only."""
    states: list[dict[str, Any]] = []
    optimizer_states: list[dict[str, Any] | None] = []
    for classifier, optimizer in zip(classifiers, optimizers, strict=True):
        state, moments = classifier.state_dict(), optimizer.state_dict() if optimizer else None
        if isinstance(classifier, SplitClassifier):
            state = {name: _collected(value, classifier) for name, value in state.items()}
            if moments:
                per_weight = {
                    number: {name: _collected(value, classifier) for name, value in values.items()}
                    for number, values in moments["state"].items()
                }
                moments = {**moments, "state": per_weight}
        states.append(state)
        optimizer_states.append(moments)
    return states, optimizer_states


def own_state(saved: Mapping[str, Any] | None, classifier: nn.Module) -> Any:
    """The own part of the saved state dict of a classifier or of its optimizer; all of it if it is not split."""
    if not isinstance(classifier, SplitClassifier) or saved is None:
        return saved
    if "param_groups" in saved:
        return {**saved, "state": {number: _own(values, classifier) for number, values in saved["state"].items()}}
    return _own(saved, classifier)


def _own(values: Mapping[str, Any], classifier: SplitClassifier) -> dict[str, Any]:
    own = slice(classifier.own.start, classifier.own.stop)
    for name, value in values.items():
        if isinstance(value, Tensor) and value.dim() and tuple(value.shape) != (
            classifier.total, classifier.in_features
        ):  # fmt: skip
            raise ValueError(
                f"{name} has the shape {list(value.shape)}, not {[classifier.total, classifier.in_features]}"
            )
    return {
        name: value[own].clone() if isinstance(value, Tensor) and value.dim() else value
        for name, value in values.items()
    }


def _collected(value: Any, classifier: SplitClassifier) -> Any:
    """All rows of weights or moments; other values, such as Adam's number of steps, are the same in each process."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    return classifier.processes.collect_rows(value, classifier.total)
