"""Models without torch: `onnx` writes an exported folder, `runtime` captions with it."""
