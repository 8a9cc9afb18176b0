"""`python -m audiocnn`: the command `audiocnn`."""

import sys

from audiocnn.cli import main

sys.exit(main())
