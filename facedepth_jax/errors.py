"""The exceptions that a user is meant to read."""


class FaceDepthError(Exception):
    """Bad input or a run that cannot go on: one sentence with what, where and what to do.

    Programs print the sentence and exit with `exit_code`; anything else that escapes is a bug of ours.
    """

    exit_code = 1


class NoPairs(FaceDepthError):
    """There are too few people or frames for face verification; a study goes on without it."""

    exit_code = 3
