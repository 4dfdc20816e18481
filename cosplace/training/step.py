"""One training step: forward, CosFace or multi-similarity loss, backward, one step of each optimizer.

Source: Berton et al., CVPR 2022, section 3.2; on two groups at once: Berton et al., ICCV 2023 (EigenPlaces).
Nothing here waits for the device: losses stay on it as tensors, the fused optimizers read the scaler's result on the
device, and on CUDA the next batch is copied and augmented on a second stream.
Legend: B batch, S side of the images in pixels, D descriptor dimension.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from cosplace.device import mixed_precision
from cosplace.errors import DeviceError
from cosplace.memory import is_out_of_memory
from cosplace.training.augmentation import Augmentation
from cosplace.training.batches import Batch
from cosplace.training.checkpoint import RunState
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.metric_losses import MultiSimilarity
from cosplace.training.processes import Processes


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStep:
    """The network, the classifier or loss of one group, and their optimizers.  Call it with a batch to train on it."""

    forward: Callable[[Tensor], Tensor]  # the network, compiled with --compile
    classifier: MarginCosineProduct | MultiSimilarity
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]  # of the network, of the classifier
    scaler: torch.amp.GradScaler
    device: torch.device
    dtype: torch.dtype | None  # of mixed precision
    nested_dims: tuple[int, ...] = ()  # first dimensions that are trained as descriptors of their own
    processes: Processes | None = None  # those that train on parts of each batch; None: this one alone

    @classmethod
    def for_group(
        cls,
        state: RunState,
        group: int,
        *,
        forward: Callable[[Tensor], Tensor],
        device: torch.device,
        dtype: torch.dtype | None,
        nested_dims: tuple[int, ...] = (),
        processes: Processes | None = None,
    ) -> Self:
        """Combine the network with the classifier of one group, which must be on the device."""
        return cls(
            forward=forward,
            classifier=state.classifiers[group],
            optimizers=(state.optimizer, state.classifier_optimizers[group]),
            scaler=state.scaler,
            device=device,
            dtype=dtype,
            nested_dims=nested_dims,
            processes=processes,
        )

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train on images (B, 3, S, S) and labels (B,), both on the device; returns the loss () there.

        With several processes, the images are the own ones of B, and the labels and the loss those of all.  Raises
        DeviceError when the device is out of memory.
        """
        return joint_step([self], [(images, labels)])

    def train_classifier(self, images: Tensor, labels: Tensor) -> Tensor:
        """Update the classifier, and add to the gradients of the network; returns the loss ()."""
        _, classifier_optimizer = self.optimizers
        with explain_out_of_memory(self.device, images):
            with mixed_precision(self.device, self.dtype):
                descriptors = self.forward(images)  # (B, D)
                if self.processes is not None:
                    descriptors = self.processes.gather_rows(descriptors, len(labels))
                loss = nested_loss(self.classifier, descriptors, labels, self.nested_dims)
            if classifier_optimizer is None:  # a loss without weights
                self.scaler.scale(loss).backward()
                return loss.detach()
            classifier_optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(classifier_optimizer)
        return loss.detach()


def nested_loss(
    classifier: MarginCosineProduct | MultiSimilarity, descriptors: Tensor, labels: Tensor, dims: Sequence[int]
) -> Tensor:
    """Mean loss () of descriptors (B, D) and of their first d dimensions for each d in `dims`.

    Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022, equation 1 with equal weights.  Each part is
    compared with the same part of the class weights, so that it needs no classifier of its own.
    """
    whole = classifier.loss(descriptors, labels)
    parts = [classifier.loss(descriptors[:, :dim], labels) for dim in dims]
    return torch.stack([whole, *parts]).mean() if parts else whole


def joint_step(steps: Sequence[TrainingStep], batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Train on one batch, images and labels, of each of several groups; returns the sum of the losses ().

    Each classifier is updated after its own batch.  Then the network, which all groups share, makes one step on the sum
    of the gradients.  Raises DeviceError when the device is out of memory.
    """
    network_optimizer, scaler = steps[0].optimizers[0], steps[0].scaler
    network_optimizer.zero_grad()
    losses = [step.train_classifier(images, labels) for step, (images, labels) in zip(steps, batches, strict=True)]
    with explain_out_of_memory(steps[0].device, batches[0][0]):
        if (processes := steps[0].processes) is not None:
            processes.sum_gradients(one for group in network_optimizer.param_groups for one in group["params"])
        scaler.step(network_optimizer)
        scaler.update()
    return sum(losses[1:], losses[0])


def batches_on_device(
    batches: Iterable[Batch], settings: Augmentation, device: torch.device
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Yield (batch, images (B, 3, S, S) float32 channels last, labels (B,)), augmented and on the device.

    On CUDA the next batch is prepared on a second stream while the network computes on the first.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch, *_images_and_labels(batch, settings, device)
        return
    copy_stream, waiting = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(copy_stream):
            images, labels = _images_and_labels(batch, settings, device)
            ready = copy_stream.record_event()
        if waiting is not None:
            yield _wait_for_copy(*waiting, device)
        waiting = batch, images, labels, ready
    if waiting is not None:
        yield _wait_for_copy(*waiting, device)


def _images_and_labels(batch: Batch, settings: Augmentation, device: torch.device) -> tuple[Tensor, Tensor]:
    with explain_out_of_memory(device, batch.stacks[0]):
        images = batch.images(settings, device).to(memory_format=torch.channels_last)
    return images, batch.labels.to(device, non_blocking=True)


def _wait_for_copy(
    batch: Batch, images: Tensor, labels: Tensor, ready: torch.cuda.Event, device: torch.device
) -> tuple[Batch, Tensor, Tensor]:
    """Make the network's stream wait for the batch, and keep the batch's memory until that stream has used it."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(ready)
    images.record_stream(stream)
    labels.record_stream(stream)
    return batch, images, labels


@contextmanager
def explain_out_of_memory(device: torch.device, images: Tensor) -> Generator[None]:
    """Within: running out of memory raises DeviceError.  images: (B, 3, H, W)."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"Not enough memory on {device} to train on {len(images)} images of {images.shape[2]} x {images.shape[3]} "
            f"pixels.",
            "use a smaller --batch_size",
            "use a smaller --image_size",
            "add --use_amp16",
        ) from error
