"""What the system says of files that it does not let us read, as an error for users. Knows nothing of the work that reads them."""

from collections.abc import Iterator
from contextlib import contextmanager

from vlm.errors import ConfigError


@contextmanager
def readable() -> Iterator[None]:
    """Turn what the system raises in the block, or in the function that this decorates, into one line.

    Raises:
        ConfigError: If a file or folder cannot be opened; with its path.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"Cannot read {error.filename or 'a file'} ({error.strerror or error}). Make it readable, or give another path.") from error
