"""`python -m proteus` is `proteus`."""

import sys

from .cli import main

sys.exit(main())
