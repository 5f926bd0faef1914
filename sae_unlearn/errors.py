"""The error that every part of this package raises for input that it cannot work with."""


class UnlearnError(ValueError):
    """Something given does not fit: the message names the value and the mend.

    It is a `ValueError`, so that code which knows nothing of this package can catch it. What a message quotes of a file
    that anybody may have written is shown by its escapes where a terminal would act on it.
    """

    def __init__(self, message: str = "") -> None:
        plain = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in message)
        super().__init__("".join(plain))
