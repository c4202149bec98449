"""The model. These files import only each other, so that `save_pretrained` can copy them into a checkpoint."""
