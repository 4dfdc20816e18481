"""Models as files for other programs: ONNX and torch.export, .pth and .safetensors.

input_format    what a file takes as input
settings        options of an export
deployable      the network to export: folded batch norms, optional preprocessing; tracing
onnx_format     write ONNX files
quantization    8-bit weights and activations
torch_program   write and read torch.export files
runtime         open an exported file as a network
verification    compare an exported file with PyTorch
parity          inputs and expected descriptors next to a file
exporter        export a model and check the file
conversion      .pth and .safetensors, reduced models
"""
