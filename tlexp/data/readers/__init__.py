"""Readers: one function for each form in which data come; each returns `tlexp.data.samples.Samples`."""
