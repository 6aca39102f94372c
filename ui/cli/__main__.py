"""`python -m ui.cli`, the same as `nightschool`."""

import sys

from ui.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
