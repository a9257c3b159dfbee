"""The commands beside `tlexp` itself: `tlexp-check-data`, `tlexp-compare`, `tlexp-import-weights`."""
