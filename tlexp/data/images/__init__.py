"""Images: where they come from, how they are decoded, and where their pixels are kept."""
