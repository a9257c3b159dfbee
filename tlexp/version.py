"""The version, which is part of keys: what a new version computes differently is computed again."""

__version__ = "0.2.0"
