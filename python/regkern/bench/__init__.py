"""The microbenchmark of regkern: ``regkern bench`` or ``python -m regkern.bench``."""
