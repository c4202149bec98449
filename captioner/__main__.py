"""`python -m captioner`; `accelerate launch -m captioner train --config NAME` trains in several processes."""

from captioner.cli import main

if __name__ == "__main__":
    main()
