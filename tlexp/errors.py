"""The errors that are the user's to mend, and those of a sweep's jobs."""


class UsageError(ValueError):
    """One line that names the value, the rule it breaks and the remedy; shown without a traceback."""


class Diverged(UsageError):  # noqa: N818 - as the one below
    """Training that ended in numbers that are none: the configuration's own result, which no second try changes."""


class JobFailed(Exception):  # noqa: N818 - a fact rather than an error of its own
    """A job's failure as it crosses processes: its own exception may not survive pickling.

    Args:
        line: what happened.
        unexpected: whether it is ours to mend rather than the user's.
        stopped: whether a signal ended it.
        diverged: whether it is a result of its own, which a second try would not change.
    """

    def __init__(self, line: str, unexpected: bool = False, stopped: bool = False, diverged: bool = False) -> None:
        super().__init__(line, unexpected, stopped, diverged)
        self.line, self.unexpected, self.stopped, self.diverged = line, unexpected, stopped, diverged

    def __str__(self) -> str:
        return self.line


class JobsFailed(UsageError):  # noqa: N818 - as above
    """Some jobs of a sweep failed, each of which has said so itself.

    Args:
        failed: how many.
        jobs: of how many.
        first: what the first of them said.
        unexpected: whether any of them is ours to mend.
    """

    def __init__(self, failed: int, jobs: int, first: str, unexpected: bool) -> None:
        super().__init__(f"{failed} of {jobs} jobs failed, the first of them {first}; give the command again to go on")
        self.exit_code = 1 if unexpected else 2
