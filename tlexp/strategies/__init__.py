"""Strategies: which stages train, when and how fast; a file for each way of transferring."""
