"""Model code knows tensors, not strings; flat files, so that `save_pretrained` can copy them beside a checkpoint."""
