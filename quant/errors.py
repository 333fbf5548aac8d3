"""The one error of this package; front-ends translate it for their users."""


class QuantError(ValueError):
    """A weight, a shape, a format or a file that this package must refuse; the text says why."""
