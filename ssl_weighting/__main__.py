"""``python -m ssl_weighting`` is the command ``ssl-weighting``."""

import sys

from ssl_weighting.app.cli import main

sys.exit(main())
