"""The errors of this package; front-ends translate them for their users."""


class QuantError(ValueError):
    """A weight, a shape, a format or a file that this package must refuse; the text says why."""


class DeviceError(RuntimeError):
    """A device that has no memory left or has failed; the work can be done elsewhere."""
