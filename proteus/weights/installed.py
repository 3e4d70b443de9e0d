"""The weight file inside an installed package, which is neither imported nor executed."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ..words import install


def is_installed(package: str) -> bool:
    """Whether a package is there, by its name at the index.

    Examples:
        >>> is_installed("torch"), is_installed("no-such-weights")
        (True, False)
    """
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def installed_weights(package: str, subject: str) -> Path:
    """Where the one `.pth` file of an installed package lies, by the package's own list of files.

    Args:
        package: Its name at the index.
        subject: First word of error messages.

    Raises:
        ValueError: If the package is not installed, or holds no such file or several.

    Examples:
        >>> try:
        ...     installed_weights("no-such-weights", "Teacher")
        ... except ValueError as error:
        ...     print(str(error).partition(". ")[0])
        Teacher: the weights are in a package that is not installed
    """
    try:
        files = distribution(package).files or []
    except PackageNotFoundError as error:
        raise ValueError(
            f"{subject}: the weights are in a package that is not installed. Got no "
            f"{package}; expected it beside this library. {install(package)} (the extra "
            f"'teachers' has all of them)."
        ) from error
    weights = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    there = [path for path in weights if path.is_file()]
    if len(weights) != 1 or not there:
        raise ValueError(
            f"{subject}: the package {package} is not as expected. Got {len(weights)} .pth files "
            f"in its list and {len(there)} of them there; expected one. "
            f"{install('--force-reinstall', package)}."
        )
    return there[0]
