"""The CosPlace network: photos to unit descriptors.

A backbone without pooling and classifier -> L2 over channels -> GeM -> linear -> L2.  Source: Berton et al.,
"Rethinking Visual Geo-localization for Large-Scale Applications", CVPR 2022, section 3; GeM is equation 3 of
Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018.  Keys of state dicts are
those of the released models: `backbone.<i>...`, `aggregation.1.p`, `aggregation.3.weight`, `aggregation.3.bias`.

The map of the folder, each file importing only files above it:

    layers      L2 normalisation and GeM, with gradients by formula
    backbones   ResNets, VGG-16, EfficientNets without pooling and classifier
    plans       which backbone a state dict is of
    imagenet    torchvision's weights in a backbone
    model       GeoLocalizationNet, new or from a state dict
    inference   a copy that extracts faster
"""

from cosplace.network.inference import for_inference
from cosplace.network.layers import GeM, L2Norm
from cosplace.network.model import GeoLocalizationNet, infer_architecture, network_from_state_dict

__all__ = ["GeM", "GeoLocalizationNet", "L2Norm", "for_inference", "infer_architecture", "network_from_state_dict"]
