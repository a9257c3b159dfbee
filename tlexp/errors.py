"""The errors that are the user's to mend."""


class UsageError(ValueError):
    """One line that names the value, the rule it breaks and the remedy; shown without a traceback."""
