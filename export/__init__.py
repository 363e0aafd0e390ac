"""From a subnet to verified, benchmarked artifacts: ONNX, TensorRT plans, the parity gate, measuring.

Nothing here is imported by the rest of growtas except its command line.
"""
