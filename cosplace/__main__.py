"""`python -m cosplace …` is `cosplace …`."""

import sys

from cosplace.cli import main

sys.exit(main())
