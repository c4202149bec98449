"""From pixels to captions: decoding (`generation`) and the object users hold (`captioner`)."""
