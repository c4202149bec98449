"""Reads images and captions and turns them into batches."""
