"""Exports a subnet as verified artifacts, and runs them: ONNX files, TensorRT plans, verification, benchmarks, serving.

Only the API and the command line import this package.
"""
