"""``python -m ssl_weighting.bench``."""

import sys

from ssl_weighting.bench import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
