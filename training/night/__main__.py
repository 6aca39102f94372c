"""The entry point of `python -m training.night`."""

import sys

from training.night.night import main

sys.exit(main())
