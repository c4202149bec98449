"""Caption images: `python infer.py PATH... [-o out.jsonl]`; the same as `captioner annotate`."""

import sys

from captioner.cli import main_and_leave

if __name__ == "__main__":
    sys.argv.insert(1, "annotate")
    main_and_leave()
