"""The one exception that a user is meant to read."""


class FaceDepthError(Exception):
    """Bad input or a run that cannot go on: one sentence with what, where and what to do.

    Programs print the sentence and exit with 1; anything else that escapes is a bug of ours.
    """
