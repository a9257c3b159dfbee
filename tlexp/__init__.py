"""Transfer-learning experiments: f* = argmin L(f; target) + alpha * L(f; source)."""

__version__ = "0.2.0"
