"""What a person sees of a run: reports, the progress bar, figures."""
