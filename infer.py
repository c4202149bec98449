"""Caption images: `python infer.py PATH... [-o out.jsonl]`; the same as `captioner annotate`."""

import sys

from captioner.cli import main_without_teardown

if __name__ == "__main__":
    sys.argv.insert(1, "annotate")
    main_without_teardown()
