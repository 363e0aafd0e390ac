"""Lower precisions of ONNX files: fp16, bf16, int8 and fp8."""
