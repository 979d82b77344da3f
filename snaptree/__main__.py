"""`python -m snaptree`."""

import sys

from snaptree.cli import main

sys.exit(main())
