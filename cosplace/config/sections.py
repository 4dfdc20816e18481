"""Sections of settings that train, eval and groups share, and the settings of train.

`to_values` of TrainConfig is the content of `config.json`: names and types of these settings stay as
they are, so that old runs can be read.
"""

from dataclasses import dataclass

from cosplace.config.defaults import ALL_MATCHES, RADIUS_M, RECALL_VALUES, REPORT_MATCHES
from cosplace.config.methods import MethodSettings
from cosplace.config.names import AGGREGATIONS, BACKBONES, canonical_backbone, parse_device
from cosplace.config.setting import Section, section, setting
from cosplace.config.shared import (
    device_setting,
    follow_outside_setting,
    infer_batch_size_setting,
    jitter_setting,
    num_workers_setting,
    parse_matches,
    seed_setting,
)
from cosplace.errors import ConfigError

DATASET_VARIABLE = "SF_XL_PROCESSED_FOLDER"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFolders(Section):
    """Photos"""

    dataset_folder: str | None = setting(
        None,
        "folder with train/, val/ and test/, such as processed/ of SF-XL, or a table with these splits",
        metavar="FOLDER",
        default_text=f"the environment variable {DATASET_VARIABLE}",
    )
    train_set_folder: str | None = setting(
        None, "training photos, in any subfolders", metavar="FOLDER", default_text="DATASET_FOLDER/train"
    )
    val_set_folder: str | None = setting(
        None, "validation set, with database/ and queries/", metavar="FOLDER", default_text="DATASET_FOLDER/val"
    )
    test_set_folder: str | None = setting(
        None,
        "test set, with database/ and queries_v1/ or queries/",
        metavar="FOLDER",
        default_text="DATASET_FOLDER/test",
    )
    extra_datasets: tuple[str, ...] = setting(
        (),
        "further datasets whose training photos are trained on as well: each iteration takes a batch of --batch_size "
        "images of each dataset, with a loss (and classifiers) of its own, and adds up the gradients; memory is needed "
        "for one batch only. Validation and test stay those of --dataset_folder",
        metavar="FOLDER",
        default_text="only DATASET_FOLDER",
    )
    queries_folder: str | None = setting(
        None,
        "name of the folder of queries next to database/, for example queries_night",
        metavar="NAME",
        default_text="queries_v1, or queries if that does not exist",
    )
    follow_outside: bool = follow_outside_setting()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping(Section):
    """Classes and groups"""

    M: int = setting(10, "side of the square cell of a class, in meters", at_least=1, metavar="METERS")
    alpha: int = setting(30, "range of headings of a class, in degrees", at_least=1, at_most=360, metavar="DEGREES")
    N: int = setting(
        5, "minimum distance between two classes of a group, in cells: there are N x N groups by position", at_least=1
    )
    L: int = setting(
        2,
        "minimum distance between two classes of a group, in ranges of --alpha degrees: there are L groups by heading",
        at_least=1,
    )
    groups_num: int = setting(8, "number of groups to train on, of all N x N x L; one per epoch, in turn", at_least=1)
    min_images_per_class: int = setting(10, "minimum images per class; smaller classes are left out", at_least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Section):
    """Network"""

    backbone: str = setting(
        "ResNet18",
        f"one of {', '.join(BACKBONES)}; in upper or lower case, with or without separators. ResNet18_Small (half the "
        "width, without the last stage) is for small images and machines without a GPU. Also dinov2_vits14, "
        "dinov2_vitb14, dinov2_vitl14, each with _reg for registers; and timm:NAME for any network of timm (pip "
        "install 'cosplace[timm]'), such as timm:convnextv2_tiny or timm:resnet18.a1_in1k",
        parse=canonical_backbone,
        metavar="NAME",
    )
    features_stage: int | None = setting(
        None,
        "timm: stage of the network that gives the features, as timm numbers them: stages of a convolutional network, "
        "blocks of a transformer; -1 is the last, -2 the one before",
        parse=int,
        metavar="STAGE",
        default_text="the last",
    )
    aggregation: str = setting(
        "gem",
        f"how the features become a descriptor: {', '.join(AGGREGATIONS)}; gem is that of the paper. The descriptor "
        "always has --fc_output_dim dimensions: gem, mixvpr and conv_ap (multiples of 4) compute this number, the "
        "others end with a linear layer unless it is their own number. salad needs more than 64 feature positions, "
        "tokens a dinov2 backbone",
        choices=AGGREGATIONS,
        metavar="NAME",
    )
    fc_output_dim: int = setting(512, "dimension of the descriptors", at_least=1)
    train_all_layers: bool = setting(False, "also train the early layers, which are frozen by default")
    frozen_layers: str | None = setting(
        None,
        "layers that are not trained: a number of stages or blocks, counted from the input, or names of layers "
        "separated by commas, such as stem,stages.0",
        metavar="N|NAMES",
        default_text="those of the paper; of a timm network all but its last two stages, of a transformer all but its "
        "last four blocks",
    )
    imagenet_weights: str | None = setting(
        None,
        "weights to start from: v1 (those of the paper), v2, none (random), or the path of a torchvision state dict; "
        "for timm:NAME, timm (downloads them) or the path of a timm file; for dinov2 backbones, dinov2 (downloads "
        "them) or the path of a released file",
        metavar="v1|v2|timm|none|PATH",
        default_text="v1, or none for a backbone without ImageNet weights; timm; dinov2",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings(Section):
    """Training"""

    batch_size: int = setting(32, "images per iteration; batch normalization needs at least 2", at_least=2, metavar="N")
    epochs_num: int = setting(50, "number of epochs; each trains one group, in turn", at_least=1)
    iterations_per_epoch: int = setting(10000, "number of training steps in one epoch, each on one batch", at_least=1)
    lr: float = setting(1e-5, "learning rate of the network, for Adam", at_least=0)
    classifiers_lr: float = setting(0.01, "learning rate of the classifiers of the groups, for Adam", at_least=0)
    margin: float = setting(0.40, "margin m of the CosFace loss", at_least=0, at_most=1)
    scale: float = setting(30.0, "scale s of the CosFace loss", at_least=1)
    held_out_photos: int | None = setting(
        None,
        "number of photos of each dataset to hold out of the training, chosen at random, so that an index of its "
        "photos can be calibrated on photos that are new to the network; a calibration needs 100 of them",
        at_least=0,
        default_text="5%, but at least 125 and at most 2,000; 0 if fewer than 1,000 are trained on, or if 100 are in "
        "other groups",
    )
    resume_train: str | None = setting(
        None, "folder of a run, or its last_checkpoint.pth: continue exactly where it stopped", metavar="RUN"
    )
    resume_model: str | None = setting(
        None,
        "weights to start from: best_model.pth of another run, or a name from `cosplace zoo list`",
        metavar="MODEL",
    )
    seeds: tuple[int, ...] = setting(
        (),
        "train once with each of two or more seeds, and print the mean and standard deviation of the recalls; the same "
        "command continues if it was stopped",
        at_least=0,
        metavar="SEED",
        default_text="one run, with --seed",
    )
    logger: str | None = setting(
        None,
        "also send settings, metrics and images of a few validation queries to Weights & Biases or MLflow, "
        "configured by their own environment variables; needs `pip install 'cosplace[wandb]'` or `'cosplace[mlflow]'`",
        choices=("wandb", "mlflow"),
        default_text="only TensorBoard, in the folder of the run",
    )
    checkpoint_minutes: float = setting(
        10.0, "minutes between two checkpoints (last_checkpoint.pth); there is also one after each epoch", at_least=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Extensions(Section):
    """Extensions beyond the paper, all off by default"""

    whitened_start: bool = setting(
        False, "initialize the last layer by PCA whitening of training features instead of randomly"
    )
    nested_dims: tuple[int, ...] = setting(
        (),
        "also train the first dimensions of the descriptor to be descriptors of their own, for example 32 64 128, so "
        "that one model serves all of these: `eval --reduce_to 64 --reduce_method truncation`, or `cosplace reduce`",
        at_least=1,
        default_text="only the whole descriptor",
    )
    margin_ramp: float = setting(
        0.0,
        "share of all iterations, from 0 to 1, over which the margin grows from 0 to --margin; 0 keeps it constant",
        at_least=0,
        at_most=1,
        metavar="SHARE",
    )
    lr_schedule: str = setting(
        "constant", "schedule of the learning rate of the network", choices=("constant", "cosine")
    )
    warmup_iterations: int = setting(
        0,
        "number of iterations at the start over which the learning rate of the network grows from 0 to --lr",
        at_least=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentationSettings(Section):
    """Augmentation of training images"""

    image_size: int = setting(
        512, "width and height of training images, in pixels; see also --resize_test_imgs", at_least=32
    )
    brightness: float = jitter_setting(0.7)
    contrast: float = jitter_setting(0.7)
    hue: float = setting(
        0.5, "color jitter: the shift is drawn from -X to X, as a fraction of the full circle", at_least=0, at_most=0.5,
        metavar="X",
    )  # fmt: skip
    saturation: float = jitter_setting(0.7)
    random_resized_crop: float = setting(
        0.5, "random crops keep a fraction of the image area that is drawn from 1 - X to 1", at_least=0, at_most=1,
        metavar="X",
    )  # fmt: skip
    augmentation_device: str = setting(
        "auto",
        "where to augment images: auto is the device of the network, cpu the threads or processes that load them",
        parse=parse_device,
        metavar="auto|cpu|cuda",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSettings(Section):
    """Validation and test"""

    resize_test_imgs: bool = setting(
        False, "resize test images to --image_size pixels along the shorter side; by default they keep their size"
    )
    infer_batch_size: int = infer_batch_size_setting()
    positive_dist_threshold: float = setting(
        RADIUS_M, "a prediction is correct within this distance of its query, in meters", at_least=0, metavar="METERS"
    )
    recall_values: tuple[int, ...] = setting(
        RECALL_VALUES, "the values N of Recall@N, the share of queries with a correct image in the first N", at_least=1,
        metavar="N",
    )  # fmt: skip
    num_preds_to_save: int = setting(
        0, "save an image of each query with this number of predictions; 0 saves none", at_least=0
    )
    save_only_wrong_preds: bool = setting(
        False, "with --num_preds_to_save, save only queries whose first prediction is wrong"
    )
    report_matches: int = setting(
        REPORT_MATCHES, "find matching points of this number of queries and their predictions, which report.html can "
        "draw; the most confident errors first; 0 finds none, all those of as many queries as fit on the page. Needs "
        "`pip install 'cosplace[rerank]'`", parse=parse_matches, at_least=0, at_most=ALL_MATCHES, metavar="N|all",
    )  # fmt: skip
    skip_unreadable: bool = setting(
        False, "skip photos that cannot be read instead of stopping; such queries count as misses"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSettings(Section):
    """Device, seed and results"""

    device: str = device_setting()
    use_amp16: bool = setting(False, "16-bit mixed precision: fp16 on CUDA, bf16 on CPUs that support it")
    amp_dtype: str = setting("auto", "16-bit type for --use_amp16", choices=("auto", "fp16", "bf16"))
    use_float64: bool = setting(
        False,
        "train in double precision: the losses of several processes are then those of one, also with large learning "
        "rates. Takes several times as long, and twice the memory. The files of the best model are float32 as always",
    )
    seed: int = seed_setting("seed of all random numbers; the same seed gives the same result")
    num_workers: int | None = num_workers_setting()
    compile: bool = setting(
        False, "compile the network with torch.compile for training: takes minutes once, then iterations are faster"
    )
    cuda_graphs: bool = setting(
        False,
        "experimental: launch the forward and backward pass of a training step as two CUDA graphs, faster for small "
        "networks on fast GPUs; not for networks that draw random numbers, such as EfficientNet",
    )
    dry_run: bool = setting(
        False, "measure a few batches, print the time, memory and disk space that the command needs, and stop"
    )
    loader: str = setting(
        "auto",
        "load images in threads or in processes, which need shared memory; auto is threads",
        choices=("auto", "threads", "processes"),
    )
    save_dir: str = setting(
        "default",
        "name for the results, which are written to logs/SAVE_DIR/TIME",
        aliases=("exp_name",),
        metavar="NAME",
    )

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.use_float64 and self.use_amp16:
            raise ConfigError("--use_float64 and --use_amp16 contradict each other. Use only one of them.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSettings(Section):
    """Several processes, started by torchrun"""

    process_timeout_minutes: float = setting(
        30.0,
        "end all processes if one of them has not answered, or process 0 has not reported progress, for this time",
        at_least=0.01,
    )
    split_classifiers_above: int = setting(
        250_000_000,
        "split classifiers with more weights than this (classes x dimension) by classes over the processes, instead of "
        "keeping each in all of them; the loss is the same",
        at_least=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Settings of `cosplace train`."""

    folders: DatasetFolders = section(DatasetFolders)
    method: MethodSettings = section(MethodSettings)
    grouping: Grouping = section(Grouping)
    model: Model = section(Model)
    training: TrainingSettings = section(TrainingSettings)
    extensions: Extensions = section(Extensions)
    augmenting: AugmentationSettings = section(AugmentationSettings)
    testing: TestSettings = section(TestSettings)
    running: RuntimeSettings = section(RuntimeSettings)
    processes: ProcessSettings = section(ProcessSettings)
