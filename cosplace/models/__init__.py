"""Networks, their weights, and one function that opens any model.

layers            L2 normalization and GeM pooling
backbones         VGG, ResNet and EfficientNet without pooling and classifier
architectures     recognize an architecture by the shapes of its weights
weight_files      read and write .pth and .safetensors without running code
locking           one process at a time
downloads         files fetched once, resumed, checked
imagenet_files    addresses of torchvision's ImageNet weights
imagenet          ImageNet weights into a backbone
network           GeoLocalizationNet: backbone and aggregation
inference         a copy of a network that runs faster
reduction         fewer dimensions: PCA, whitening, truncation
zoo               released models by name
hub               models of other projects through torch.hub
opening           open any model: a zoo name, a file, a hub entry
cache             check the downloaded models
encoder           photos to descriptors
"""
