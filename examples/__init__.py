"""The whole loop on one machine, and what it is shown with. Only tests and benchmarks import it."""
