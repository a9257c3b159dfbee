"""Errors with a message for the user, and the exit code of each."""


class UsageError(ValueError):
    """A mistake of the user: one line that names the value, the rule it breaks and the remedy; no traceback."""

    exit_code = 2


class FolderInUseError(UsageError):
    """Another process works in a folder."""


class TrainingDivergedError(RuntimeError):
    """Training ended with NaN or infinity in the monitored metric: a result of the configuration, not a crash.

    A second attempt would end the same way, so a search counts it as a failed trial.
    """

    exit_code = 3


class RankFailedError(RuntimeError):
    """A process of a job failed in a way that is not the user's mistake: in one line, since its log has the rest."""

    exit_code = 1


class JobFailedError(Exception):
    """A job's failure in a form that survives pickling between processes, which its own exception may not.

    Args:
        message: what happened, in one line.
        unexpected: whether it is a bug rather than the user's mistake.
        stopped: whether a signal ended the job.
        diverged: whether training diverged, which a second attempt would not change.
        in_use: whether another process runs the same job.
    """

    def __init__(
        self,
        message: str,
        unexpected: bool = False,
        stopped: bool = False,
        diverged: bool = False,
        in_use: bool = False,
    ) -> None:
        super().__init__(message, unexpected, stopped, diverged, in_use)
        self.message, self.unexpected, self.stopped = message, unexpected, stopped
        self.diverged, self.in_use = diverged, in_use

    def __str__(self) -> str:
        return self.message


class JobsFailedError(Exception):
    """Some jobs of a sweep failed; each has reported its own error already.

    Args:
        failed: number of failed jobs.
        jobs: number of all jobs.
        first: name and message of the first failure.
        exit_code: of the worst failure, see `cli`.
    """

    def __init__(self, failed: int, jobs: int, first: str, exit_code: int) -> None:
        super().__init__(f"{failed} of {jobs} jobs failed, first {first}; rerun the same command to retry them")
        self.exit_code = exit_code
