"""What can go wrong, each said in one sentence: what, where, the offending value, the way out."""

from __future__ import annotations


class PellucidError(Exception):
    """The parent of every error a user can cause or meet; `exit_code` is what the command line exits with."""

    exit_code = 2


class ConfigError(PellucidError):
    """A recipe, an option or a model's dimensions make no sense."""


class CorpusError(PellucidError):
    """The text cannot be found, read or decoded, or there is too little of it."""


class TokenizerError(PellucidError):
    """A tokenizer cannot be trained or loaded, or does not fit what it is used with."""


class ModelError(PellucidError):
    """A model folder is missing, incomplete or inconsistent, or is asked for what it cannot do."""


class RunError(PellucidError):
    """A run folder exists already, is damaged, or does not fit the run that is asked for."""


class CorruptionError(PellucidError):
    """A file on disk is not what was written there."""


class MissingExtraError(PellucidError):
    """A feature needs a package that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra `{extra}`, which is not installed; run: pip install 'pellucid[{extra}]'")


class ResourceError(PellucidError):
    """The machine has too little memory or disk for what is asked."""

    exit_code = 1


class DivergenceError(PellucidError):
    """The loss is no longer a finite number."""

    exit_code = 1
