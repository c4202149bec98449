"""From pixels to captions: `Captioner`, the object users hold, and the backends that compute for it."""
