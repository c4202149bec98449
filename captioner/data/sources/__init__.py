"""Reads samples (images with captions) from data sets in many layouts; `layouts` lists them."""

from captioner.data.sources.layouts import iter_samples, load_samples
from captioner.data.sources.sample import Sample, Skip, SourceError

__all__ = ["Sample", "Skip", "SourceError", "iter_samples", "load_samples"]
