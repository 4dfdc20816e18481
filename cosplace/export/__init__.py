"""A model as one file for other runtimes: ONNX or torch.export, in fp32, fp16 or int8, checked before it is kept.

>>> export_model("logs/run/best_model.pth", "model.onnx", ExportSettings(precision="fp16"))

The map of the folder, each file importing only files above it:

    settings    what is asked for, and what can be said against it before any work
    portable    the network in the form that leaves PyTorch, traced for photos of any size
    onnx_files  ONNX: one file, named axes, facts about the model inside
    int8        8-bit weights and activations, calibrated on photos
    programs    torch.export: the same, for PyTorch without this package
    running     an exported file as a network again
    checking    the file against PyTorch: descriptors, recall, time
    exporting   the whole way, from a model's name to a checked file
"""

from cosplace.export.checking import Check, Difference
from cosplace.export.exporting import ExportReport, export_model, export_network
from cosplace.export.running import ExportedNetwork, open_exported
from cosplace.export.settings import FORMATS, LIMITS, PRECISIONS, ExportError, ExportSettings

__all__ = [
    "FORMATS",
    "LIMITS",
    "PRECISIONS",
    "Check",
    "Difference",
    "ExportError",
    "ExportReport",
    "ExportSettings",
    "ExportedNetwork",
    "export_model",
    "export_network",
    "open_exported",
]
