"""Typed errors: each message names the field, what was expected and what came."""


class SensingError(Exception):
    """Root of every error that this package raises on purpose."""


class ShapeError(SensingError, ValueError):
    """A tensor has the wrong number of axes or a wrong size along one."""


class DomainError(SensingError, ValueError):
    """A value lies outside its domain: NaN, negative power, a rotation that is none."""


class MissingTruthError(DomainError):
    """An estimator needs a truth that the data do not hold."""


class ConfigError(SensingError, ValueError):
    """A configuration that cannot be run, said before any work is done."""


class FileFormatError(SensingError, ValueError):
    """An observation file that cannot be read or does not follow the schema."""


class CheckpointError(SensingError, ValueError):
    """A checkpoint that is unreadable or belongs to another architecture."""


class NumericalError(SensingError, ArithmeticError):
    """A computation produced a non-finite value; names the quantity and the scenes."""
