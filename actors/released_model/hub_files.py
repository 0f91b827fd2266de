"""Files of the Hugging Face Hub, in the cache that its other programs use: which there are, how large, and a download
that goes on where it stopped.

Of huggingface_hub's own downloads only the rest of a connection is resumed: one that is begun again fetches the whole
file again (2.4.0), which is much for one file of 9 to 18 GB.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub import errors as hub_errors
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers
from tqdm import tqdm

from pipelines.errors import StorageError
from pipelines.redaction import redacted
from xsam_model.conversion.weight_files import hash_file

DEFAULT_REVISION = constants.DEFAULT_REVISION
_NETWORK_ERRORS = (hub_errors.HTTPError, OSError)  # the former of the HTTP client, whichever huggingface_hub uses


class FetchError(StorageError):
    """Something cannot be fetched; the message says what, from where, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a repository.

    Attributes:
        name: its path in the repository.
        num_bytes: its size.
        sha256: its hash; None where the Hub tells none, which is so of small files.
    """

    name: str
    num_bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFiles:
    """What is needed of a repository.

    Attributes:
        option: the option that named it, for messages.
        repo_id, revision: as they were named.
        commit: what the revision is now.
        files: the files; the first is the one that cannot be missing.
    """

    option: str
    repo_id: str
    revision: str
    commit: str
    files: tuple[HubFile, ...]

    def __str__(self) -> str:
        return self.repo_id if self.revision == DEFAULT_REVISION else f"{self.repo_id}@{self.revision}"

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.num_bytes for file in self.files)

    def num_bytes_left(self) -> int:
        """Return how much of it is not in the cache."""
        left = 0
        for file in self.files:
            if not _cached(self.repo_id, file.name, self.commit):
                partial = _partial(self.repo_id, file)
                here = partial.stat().st_size if partial and partial.exists() else 0
                left += file.num_bytes - (here if here <= file.num_bytes else 0)
        return left


def cache_folder() -> Path:
    """Return the folder of what is fetched: HF_HUB_CACHE, or `hub` in HF_HOME."""
    return Path(constants.HF_HUB_CACHE)


def find_files(option: str, named: str, needed: str, is_wanted: Callable[[str], bool]) -> HubFiles | Path:
    """Look up the files of a repository.

    Args:
        option: the option that names it, for messages.
        named: "owner/name" or "owner/name@revision".
        needed: the file that there must be.
        is_wanted: whether a file of this name is needed besides.

    Returns:
        The files. Where the Hub cannot be reached: the folder of the cache that holds them.

    Raises:
        FetchError: there is no such repository, revision or file, or the Hub cannot be reached and the cache does not
            hold them.
    """
    repo_id, _, revision = named.partition("@")
    revision = revision or DEFAULT_REVISION
    with _explained(option, repo_id, revision):
        try:
            info = _api().model_info(repo_id, revision=revision, files_metadata=True)
        except (*_NETWORK_ERRORS, ValueError) as error:  # the latter of answers that are no JSON
            cached = _cached(repo_id, needed, revision)
            if not cached or (isinstance(error, hub_errors.HfHubHTTPError) and error.response.status_code < 500):
                raise
            return Path(cached).parents[needed.count("/")]
    files = {
        one.rfilename: HubFile(name=one.rfilename, num_bytes=one.size or 0, sha256=one.lfs.sha256 if one.lfs else None)
        for one in info.siblings or ()
    }
    if needed not in files or not info.sha:
        raise FetchError(f"{option}: {named} has no file {needed}; look at {_address(repo_id)}")
    more = (file for name, file in files.items() if name != needed and is_wanted(name))
    return HubFiles(option=option, repo_id=repo_id, revision=revision, commit=info.sha, files=(files[needed], *more))


def fetch_files(wanted: HubFiles, *, with_bar: bool) -> Path:
    """Fetch what the cache does not hold yet.

    Args:
        wanted: the files.
        with_bar: whether a terminal shows how far a large file is.

    Returns:
        The folder that holds them, by their names.

    Raises:
        FetchError: that cannot be done. What came is kept, and the next call goes on there.
    """
    with _explained(wanted.option, wanted.repo_id, wanted.revision):
        for file in wanted.files:
            if file.sha256 and not _cached(wanted.repo_id, file.name, wanted.commit):
                _fetch_large(wanted, file, with_bar=with_bar)
        places = [_api().hf_hub_download(wanted.repo_id, one.name, revision=wanted.commit) for one in wanted.files]
        if wanted.revision != wanted.commit:  # so that the cache knows the revision without the Hub
            folder = cache_folder() / repo_folder_name(repo_id=wanted.repo_id, repo_type="model")
            ref = folder / "refs" / wanted.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(wanted.commit, encoding="utf-8")
    return Path(places[0]).parents[wanted.files[0].name.count("/")]


def _fetch_large(wanted: HubFiles, file: HubFile, *, with_bar: bool) -> None:
    """Put a file where huggingface_hub looks for it by its hash, going on with what an earlier call has fetched."""
    partial = _partial(wanted.repo_id, file)
    assert partial is not None
    partial.parent.mkdir(parents=True, exist_ok=True)
    locks = cache_folder() / ".locks" / partial.parents[1].name
    locks.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(locks / f"{file.sha256}.lock"):
        if partial.with_suffix("").exists():
            return
        if partial.exists() and partial.stat().st_size > file.num_bytes:
            partial.unlink()  # of another program: no server would go on with it
        with partial.open("ab") as beginning:
            http_get(
                hf_hub_url(wanted.repo_id, file.name, revision=wanted.commit, endpoint=constants.ENDPOINT),
                beginning,
                resume_size=beginning.tell(),
                headers=build_hf_headers(token=_token()),
                expected_size=file.num_bytes,
                displayed_filename=file.name,
                tqdm_class=tqdm if with_bar else None,
            )
        if hash_file(partial) != file.sha256:
            partial.unlink()
            raise FetchError(
                f"{wanted.option}: {file.name} of {wanted} did not arrive as the Hub has it (another SHA-256), and was "
                "removed; the same command fetches it again"
            )
        partial.rename(partial.with_suffix(""))


def _api() -> HfApi:
    return HfApi(endpoint=constants.ENDPOINT, token=_token())


def _token() -> str | bool:
    token = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch("[!-~]*", token):
        raise FetchError(
            "HF_TOKEN in the environment holds a space, a line end or a character beyond ASCII, as no token does; copy "
            "it again, without quotation marks"
        )
    return token or False


def _cached(repo_id: str, name: str, revision: str) -> str | None:
    found = try_to_load_from_cache(repo_id, name, cache_dir=cache_folder(), revision=revision)
    return found if isinstance(found, str) else None


def _partial(repo_id: str, file: HubFile) -> Path | None:
    blobs = cache_folder() / repo_folder_name(repo_id=repo_id, repo_type="model") / "blobs"
    return blobs / f"{file.sha256}.incomplete" if file.sha256 else None


def _address(repo_id: str) -> str:
    return f"{constants.ENDPOINT}/{repo_id}"


@contextlib.contextmanager
def _explained(option: str, repo_id: str, revision: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one message."""
    address, has_token = _address(repo_id), bool(_token())
    try:
        yield
    except FetchError:
        raise
    except hub_errors.HFValidationError:
        raise FetchError(
            f"{option}: {repo_id} is neither a folder here nor a repository of the Hub, as owner/name or "
            "owner/name@revision"
        ) from None
    except hub_errors.GatedRepoError:
        do = (
            "ask there for access with the account of HF_TOKEN, or set another token"
            if has_token
            else "ask there for access, and set HF_TOKEN in the environment to a token of that account"
        )
        raise FetchError(f"{option}: {address} gives its files only to those whom its owners let in; {do}") from None
    except hub_errors.RepositoryNotFoundError:
        more = (
            "that HF_TOKEN's account may read it" if has_token else "set HF_TOKEN in the environment if it is private"
        )
        raise FetchError(f"{option}: there is no repository {address}; check its name, and {more}") from None
    except hub_errors.RevisionNotFoundError:
        raise FetchError(f"{option}: {address} has no revision {revision}; name a branch, tag or commit") from None
    except hub_errors.OfflineModeIsEnabled:
        raise FetchError(
            f"{option}: HF_HUB_OFFLINE is set, and {cache_folder()} does not hold {repo_id} at {revision}; unset it, "
            "or name a folder"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:  # the latter of pages in other encodings than UTF-8
        raise FetchError(
            f"{option}: what answers for {address} is not the Hub (its answer is no JSON), but a proxy or a page to "
            "sign in; open that address in a browser, and check HTTPS_PROXY and HF_ENDPOINT"
        ) from error
    except (*_NETWORK_ERRORS, ValueError) as error:
        reason = redacted(str(error).strip().partition("\n")[0]) or type(error).__name__
        raise FetchError(
            f"{option}: {address} cannot be fetched: {reason}; the same command goes on with what has come, which is "
            f"in {cache_folder()}"
        ) from error
