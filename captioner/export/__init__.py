"""Writes a captioner as an exported folder: `onnx`. `captioner.infer.onnx_backend` captions with it."""
