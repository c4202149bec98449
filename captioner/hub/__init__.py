"""Models and their folders: finding, reading and writing them."""
