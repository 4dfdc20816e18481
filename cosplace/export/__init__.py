"""A model as one file for other runtimes: ONNX or torch.export, checked before it is kept.

settings        options of an export
deployable      the network with batch norms folded, traced for photos of any size
onnx_format     write ONNX files
quantization    8-bit weights and activations
torch_program   write torch.export files
runtime         run an exported file
verification    compare an exported file with PyTorch
exporter        from a model's name to a checked file
conversion      .pth and .safetensors, smaller descriptors
"""
