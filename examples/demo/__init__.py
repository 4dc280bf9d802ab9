"""The demo: two trainers side by side, one rewarded by the gradient norm and one at random, and their report."""

import os

# Torch reads this on import. Threads that spin while they wait slow the demo down many times on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
