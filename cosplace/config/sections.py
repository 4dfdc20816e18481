"""Sections of settings, and which sections each command has: every knob once, on one line."""

from dataclasses import dataclass

from cosplace.config.knobs import (
    BACKBONES,
    DATASET_VARIABLE,
    canonical_backbone,
    device_knob,
    knob,
    parse_device,
    workers_knob,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFolders:
    """Where the photos are"""

    dataset_folder: str | None = knob(
        None,
        f"folder that holds train/, val/ and test/, as SF-XL's processed/ does; else the environment variable "
        f"{DATASET_VARIABLE}",
        metavar="FOLDER",
    )
    train_set_folder: str | None = knob(
        None, "training photos, in any subfolders", metavar="FOLDER", shown="DATASET_FOLDER/train"
    )
    val_set_folder: str | None = knob(
        None, "validation set, holding database/ and queries/", metavar="FOLDER", shown="DATASET_FOLDER/val"
    )
    test_set_folder: str | None = knob(
        None, "test set, holding database/ and queries_v1/ or queries/", metavar="FOLDER", shown="DATASET_FOLDER/test"
    )
    queries_folder: str | None = knob(
        None,
        "name of the folder of queries beside database/, for example queries_night",
        metavar="NAME",
        shown="queries_v1, else queries",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """CosPlace classes and groups"""

    M: int = knob(10, "side of a class's square cell, in meters", at_least=1)
    alpha: int = knob(30, "width of a class's sector of headings, in degrees", at_least=1, at_most=360)
    N: int = knob(5, "classes of one group are at least N cells apart: N*N groups by position", at_least=1)
    L: int = knob(2, "classes of one group are at least L sectors apart: L groups by heading", at_least=1)
    groups_num: int = knob(8, "how many of the N*N*L groups to train on, one per epoch in turn", at_least=1)
    min_images_per_class: int = knob(10, "classes with fewer images are left out", at_least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Network"""

    backbone: str = knob(
        "ResNet18",
        f"{', '.join(BACKBONES)}; any case, with or without separators.  ResNet18_Small (half the width, without "
        "the last stage) is meant for small images and devices without GPU",
        parse=canonical_backbone,
        metavar="NAME",
    )
    fc_output_dim: int = knob(512, "dimension of the descriptors", at_least=1)
    train_all_layers: bool = knob(False, "train the early layers too, which are frozen by default")
    imagenet_weights: str | None = knob(
        None,
        "weights to start from: v1 (the paper's), v2, none (random), or the path of a torchvision state dict",
        metavar="v1|v2|none|PATH",
        shown="v1 where the backbone has them",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """Training"""

    batch_size: int = knob(32, "images per iteration; batch normalization needs 2", at_least=2)
    epochs_num: int = knob(50, "epochs; epoch e trains group e mod groups_num", at_least=1)
    iterations_per_epoch: int = knob(10000, "batches per epoch", at_least=1)
    lr: float = knob(1e-5, "Adam's learning rate of the network", at_least=0)
    classifiers_lr: float = knob(0.01, "Adam's learning rate of the groups' classifiers", at_least=0)
    margin: float = knob(0.40, "CosFace's margin m", at_least=0, at_most=1)
    scale: float = knob(30.0, "CosFace's scale s", at_least=1)
    resume_train: str | None = knob(
        None, "last_checkpoint.pth of a run (or its folder) to go on from, exactly where it stopped", metavar="PATH"
    )
    resume_model: str | None = knob(
        None, "weights to start from: best_model.pth of another run, or a name of `cosplace zoo list`", metavar="MODEL"
    )
    checkpoint_minutes: float = knob(10.0, "write last_checkpoint.pth this often, and after each epoch", at_least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extensions:
    """Extensions from the paper, all off by default"""

    whitened_start: bool = knob(
        False, "start the last layer as a PCA whitening of the features of training images, not at random"
    )
    margin_ramp: float = knob(
        0.0, "let the margin grow from 0 to --margin over this fraction of the iterations", at_least=0, at_most=1
    )
    lr_schedule: str = knob("constant", "learning rate of the network over the run", choices=("constant", "cosine"))
    warmup_iterations: int = knob(0, "let the network's learning rate grow from 0 over so many iterations", at_least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentationSettings:
    """Augmentation of training images"""

    image_size: int = knob(
        512, "side in pixels of training images, and of test images with --resize_test_imgs", at_least=32
    )
    brightness: float = knob(0.7, "color jitter: factors drawn from 1 +- this", at_least=0)
    contrast: float = knob(0.7, "color jitter: factors drawn from 1 +- this", at_least=0)
    hue: float = knob(0.5, "color jitter: shifts drawn from +- this, of the full circle", at_least=0, at_most=0.5)
    saturation: float = knob(0.7, "color jitter: factors drawn from 1 +- this", at_least=0)
    random_resized_crop: float = knob(
        0.5, "random crops keep between 1 - this and all of an image's area", at_least=0, at_most=1
    )
    augmentation_device: str = knob(
        "auto",
        "where images are augmented: cpu is in the loading workers; auto is where the network is",
        parse=parse_device,
        metavar="auto|cpu|cuda",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSettings:
    """Validation and test"""

    resize_test_imgs: bool = knob(False, "resize test images to --image_size along the shorter side")
    infer_batch_size: int = knob(16, "images per batch when only descriptors are computed", at_least=1)
    positive_dist_threshold: float = knob(
        25.0, "a prediction is right within so many meters of its query", at_least=0, parse=float
    )
    recall_values: tuple[int, ...] = knob((1, 5, 10, 20), "the N of Recall@N", at_least=1, several=True, metavar="N")
    num_preds_to_save: int = knob(0, "save a picture of each query with so many predictions", at_least=0)
    save_only_wrong_preds: bool = knob(False, "save pictures only of queries whose first prediction is wrong")
    skip_unreadable: bool = knob(
        False, "leave photos that cannot be opened out of the database, and count such queries as misses, not stop"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TestImageSize:
    """Size of test images"""

    image_size: int = knob(512, "with --resize_test_imgs, pixels along the shorter side", at_least=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Trained weights"""

    resume_model: str | None = knob(
        None,
        "model to evaluate: a file of weights (best_model.pth of a run), a name of `cosplace zoo list`, or "
        "hub:owner/repo:entry(args)",
        aliases=("model",),
        metavar="MODEL",
    )
    trust_remote_code: bool = knob(False, "allow a hub: model to run code of its repository on this machine")
    reduce_to: int | None = knob(
        None,
        "evaluate with so many dimensions: the first ones of a model that `cosplace reduce` wrote, else fitted now on "
        "--reduce_on",
        parse=int,
        at_least=1,
        metavar="INT",
    )
    reduce_on: str | None = knob(
        None,
        "photos that --reduce_to is fitted on, in any subfolders; never those of the test",
        metavar="FOLDER",
        shown="DATASET_FOLDER/train, else DATASET_FOLDER/val/database",
    )
    reduce_method: str = knob(
        "pca_whitening", "how --reduce_to makes fewer dimensions", choices=("pca_whitening", "pca", "truncation")
    )
    descriptors_folder: str | None = knob(
        None,
        "keep the database's and queries' descriptors here; a stopped evaluation goes on from what is there",
        metavar="FOLDER",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSettings:
    """Device, seed and results"""

    device: str = device_knob()
    use_amp16: bool = knob(False, "16-bit mixed precision: fp16 on CUDA, bf16 on CPUs that have it")
    amp_dtype: str = knob("auto", "which 16-bit numbers --use_amp16 takes", choices=("auto", "fp16", "bf16"))
    seed: int = knob(0, "of every random draw: one seed, one result", at_least=0, at_most=2**32 - 1)
    num_workers: int | None = workers_knob()
    compile: bool = knob(
        False, "compile the network for training with torch.compile: some minutes once, then faster iterations"
    )
    dry_run: bool = knob(False, "measure a few batches, print the time, memory and disk of the whole job, and stop")
    loader: str = knob(
        "auto",
        "what loads images: threads, or processes, which need shared memory; auto is threads for a network on the CPU",
        choices=("auto", "threads", "processes"),
    )
    save_dir: str = knob("default", "results go to logs/SAVE_DIR/<time>", aliases=("exp_name",), metavar="NAME")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """Cache"""

    no_cache: bool = knob(False, "form the groups anew and keep nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReductionSettings:
    """How to make descriptors smaller"""

    dims: int = knob(64, "dimensions that are left", at_least=1)
    method: str = knob(
        "pca_whitening",
        "pca_whitening, pca, or truncation (the first numbers as they are, nothing is fitted)",
        choices=("pca_whitening", "pca", "truncation"),
    )
    max_photos: int = knob(20_000, "fit on up to so many photos, evenly spread over the folder", at_least=2)
    image_size: int | None = knob(
        None, "pixels along the shorter side", parse=int, at_least=1, metavar="INT", shown="each photo's own size"
    )
    infer_batch_size: int = knob(16, "images per batch", at_least=1)
    num_workers: int | None = workers_knob()
    device: str = device_knob()
    trust_remote_code: bool = knob(False, "allow a hub: model to run code of its repository on this machine")


# --- commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """All settings of `cosplace train`."""

    folders: DatasetFolders = DatasetFolders()
    grouping: Grouping = Grouping()
    model: Model = Model()
    training: TrainingSettings = TrainingSettings()
    departures: Extensions = Extensions()
    augmenting: AugmentationSettings = AugmentationSettings()
    testing: TestSettings = TestSettings()
    running: RuntimeSettings = RuntimeSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """All settings of `cosplace eval`."""

    folders: DatasetFolders = DatasetFolders()
    model: Model = Model()
    weights: Weights = Weights()
    test_size: TestImageSize = TestImageSize()
    testing: TestSettings = TestSettings()
    running: RuntimeSettings = RuntimeSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupsConfig:
    """All settings of `cosplace groups`."""

    grouping: Grouping = Grouping()
    caching: CacheSettings = CacheSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceConfig:
    """All settings of `cosplace reduce`."""

    reducing: ReductionSettings = ReductionSettings()
