"""Settings of finetune."""

from dataclasses import dataclass

from cosplace.config.names import canonical_backbone
from cosplace.config.sections import RuntimeSettings
from cosplace.config.setting import Section, required, section, setting
from cosplace.config.shared import follow_outside_setting, infer_batch_size_setting

LOSSES = ("multi_similarity", "cosface")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartSettings(Section):
    """Start from ImageNet weights"""

    backbone: str | None = setting(
        None, "with --model imagenet, the network: one of the names for `cosplace train`", parse=canonical_backbone,
        metavar="NAME", default_text="ResNet18",
    )  # fmt: skip
    fc_output_dim: int | None = setting(
        None, "with --model imagenet, the dimension of the descriptors", at_least=1,
        default_text="512, or the number of features if that is less",
    )  # fmt: skip
    imagenet_weights: str | None = setting(
        None, "with --model imagenet, the weights: v1, v2, or the path of a torchvision state dict",
        metavar="v1|v2|PATH", default_text="v1",
    )  # fmt: skip
    train_all_layers: bool = setting(False, "also train the early layers, which are frozen by default")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuningSettings(Section):
    """Training (chosen from the photos by default)"""

    image_size: int | None = setting(
        None, "side of training images in pixels, and shorter side of validation and test images", at_least=32,
        default_text="those of the photos, at most 224 on a CPU and 512 on a GPU",
    )  # fmt: skip
    loss: str = setting(
        "multi_similarity",
        "multi_similarity: compare the photos of a batch with each other; cosface: the loss of `cosplace train`, for "
        "many places",
        choices=LOSSES,
    )  # fmt: skip
    batch_size: int = setting(32, "photos per iteration", at_least=4, metavar="N")
    epochs_num: int | None = setting(None, "maximum number of epochs", at_least=1, default_text="6")
    iterations_per_epoch: int | None = setting(
        None, "training steps in one epoch", at_least=1, default_text="enough to use each place once, at least 17"
    )
    lr: float | None = setting(
        None, "learning rate of the network, for Adam", parse=float, above=0,
        default_text="3e-4 from ImageNet weights, else 1e-4",
    )  # fmt: skip
    num_seeds: int | None = setting(
        None,
        "number of trainings with different seeds; the best one is kept",
        at_least=1,
        default_text="3 if they are short, else 1",
    )
    checkpoint_minutes: float = setting(
        10.0, "minutes between two checkpoints (last_checkpoint.pth); there is also one after each epoch", at_least=0
    )
    resume_train: str | None = setting(
        None, "folder of a stopped run of the same command, to continue it", metavar="RUN"
    )
    force: bool = setting(False, "train even if there are too few places for training to help")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig(Section):
    """Settings of `cosplace finetune`."""

    dataset: str = required(
        "dataset with train/, and optionally val/ and test/; or photos with positions that are not split",
        positional=True,
        metavar="DATASET",
    )
    model: str = required(
        "model to start from: a name from `cosplace zoo list`, a weights file, imagenet, or a torchvision state dict",
        metavar="MODEL",
    )
    queries_folder: str | None = setting(
        None, "name of the folder of queries next to database/", metavar="NAME",
        default_text="queries_v1, or queries if that does not exist",
    )  # fmt: skip
    follow_outside: bool = follow_outside_setting()
    infer_batch_size: int = infer_batch_size_setting()
    start: StartSettings = section(StartSettings)
    training: FinetuningSettings = section(FinetuningSettings)
    running: RuntimeSettings = section(RuntimeSettings, hidden=("compile", "dry_run", "use_float64"))
