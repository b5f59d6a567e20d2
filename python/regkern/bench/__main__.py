"""``python -m regkern.bench`` is ``regkern bench``."""

import sys

from regkern.bench.cli import bench

sys.exit(bench(sys.argv[1:]))
