"""Exports a subnet as verified artifacts, and runs them: ONNX files, TensorRT plans, verification, benchmarks, serving.

Nothing here is imported by the rest of growtas except its command line.
"""
