"""What was published in 2025 and 2026, measured at the size of a laptop (claims L1 to L7)."""
