"""``python -m fedemb``."""

import sys

from fedemb.cli import main

sys.exit(main())
