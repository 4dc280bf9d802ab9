"""Examples of the whole training loop on one machine, and their helpers. Only tests and benchmarks import them."""
