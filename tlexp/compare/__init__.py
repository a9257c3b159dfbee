"""What a set of runs says: statistics over paired seeds."""
