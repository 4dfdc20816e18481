"""Settings of distill."""

from dataclasses import dataclass

from cosplace.config.sections import Model, RuntimeSettings
from cosplace.config.setting import Section, required, section, setting
from cosplace.config.shared import (
    MODEL_HELP,
    accept_license_setting,
    follow_outside_setting,
    infer_batch_size_setting,
    jitter_setting,
    trust_remote_code_setting,
)
from cosplace.errors import ConfigError

STORED_DTYPES = ("float16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSettings(Section):
    """Teacher"""

    teacher_image_size: int | None = setting(
        None,
        "shorter side of the photos that the teacher sees, in pixels",
        at_least=1,
        default_text="the size in the model card of the teacher, the input size of a network of another project in the "
        "zoo, else that of each photo",
    )
    teacher_dtype: str = setting(
        "float16", "type of the stored descriptors of the teacher: float16 needs half the disk space",
        choices=STORED_DTYPES,
    )  # fmt: skip
    teacher_cache: str | None = setting(
        None, "folder for the descriptors of the teacher, which are computed once", metavar="FOLDER",
        default_text="teachers in the cache folder",
    )  # fmt: skip
    accept_license: bool = accept_license_setting()
    trust_remote_code: bool = trust_remote_code_setting()


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationSettings(Section):
    """Training"""

    image_size: int | None = setting(
        None, "side of the training images of the student in pixels, and shorter side of its validation and test "
        "images", at_least=32, default_text="that of the photos, at most 224 on a CPU and 512 on a GPU",
    )  # fmt: skip
    cosine_weight: float = setting(
        1.0, "weight of the cosine loss: the descriptor of each photo is like that of the teacher", at_least=0
    )
    relational_weight: float = setting(
        1.0, "weight of the relational loss: two photos of a batch are as similar as they are for the teacher",
        at_least=0,
    )  # fmt: skip
    resume_model: str | None = setting(
        None, "weights of the student to start from: best_model.pth of a run, or a name from `cosplace zoo list`",
        metavar="MODEL",
    )  # fmt: skip
    batch_size: int = setting(
        32, "photos per iteration; the relational loss compares them with each other", at_least=2, metavar="N"
    )
    epochs_num: int = setting(20, "number of epochs, with a validation after each", at_least=1)
    iterations_per_epoch: int | None = setting(
        None, "training steps in one epoch", at_least=1, default_text="one pass over the photos"
    )
    lr: float = setting(
        1e-3,
        "highest learning rate of the network, for Adam; it rises over the first iterations and falls to 0",
        above=0,
    )
    checkpoint_minutes: float = setting(
        10.0, "minutes between two checkpoints (last_checkpoint.pth); there is also one after each epoch", at_least=0
    )
    resume_train: str | None = setting(
        None, "folder of a stopped run of the same command, to continue it", metavar="RUN"
    )

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if not self.cosine_weight and not self.relational_weight:
            raise ConfigError("--cosine_weight 0 and --relational_weight 0 leave nothing to learn. Use one above 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewAugmentation(Section):
    """Augmentation of the images of the student"""

    brightness: float = jitter_setting(0.4)
    contrast: float = jitter_setting(0.4)
    saturation: float = jitter_setting(0.4)
    hue: float = setting(
        0.1, "color jitter: the shift is drawn from -X to X, as a fraction of the full circle", at_least=0, at_most=0.5,
        metavar="X",
    )  # fmt: skip
    random_resized_crop: float = setting(
        0.2, "random crops keep a fraction of the image area that is drawn from 1 - X to 1; 0 keeps the whole photo, "
        "and large values show another view than the teacher has seen",
        at_least=0, at_most=1, metavar="X",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig(Section):
    """Settings of `cosplace distill`."""

    photos: str = required(
        "photos to learn from, without labels: a folder, a table, or a dataset, of which train/ is used",
        positional=True,
        metavar="PHOTOS",
    )
    teacher: str = required(f"the large model to learn from: {MODEL_HELP}", metavar="MODEL")
    val_set_folder: str | None = setting(
        None, "validation set, with database/ and queries/, to choose the best epoch", metavar="FOLDER",
        default_text="val/ of PHOTOS; without one, 5% of the photos are held out",
    )  # fmt: skip
    test_set_folder: str | None = setting(
        None, "test set, with database/ and queries_v1/ or queries/, evaluated once at the end", metavar="FOLDER",
        default_text="test/ of PHOTOS, if it exists",
    )  # fmt: skip
    queries_folder: str | None = setting(
        None, "name of the folder of queries next to database/", metavar="NAME",
        default_text="queries_v1, or queries if that does not exist",
    )  # fmt: skip
    follow_outside: bool = follow_outside_setting()
    infer_batch_size: int = infer_batch_size_setting()
    teaching: TeacherSettings = section(TeacherSettings)
    model: Model = section(Model)
    training: DistillationSettings = section(DistillationSettings)
    augmenting: ViewAugmentation = section(ViewAugmentation)
    running: RuntimeSettings = section(RuntimeSettings, hidden=("compile", "cuda_graphs", "dry_run", "use_float64"))
