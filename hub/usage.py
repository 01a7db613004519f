"""Wrong usage of the command line, that the parser cannot see."""


class UsageError(Exception):
    """Options that do not go together."""
