"""One iteration: a batch on the device, forward, loss, backward, two optimizers; and the next batch meanwhile.

Source: Berton et al., CVPR 2022, section 3.2.  Nothing here waits for the device: losses stay on it as tensors, a
scaler's verdict on infinities is read by the fused optimizers where it lies, and the next batch is copied and augmented
on a stream of its own.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from cosplace.device import is_out_of_memory, mixed_precision
from cosplace.errors import DeviceError
from cosplace.training.augmentation import Augmentation
from cosplace.training.batches import Batch
from cosplace.training.checkpoint import RunState
from cosplace.training.cosface import MarginCosineProduct


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """The network with one group's classifier, and all that trains them."""

    forward: Callable[[Tensor], Tensor]  # the network, perhaps compiled
    classifier: MarginCosineProduct
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]  # of the network, of the classifier
    scaler: torch.amp.GradScaler
    device: torch.device
    dtype: torch.dtype | None  # of mixed precision

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Learn from images (B, 3, S, S) and labels (B,), both on the device; returns the loss there.

        Raises DeviceError when memory runs out.
        """
        with _memory_errors(self.device, images):
            with mixed_precision(self.device, self.dtype):
                loss = self.classifier.loss(self.forward(images), labels)
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            self.scaler.update()
        return loss.detach()


@contextmanager
def _memory_errors(device: torch.device, images: Tensor) -> Generator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"Not enough memory on {device} to train on {len(images)} images of {images.shape[2]} x {images.shape[3]} "
            f"pixels at once: use a smaller --batch_size or --image_size, or --use_amp16."
        ) from error


def learner(
    state: RunState, group: int, forward: Callable[[Tensor], Tensor], dtype: torch.dtype | None, device: torch.device
) -> Learner:
    """What trains on one group; its classifier must be on the device."""
    return Learner(
        forward=forward,
        classifier=state.classifiers[group],
        optimizers=(state.optimizer, state.classifier_optimizers[group]),
        scaler=state.scaler,
        device=device,
        dtype=dtype,
    )


def batches_on_device(
    batches: Iterable[Batch], settings: Augmentation, device: torch.device
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """(batch, images (B, 3, S, S) float32 channels last, labels (B,)), augmented on the device.

    On CUDA the next batch is copied and augmented on a second stream while the network computes on the first.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch, *_images_and_labels(batch, settings, device)
        return
    beside, waiting = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(beside):
            images, labels = _images_and_labels(batch, settings, device)
            ready = beside.record_event()
        if waiting is not None:
            yield _handed_over(*waiting, device)
        waiting = batch, images, labels, ready
    if waiting is not None:
        yield _handed_over(*waiting, device)


def _images_and_labels(batch: Batch, settings: Augmentation, device: torch.device) -> tuple[Tensor, Tensor]:
    with _memory_errors(device, batch.stacks[0]):
        images = batch.images(settings, device).to(memory_format=torch.channels_last)
    return images, batch.labels.to(device, non_blocking=True)


def _handed_over(
    batch: Batch, images: Tensor, labels: Tensor, ready: torch.cuda.Event, device: torch.device
) -> tuple[Batch, Tensor, Tensor]:
    """Let the network's stream wait until the batch is there, and keep its memory until that stream is done with it."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(ready)
    images.record_stream(stream)
    labels.record_stream(stream)
    return batch, images, labels


def move_classifier(state: RunState, group: int, device: torch.device) -> None:
    """Bring a group's classifier and its optimizer's moments to the device, without waiting for it, or back."""
    state.classifiers[group].to(device, non_blocking=device.type == "cuda")
    optimizer = state.classifier_optimizers[group]
    fused = optimizer.param_groups[0].get("fused")
    for moments in optimizer.state.values():
        for name, value in moments.items():
            # Only a fused optimizer wants its count of steps beside the weights.
            if isinstance(value, Tensor) and (value.dim() or fused):
                moments[name] = value.to(device, non_blocking=device.type == "cuda")
