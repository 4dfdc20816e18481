"""Engines: programs that run a network, from photos to unit descriptors.

kinds          the engines by name
views          descriptors averaged over copies of a photo, with numpy
engine         what an engine is; those that run an exported file, without torch
machine        processor, cores and versions
files          exported files and what was measured of them, in the cache folder
cached         open an engine from the cache, without torch
input_format   what an exported file takes as input
deployable     the network to export: folded batch norms, optional preprocessing; tracing
onnx_format    write ONNX files
quantization   8-bit weights and activations
int8_weights   8-bit weights alone
torch_engine   engines of PyTorch
compiling      the engine of torch.compile
exporting      write the file of an engine
comparison     descriptors and times compared with PyTorch
opening        open an engine by name, or the fastest
encoder        photos to descriptors
"""
