"""Train a captioner: `accelerate launch train.py --config configs/flickr8k_small.yaml [key=value ...]`."""

import sys

from captioner.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
