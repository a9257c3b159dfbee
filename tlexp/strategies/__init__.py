"""What may move, when and how fast: a file for each way of transferring."""
