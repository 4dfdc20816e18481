"""Models as files for other programs: ONNX and torch.export, .pth and .safetensors.

settings        options of an export
torch_program   write and read torch.export files
runtime         open an exported file as a network
verification    compare an exported file with PyTorch
parity          inputs and expected descriptors next to a file
exporter        export a model and check the file
conversion      .pth and .safetensors, reduced models
"""
