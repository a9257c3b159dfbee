"""Analysis of a set of runs: statistics over paired repetitions, as tables, figures and one page."""
