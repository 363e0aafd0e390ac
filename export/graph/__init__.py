"""ONNX graphs: exporting them, editing them, adding pre- and post-processing, reading their tensors."""
