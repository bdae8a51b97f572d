"""``python -m tornadochat``."""

import sys

from tornadochat.cli import main

sys.exit(main())
