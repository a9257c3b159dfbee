"""Data: readers, splits, batches, and the pair of domains that a run trains on."""
