"""`python3 train.py …` is `cosplace train …`."""

import sys

from cosplace.cli import main

if __name__ == "__main__":
    sys.exit(main(prog="train.py", only="train"))
