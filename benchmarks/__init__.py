"""Side-by-side timings against other code: python -m benchmarks [NAME ...]."""
