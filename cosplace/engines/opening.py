"""Open an engine by name, or the fastest one whose descriptors agree with those of PyTorch.

Side effects: reads photos, exports the network, and keeps what it measured in the cache folder.
"""

import logging
from collections.abc import Sequence

import torch
from torch import nn

from cosplace.device import choose_device
from cosplace.engines.cached import AUTO, EngineUse, choice_text, is_close_enough, open_file_engine, remembered_engine
from cosplace.engines.comparison import lowest_cosine, measure_speedups, sample_photos
from cosplace.engines.compiling import CompiledEngine
from cosplace.engines.engine import Engine
from cosplace.engines.exporting import choose_calibration_photos, export_file
from cosplace.engines.files import find_file_by_sha256, read_record, write_record
from cosplace.engines.kinds import KINDS, MIN_COSINES, EngineKind, find_kind
from cosplace.engines.torch_engine import TorchEngine
from cosplace.errors import ConfigError, CosPlaceError
from cosplace.models.weight_files import model_checksum
from cosplace.photos.image_list import ImageList
from cosplace.progress import Progress, no_progress

log = logging.getLogger(__name__)


def open_engine(
    name: str,
    network: nn.Module,
    *,
    image_size: int | None = None,
    device: str = "auto",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    photos: ImageList | None = None,
    batch_size: int = 16,
    file_sha256: str = "",
    progress: Progress = no_progress,
) -> Engine:
    """Open an engine that runs a network.

    name: of an engine, or auto.  network: (B, 3, H, W) ImageNet-normalized photos -> (B, D), without averaging over
    views.  image_size: pixels of the shorter side of photos, None for the size of each.  device: auto, cpu, cuda,
    cuda:N or mps; engines that run a file compute on the CPU.  scales, flip: see `TorchEngine`.
    photos: photos of the user, to compare engines on and to calibrate int8; None: synthetic images, and no calibrated
    engines.
    batch_size: of the batches that are timed.  file_sha256: of the file that an int8 engine must run.

    Raises ConfigError for an unknown engine, one that is not installed, that cannot run the network or whose
    descriptors differ too much; DeviceError, ExportError, DatasetError, StorageError.
    """
    opener = Opener(
        network,
        EngineUse(checksum=model_checksum(network), image_size=image_size, scales=tuple(scales), flip=flip),
        device=device,
        photos=photos,
        batch_size=batch_size,
        progress=progress,
    )
    return opener.open_fastest() if name == AUTO else opener.open_by_name(find_kind(name), file_sha256)


class Opener:
    """Opens the engines of one network; the arguments are those of `open_engine`."""

    def __init__(
        self,
        network: nn.Module,
        use: EngineUse,
        *,
        device: str = "auto",
        photos: ImageList | None = None,
        batch_size: int = 16,
        progress: Progress = no_progress,
    ) -> None:
        self.network, self.use, self.photos = network, use, photos
        self.device, self.asked_device = choose_device(device), device
        self.batch_size, self.progress = batch_size, progress
        self._samples: list[torch.Tensor] = []
        self._reference: TorchEngine | None = None

    # --- one engine --------------------------------------------------------------------------------------------------

    def open_by_name(self, kind: EngineKind, file_sha256: str = "") -> Engine:
        """Open an engine, and compare it with PyTorch unless that was done on this machine."""
        engine = self.open(kind, file_sha256)
        if kind.name != "torch":
            cosine = self._check(engine)
            log.info("engine: %s, lowest cosine similarity to PyTorch %.7f", kind.name, cosine)
        return engine

    def open(self, kind: EngineKind, file_sha256: str = "") -> Engine:
        """Open an engine without comparing it."""
        if not kind.needs_file:
            return self._torch_engine(kind)
        kind.require()
        if self.device.type != "cpu" and self.asked_device != "auto":
            raise ConfigError(
                f"--engine {kind.name} computes on the CPU. Use --device cpu, or --engine torch for {self.device}."
            )
        if file_sha256:
            file = find_file_by_sha256(file_sha256)
            if file is None:
                raise ConfigError(
                    f"The file of the engine {kind.name} (SHA-256 {file_sha256[:12]}) is missing or damaged in the "
                    f"cache folder. Copy the folder `engines` of the cache from the machine that made it, or build "
                    f"again."
                )
        else:
            calibration = None
            if kind.is_calibrated:
                if self.photos is None:
                    raise ConfigError(
                        f"--engine {kind.name} needs photos to calibrate on. Use it with `cosplace index build`, "
                        f"`cosplace extract` or `cosplace eval`, or use --engine onnx."
                    )
                calibration = choose_calibration_photos(self.photos, self.use.image_size)
            file = export_file(
                self.network,
                self.use.checksum,
                kind,
                scales=self.use.scales,
                calibration=calibration,
                progress=self.progress,
            )
        return open_file_engine(kind, file, self.use, torch.get_num_threads())

    def _torch_engine(self, kind: EngineKind) -> TorchEngine:
        if kind.compiles:
            return CompiledEngine(self.network, device=self.device, scales=self.use.scales, flip=self.use.flip)
        return TorchEngine(self.network, kind, device=self.device, scales=self.use.scales, flip=self.use.flip)

    def _check(self, engine: Engine) -> float:
        """Lowest cosine similarity to PyTorch in fp32.  Raises ConfigError if it is too low."""
        cosine = self._compare(engine)
        if not is_close_enough(cosine, engine.kind):
            raise ConfigError(
                f"--engine {engine.kind.name} loses too much with this model: the cosine similarity of a descriptor to "
                f"that of PyTorch is {cosine:.5f}, less than {MIN_COSINES[engine.kind.numbers]:g}. Use another engine, "
                f"such as --engine torch."
            )
        return cosine

    def _compare(self, engine: Engine) -> float:
        """Lowest cosine similarity to PyTorch in fp32, as it was or is now measured on this machine."""
        key = self.use.comparison_key(engine.kind, engine.file_sha256)
        cosine = (read_record(key) or {}).get("cosine")
        if not isinstance(cosine, float):
            if not self._samples:
                self._samples = sample_photos(self.photos, self.use.image_size)
                self._reference = self._torch_engine(KINDS["torch"])
            assert self._reference is not None
            cosine = lowest_cosine(engine, self._reference, self._samples)
            write_record(key, {"cosine": cosine, "num_photos": len(self._samples)})
        return cosine

    # --- the fastest -------------------------------------------------------------------------------------------------

    def open_fastest(self) -> Engine:
        """Open the fastest engine of this machine whose descriptors agree with those of PyTorch; `is_for_auto`."""
        device = self.asked_device
        choice = remembered_engine(self.use, device)
        if choice is not None:
            try:
                engine = self.open(find_kind(choice["engine"]))
            except CosPlaceError as error:
                log.warning("the engine %s cannot be opened: %s", choice["engine"], error)
            else:
                log.info("%s (remembered)", choice_text(choice))
                return engine
        engines, cosines = self._candidates()
        speedups, seconds = measure_speedups(engines, "torch", self._samples, self.batch_size)
        fastest = max(speedups, key=lambda name: speedups[name])
        choice = {"engine": fastest, "speedup": round(speedups[fastest], 3), "cosine": cosines[fastest]}
        compared = ", ".join(f"{name} {ratio:.2f}" for name, ratio in speedups.items())
        log.debug("times faster than PyTorch: %s; PyTorch: %.3f s per %d photos", compared, seconds, self.batch_size)
        write_record(self.use.choice_key(device), choice)
        log.info("%s", choice_text(choice))
        return engines[fastest]

    def _candidates(self) -> tuple[dict[str, Engine], dict[str, float]]:
        """Engines that are installed, run the network and agree with PyTorch; and their lowest cosine similarities."""
        self._samples = sample_photos(self.photos, self.use.image_size)
        self._reference = self._torch_engine(KINDS["torch"])
        engines: dict[str, Engine] = {"torch": self._reference}
        cosines = {"torch": 1.0}
        problems: dict[str, list[str]] = {}  # names of engines by what is wrong, which often is the same for several
        for kind in KINDS.values():
            on_device = self.device.type == "cpu" or not kind.needs_file
            if kind.name == "torch" or not (kind.is_for_auto and on_device and kind.is_installed):
                continue
            try:
                engine = self.open(kind)
                cosine = self._compare(engine)
            except CosPlaceError as error:
                problems.setdefault(str(error), []).append(kind.name)
                continue
            if is_close_enough(cosine, kind):
                engines[kind.name], cosines[kind.name] = engine, cosine
            else:
                limit = MIN_COSINES[kind.numbers]
                log.info("engine: not %s, lowest cosine similarity %.7f, less than %g", kind.name, cosine, limit)
        for problem, names in problems.items():
            log.info("engine: not %s. %s", ", ".join(names), problem)
        return engines, cosines
