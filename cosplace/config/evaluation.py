"""Settings of eval.

`to_values` of EvalConfig is the content of `config.json`: names and types of these settings stay as they are, so that
old runs can be read.
"""

from dataclasses import dataclass

from cosplace.config.sections import DatasetFolders, Model, RuntimeSettings, TestSettings
from cosplace.config.setting import Section, section, setting
from cosplace.config.shared import (
    MODEL_HELP,
    REDUCTION_METHODS,
    accept_license_setting,
    engine_setting,
    trust_remote_code_setting,
)
from cosplace.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationFolders(DatasetFolders):
    """Photos"""

    queries_folder: str | None = setting(
        None,
        "queries: the name of a folder next to the database, for example queries_night, or the path of any folder. A "
        "relative path that could mean two folders is refused",
        metavar="NAME|FOLDER",
        default_text="queries_v1 next to the database, or queries if that does not exist",
    )
    database_folder: str | None = setting(
        None,
        "any folder of photos as the database, in place of a test set with database/. If the queries have no "
        "positions, nothing is measured, and the answers are coordinates",
        metavar="FOLDER",
        default_text="database/ in the test set",
    )
    no_labels: bool = setting(
        False, "ignore all positions: nothing is measured, and the result is the nearest neighbors of each query"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights(Section):
    """Trained model"""

    resume_model: str | None = setting(
        None,
        f"model to evaluate: {MODEL_HELP}",
        aliases=("model",),
        metavar="MODEL",
        default_text="a network with a random last layer",
    )
    trust_remote_code: bool = trust_remote_code_setting()
    accept_license: bool = accept_license_setting()
    reduce_to: int | None = setting(
        None,
        "evaluate with this number of dimensions: the first ones of a model written by `cosplace reduce`; for other "
        "models, a reduction is fitted on --reduce_on",
        at_least=1,
        default_text="all",
    )
    reduce_on: str | None = setting(
        None,
        "photos to fit the reduction on, in any subfolders; not those of the test set",
        metavar="FOLDER",
        default_text="DATASET_FOLDER/train, or DATASET_FOLDER/val/database if that does not exist",
    )
    reduce_method: str = setting(
        "pca_whitening",
        f"how --reduce_to reduces the dimension: {', '.join(REDUCTION_METHODS)}",
        choices=REDUCTION_METHODS,
        metavar="METHOD",
    )
    descriptors_folder: str | None = setting(
        None,
        "folder that stores the descriptors of database and queries; an interrupted evaluation continues from it",
        metavar="FOLDER",
    )
    descriptors_dtype: str = setting(
        "float32",
        "type of the numbers in --descriptors_folder; float16 needs half of the disk space and may swap predictions "
        "that are nearly equal",
        choices=("float32", "float16"),
    )
    engine: str = engine_setting()

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.descriptors_dtype != "float32" and self.descriptors_folder is None:
            raise ConfigError(f"--descriptors_dtype {self.descriptors_dtype} needs --descriptors_folder. Add it.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolSettings(Section):
    """Protocol"""

    protocol: str | None = setting(
        None,
        "refuse a dataset or settings that differ from a published protocol, such as pitts30k-test or tokyo247@1, and "
        "record it in results.json; `cosplace protocols` lists them",
        metavar="NAME[@VERSION]",
        default_text="custom: any dataset, radius and image size",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TestImageSize(Section):
    """Size of test images"""

    image_size: int = setting(512, "with --resize_test_imgs, pixels of the shorter side", at_least=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSettings(Section):
    """Sizes and copies of photos"""

    query_policy: str | None = setting(
        None,
        "how queries, which often have other sizes than the database, are encoded: native keeps their size; short_side "
        "resizes the shorter side to --image_size, single_query also takes one query per batch; square makes them "
        "square; central_crop cuts them to the size of the database photos; five_crops averages five square crops, "
        "nearest_crop takes the best of them, maj_voting lets them vote",
        choices=(
            "native", "short_side", "square", "single_query", "central_crop", "five_crops", "nearest_crop",
            "maj_voting",
        ),
        metavar="POLICY",
        default_text="as the database: native, or short_side with --resize_test_imgs",
    )  # fmt: skip
    scales: tuple[float, ...] = setting(
        (1.0,), "average the descriptors of copies of each photo, in the database too: their sizes relative to it, for "
        "example 0.7 1 1.4", at_least=0.1, at_most=4, metavar="FACTOR",
    )  # fmt: skip
    flip: bool = setting(False, "average the descriptors of each photo and its mirror image, in the database too")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionSettings(Section):
    """Compressed descriptors"""

    compress: str | None = setting(
        None,
        "compress the descriptors of the database to codes, search by these, and report their recalls and those of "
        "exact search: to learn what your model and photos allow, before you store millions of descriptors. binary has "
        "one bit per dimension, 32 times less than float32; int8 one byte, 4 times less",
        choices=("binary", "int8"),
        metavar="METHOD",
        default_text="exact search",
    )
    shortlist: int = setting(
        100,
        "with --compress, compare this number of photos with the nearest codes again, by their full descriptors, and "
        "order them by these; at least the number of predictions. Codes are then in memory, and full descriptors on "
        "disk. 0 keeps the order of the codes, as if only these were stored",
        at_least=0,
        at_most=10_000,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDescriptors(Section):
    """Stored descriptors"""

    database_store: str | None = setting(
        None,
        "evaluate descriptors that `cosplace extract` has stored, in place of photos and a model: those of the "
        "database, a folder or object storage. They are read in blocks, so a store may be larger than memory; with "
        "`torchrun -m cosplace eval`, each process searches a part. Codes are searched as codes",
        metavar="STORE",
    )
    queries_store: str | None = setting(
        None, "with --database_store, that of the queries: float32 or float16, of the same model", metavar="STORE"
    )
    memory: float | None = setting(
        None, "with --database_store, memory that each process may use, in GB (2**30 bytes)", parse=float, above=0,
        metavar="GB", default_text="1 GB for blocks of descriptors, in addition to the lists of photos",
    )  # fmt: skip

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if (self.database_store is None) != (self.queries_store is None):
            raise ConfigError("--database_store and --queries_store are used together. Add the other one.")
        if self.memory is not None and self.database_store is None:
            raise ConfigError("--memory limits the search of a store. Add --database_store, or omit --memory.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSettings(Section):
    """Report"""

    no_report: bool = setting(
        False, "write results.json and queries.parquet only: report.html takes some seconds, and up to 20 MB"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSettings(Section):
    """Comparison"""

    compare: str | None = setting(
        None,
        "folder of an earlier run of the same dataset: also print the differences from it, with intervals, and write "
        "comparison.html; see `cosplace compare`",
        metavar="RUN",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundTruth(Section):
    """Ground truth"""

    audit: bool = setting(
        False, "also write audit.html: pairs of photos that look like the same place but are outside the radius, to "
        "judge; see `cosplace audit`",
    )  # fmt: skip
    verdicts: str | None = setting(
        None,
        "verdicts from `cosplace audit --apply`: photos judged to show the same place are additional positives, and "
        "recalls are reported both as labeled and with verdicts",
        metavar="FILE",
        default_text="<queries>_verdicts.csv next to the folder of the queries, if it exists",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Settings of `cosplace eval`."""

    folders: EvaluationFolders = section(
        EvaluationFolders, hidden=("train_set_folder", "val_set_folder", "extra_datasets")
    )
    model: Model = section(Model, hidden=("train_all_layers", "frozen_layers"))
    weights: Weights = section(Weights)
    protocol: ProtocolSettings = section(ProtocolSettings)
    test_size: TestImageSize = section(TestImageSize)
    views: ViewSettings = section(ViewSettings)
    compression: CompressionSettings = section(CompressionSettings)
    stores: StoredDescriptors = section(StoredDescriptors)
    testing: TestSettings = section(TestSettings)
    reporting: ReportSettings = section(ReportSettings)
    comparing: ComparisonSettings = section(ComparisonSettings)
    truth: GroundTruth = section(GroundTruth)
    running: RuntimeSettings = section(RuntimeSettings, hidden=("compile", "cuda_graphs", "use_float64"))
