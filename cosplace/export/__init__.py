"""Models as files for other programs: ONNX and torch.export, .pth and .safetensors.

settings        options of an export
deployable      the network to export: folded batch norms, optional preprocessing; tracing
onnx_format     write ONNX files
quantization    8-bit weights and activations
torch_program   write and read torch.export files
runtime         open an exported file as a network
verification    compare an exported file with PyTorch
exporter        export a model and check the file
conversion      .pth and .safetensors, reduced models
"""
