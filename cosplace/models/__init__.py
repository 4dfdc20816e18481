"""Networks, their weights, and one function that opens any model.

gradients           gradients of L2 normalization and GeM by formula
layers              L2 normalization and GeM pooling
resampling          resampling of images and feature maps as matrix products
optimal_transport   SALAD and MegaLoc: features assigned to clusters
boq                 Bag of Queries
pooling_heads       MixVPR, Conv-AP and NetVLAD
aggregations        aggregations by name
vision_transformer  DINOv2
native              networks of other projects in our own code
resnet              ResNet and VGG-16 as torchvision builds them
backbones           VGG, ResNet and EfficientNet without pooling and classifier
architectures       recognize a backbone by the tensors in its state dict
weight_files        read and write .pth and .safetensors without running code
training_card       training photos and validation matches in a model card
downloads           download files once, resume, check
imagenet            torchvision's ImageNet weights
timm_backbones      networks of timm as backbones
designs             networks other than those of the paper, recorded in their weights
layouts             released weights of other projects become networks
network             GeoLocalizationNet: backbone and aggregation
inference           descriptors of a batch, and copies of networks that run faster
averaging           descriptors averaged over scales and the mirror image
reduction           fewer dimensions: PCA, whitening, truncation
model_files         tensors and model card of a model in a file
zoo                 released models by name
speeds              how fast they are
hub                 models of other projects through torch.hub
opening             open any model: a zoo name, a file, a torch.hub entry point
cache               check the downloaded models
inputs              photos of any kind as tensors
views               copies, sizes and crops of photos
"""
