"""Errors a user can cause. Each text says what must hold, what was found and what to do."""


class SchemaError(ValueError):
    """A schema, a spec or a configuration contradicts itself."""


class EncodingError(ValueError):
    """A table does not hold what the schema says about its columns."""


class ModelDirError(ValueError):
    """A model folder is damaged, incomplete or of an unknown format."""


class NotFittedError(ValueError, AttributeError):
    """A model is asked for scores before it was fitted or loaded."""
