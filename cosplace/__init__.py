"""CosPlace: recognise places from photos (Berton et al., CVPR 2022).

One street of modules; a module imports only modules above it on this list:

    ground     errors         what can go wrong, in words a user can act on
               storage        files written beside, synced, renamed: nothing is ever half-written
               geo            UTM, latitude/longitude, headings, distances in meters
               config         every knob once: default, unit and --help on one line
               device         where the arithmetic runs, and its 16-bit numbers
               compiled       the one door to numba: functions that run without the interpreter's lock
    photos     images         the '@' file names, the scan of a folder, opening one photo
               groups         images -> classes -> CosPlace groups (M, alpha, N, L)
               loading        batches made ahead by threads or processes, in order
               pixels         one image jittered, cropped and resized by compiled code
               augmentations  color jitter and random resized crop, batched, on CPU or GPU
               datasets       one CosPlace group; a database with its queries
               city           a synthetic city in SF-XL layout
    model      weights        files of weights: fetched once, checked, read safely
               network        backbone + GeM aggregation = GeoLocalizationNet
               cosface        the margin loss over the classes of one group
               reduction      fewer dimensions from any network: PCA, whitening, truncation
               zoo            released models by name, others through torch.hub: one door to all of them
    retrieval  shards         descriptors in a folder, memory-mapped
               descriptors    photos -> descriptors, in memory or in shards, resumable
               describing     a model in three lines: load it, describe photos of any kind
               search         k nearest descriptors
               recall         positives per query, Recall@N (pure functions)
               evaluation     the three above on one dataset
    learning   checkpoint     the whole state of a run, saved atomically, resumed exactly
               preparation    data, network and expected cost before the first iteration
               judging        the network that an evaluation judges, with the dimensions asked for
               iterations     forward, loss, backward, step; the next batch meanwhile
               training       the loop: epochs, groups, mixed precision, validation
               forecast       time, memory and disk of a whole job, before it runs
    sharing    conversion     .pth and .safetensors into each other, smaller descriptors beside their network
               export         ONNX and torch.export, in 32, 16 or 8 bits, checked against PyTorch
    places     index          a searchable, growing index of photos with their coordinates
               localization   neighbours -> coordinates with a calibrated confidence, alone and in sequences
    faces      report         an HTML page of results, predictions and failures
               results        what a finished run leaves: recalls, pictures, the page
               demo           a city made, learned, judged and indexed in minutes
               bench          each stage beside the plain way to do it: equal results, then ratios
               server         a REST API over an index, and the map
               cli            the only module that parses arguments, prints and exits

The journey of one photo: a file name is scanned into a position and a heading, partitioned into a class and its
class into a group; the photo is opened, augmented, passes the network and comes out as a unit descriptor, which
cosface scores against the classes of its group; later it is extracted, searched and judged by recall; or it joins an
index, and a stranger's photo is located by it and drawn on a map.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cosplace.describing import Describer as Describer
    from cosplace.describing import load_model as load_model


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name in ("Describer", "load_model"):
        from cosplace import describing

        return getattr(describing, name)
    raise AttributeError(f"module 'cosplace' has no attribute '{name}'")
