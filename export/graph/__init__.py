"""ONNX graphs: exports them, edits them, adds pre- and post-processing, and reads their tensors."""
