"""Data quality: what cannot be read, what occurs twice, what leaks from one split into another."""
