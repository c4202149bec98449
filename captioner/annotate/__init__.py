"""Captioning whole collections of images, and the files that come out."""
