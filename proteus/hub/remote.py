"""The Hugging Face Hub: get a distilled student, publish one."""

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ..files import sha256_of
from ..models.names import position_rule
from ..student import Student
from ..version import __version__
from ..weights.positions import fit_positions, is_resizable, to_pair
from ..weights.timm_folder import CONFIG, WEIGHTS, load_folder
from ..words import nearest
from .pretrained import PRETRAINED, Pretrained
from .save import HasStudent, save_pretrained

Result = TypeVar("Result")
_log = logging.getLogger("proteus")
_TRIES = 4
_LONGEST_WAIT = 60.0  # seconds
_BUSY = 429


def list_pretrained() -> list[str]:
    """Names of the paper's students that `load_pretrained` knows.

    Examples:
        >>> list_pretrained()[0]
        'proteus-vit-ti14'
    """
    return list(PRETRAINED)


def load_pretrained(
    name_or_path: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> nn.Module:
    """A distilled student as a plain timm model, in eval, `num_classes=0`.

    Args:
        name_or_path: An export folder, a run's folder (its `export` is taken), a name of
            `list_pretrained()`, or `owner/repo` on the Hugging Face Hub. A folder with a model
            comes first, which is logged where it has a released name; where there is a folder
            `owner`, the repository is `hf-hub:owner/repo`.
        image_size: Pixels; None = the size it was trained at. Positions are resampled once.
        revision: Branch, tag or commit on the Hub. Released names are pinned to a commit, whose
            weights are verified by their sha256; with a revision of your own they are not.
        cache_dir: Where downloads are kept; None = the Hub's default.
        local_files_only: Use the cache and make no request.

    Raises:
        ValueError: If there is no such model, it cannot be reached, or its files are damaged.

    Examples:
        >>> import proteus, tempfile, torch
        >>> student = proteus.Student("vit_tiny_patch14", image_size=56)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = load_pretrained(proteus.save_pretrained(student, folder), image_size=70)
        >>> model(torch.zeros(1, 3, 70, 70)).shape
        torch.Size([1, 192])
    """
    name = str(name_or_path)
    repo = name.removeprefix("hf-hub:")
    folder = Path(name)
    if folder.is_dir() and (model_folder(folder) or name not in PRETRAINED):
        if revision is not None:
            raise ValueError(
                f"load_pretrained: revision= would be ignored. Got {revision!r} with the folder "
                f"{name!r}; leave it out."
            )
        if name in PRETRAINED:
            _log.warning("load_pretrained: %r is the folder, not the released model.", name)
        folder = model_folder(folder) or folder
    elif name in PRETRAINED:
        if folder.is_dir():
            _log.warning("load_pretrained: %r is the released model; its folder has none.", name)
        folder = _released(PRETRAINED[name], revision, cache_dir, local_files_only)
    elif repo.count("/") == 1 and (repo != name or not looks_like_path(name)):
        folder = download(repo, revision, cache_dir, local_files_only)
    elif looks_like_path(name):
        raise ValueError(
            f"load_pretrained: unknown model, there is no such folder. Got {name!r}; expected a "
            f"run or an export folder. A repository on the Hugging Face Hub is 'hf-hub:owner/repo'."
        )
    else:
        raise ValueError(
            f"load_pretrained: unknown model. Got {name!r}; expected a folder, 'owner/repo' or "
            f"one of {', '.join(PRETRAINED)}. {nearest(name, PRETRAINED)}"
        )
    model = load_folder(folder, "load_pretrained")
    if image_size is not None:
        size = to_pair(image_size)
        if not is_resizable(model):
            raise ValueError(
                f"load_pretrained: image_size= would be ignored. Got a "
                f"{type(model).__name__}, which takes any size; leave it out."
            )
        architecture = vars(model)["pretrained_cfg"]["architecture"]
        fit_positions(model, size, position_rule(architecture), "load_pretrained")
    return model.eval()


def model_folder(folder: Path) -> Path | None:
    """The folder itself or its `export`, whichever holds a model; None = neither."""
    inside = (part for part in (folder, folder / "export") if (part / CONFIG).is_file())
    return next(inside, None)


def looks_like_path(name: str) -> bool:
    """Whether a name that is no folder was meant as one, so that no Hub is asked for it."""
    parts = name.count("/")
    here = parts == 1 and Path(name).parent.is_dir()
    return here or parts > 1 or name.startswith((".", "/", "~"))


def _released(
    entry: Pretrained, revision: str | None, cache_dir: str | Path | None, local_files_only: bool
) -> Path:
    """The files of a released student, verified where the commit is the pinned one."""
    if revision is None and entry.revision is None:
        raise ValueError(
            f"load_pretrained: {entry.name!r} is not published yet: there is no repository "
            f"{entry.repo!r} on the Hugging Face Hub. Get the authors' file from {entry.url}, run "
            f"`proteus convert FILE --out {entry.name}`, and load the folder {entry.name!r}."
        )
    folder = download(entry.repo, revision or entry.revision, cache_dir, local_files_only)
    weights = folder / WEIGHTS
    if revision is None and entry.sha256 is not None:
        found = sha256_of(weights)
        if found != entry.sha256:
            weights.resolve().unlink()  # so that the next call downloads it again
            weights.unlink(missing_ok=True)
            raise ValueError(
                f"load_pretrained: {entry.name!r} is damaged and was removed from the cache. Got "
                f"sha256 {found}; expected {entry.sha256}. Call again to download it again."
            )
    return folder


def download(
    repo: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """A repository's `config.json` and weights in the Hub's cache: cached files first.

    Args:
        repo: `owner/name`.
        revision: Branch, tag or commit; None = the default branch. A commit that is in the cache
            costs no request.
        cache_dir: Where downloads are kept; None = the Hub's default.
        local_files_only: Make no request at all.

    Raises:
        ValueError: If the repository or revision does not exist, is gated, holds no model, or
            cannot be reached and is not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetch(offline: bool) -> Path:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=offline,
                allow_patterns=[CONFIG, WEIGHTS],
            )
        )

    commit = revision is not None and len(revision) == 40
    if commit or local_files_only:
        try:
            folder = fetch(offline=True)
            if (folder / CONFIG).exists() and (folder / WEIGHTS).exists():
                return folder
        except LocalEntryNotFoundError:
            pass
        if local_files_only:
            raise ValueError(
                f"Hub: {repo!r} is not in the cache. Got local_files_only=True; expected a "
                f"complete earlier download. Load it once with a connection, or copy the "
                f"repository's {CONFIG} and {WEIGHTS} into a folder and load that."
            )
    folder = patiently(lambda: fetch(offline=False), repo, revision)
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).exists():
            raise ValueError(
                f"Hub: {repo!r} holds no model in timm's layout. Expected {file} at revision "
                f"{revision or 'main'!r}. Without a connection, only what was downloaded before "
                f"can be loaded."
            )
    return folder


def patiently(call: Callable[[], Result], repo: str, revision: str | None = None) -> Result:
    """Call the Hub; wait and try again when it is busy or the connection breaks.

    Raises:
        ValueError: What went wrong, in one sentence that says what to do.
    """
    from huggingface_hub import errors

    for attempt in range(1, _TRIES + 1):
        try:
            return call()
        # `HTTPError`: whichever client library this version of huggingface_hub is built on.
        except (errors.HFValidationError, errors.HTTPError, OSError) as failure:  # type: ignore[attr-defined]
            # The client says "not in the cache" where the cause is that it got no answer.
            local = isinstance(failure, errors.LocalEntryNotFoundError)
            cause = (local and failure.__cause__) or failure
            found = f"Got {type(cause).__name__}: {' '.join(str(cause).split())[:200].rstrip('.')}."
            if refusal := _refusal(cause, repo, revision):
                raise ValueError(f"Hub: {refusal} {found}") from failure
            wait = _seconds_to_wait(cause, attempt)
            if wait is None or attempt == _TRIES:
                raise ValueError(
                    f"Hub: {repo!r} could not be reached in {attempt} attempts. {found} Check the "
                    f"connection (and HF_ENDPOINT), or load a local folder."
                ) from failure
            _log.warning("Hub: %s; trying again in %.0f s", type(cause).__name__, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _refusal(error: BaseException, repo: str, revision: str | None) -> str | None:
    """What the Hub refuses, and what to do; None where it does not."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{repo!r} is gated: accept its terms on its page, then log in."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no repository {repo!r}, or it is private and you are not logged in. Check "
            f"the name, or log in with `hf auth login` (HF_TOKEN)."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo!r} has no revision {revision!r}. Leave revision= out for the newest."
    if isinstance(error, errors.HFValidationError):
        return f"{repo!r} is no repository name."
    if isinstance(error, errors.HfHubHTTPError) and (
        error.response is not None and error.response.status_code in (401, 403)
    ):
        return f"your login may not do this to {repo!r}. Log in with `hf auth login` (HF_TOKEN)."
    return None


def _seconds_to_wait(error: BaseException, attempt: int) -> float | None:
    """How long to wait before another attempt; None = it would not help."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return None
    if not isinstance(error, HfHubHTTPError) or error.response is None:
        return float(2 ** (attempt - 1))
    status = error.response.status_code
    if status == _BUSY:
        asked = error.response.headers.get("Retry-After", "")
        return min(float(asked) if asked.isdigit() else 2.0**attempt, _LONGEST_WAIT)
    return float(2 ** (attempt - 1)) if status >= 500 else None


def push_to_hub(
    student: Student | HasStudent,
    repo_id: str,
    *,
    private: bool = False,
    details: Mapping[str, Any] | None = None,
) -> str:
    """Save the student and upload it to the Hugging Face Hub in one commit.

    Args:
        student: A `Student`, or the `Distiller` that holds it.
        repo_id: `owner/repo`; created if it does not exist.
        private: Whether a new repository is private.
        details: See `save_pretrained`.

    Returns:
        Address of the commit.

    Raises:
        ValueError: If the model cannot be saved, or the Hub cannot be reached or refuses.
    """
    with tempfile.TemporaryDirectory(prefix="proteus-push-") as folder:
        name = {"name": repo_id.rpartition("/")[2]}
        save_pretrained(student, folder, details={**name, **(details or {})})
        return upload(folder, repo_id, private=private)


def upload(folder: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload an export folder as it is, in one commit.

    Args:
        folder: Holds `config.json`, `model.safetensors` and, usually, `README.md`. It is read back
            before anything is sent.
        repo_id: `owner/repo`; created if it does not exist.
        private: Whether a new repository is private.

    Returns:
        Address of the commit, which ends in its hash.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    load_folder(folder, "push")
    api = HfApi(library_name="proteus-distill", library_version=__version__)
    patiently(lambda: api.create_repo(repo_id, private=private, exist_ok=True), repo_id)
    commit = patiently(
        lambda: api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[CONFIG, WEIGHTS, "README.md"],
            commit_message="Upload with proteus-distill",
        ),
        repo_id,
    )
    return str(commit.commit_url)
