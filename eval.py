"""`python3 eval.py …` is `cosplace eval …`."""

import sys

from cosplace.cli import main

if __name__ == "__main__":
    sys.exit(main(prog="eval.py", only="eval"))
