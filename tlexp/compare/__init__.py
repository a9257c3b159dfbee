"""What a set of runs says: statistics over paired repetitions, as tables, figures and one page."""
