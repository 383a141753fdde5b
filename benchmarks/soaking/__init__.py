"""The parts of `benchmarks/soak.py`: each shakes a service over a pool of tiny things, and says what went wrong."""
