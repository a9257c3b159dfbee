"""Data: readers, splits, batches, and the domains that a run trains on."""
