"""The formats that `captioner write` writes a project in, one file a format; write.py chooses among them."""
