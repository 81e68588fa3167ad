"""What we ask of the model hub: the list of a repository's files, and their bytes.

The hub's own client supplies address, token, proxy and offline settings (HF_ENDPOINT, HF_HOME,
HF_TOKEN, HF_HUB_OFFLINE). Its files are streamed here rather than there, because a download that
was cut goes on where it stopped, in the same run and in the next.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.config.environment import current_environment
from millrace.core.errors import ConfigError, MillraceError, Unavailable, UnknownModel
from millrace.core.secret import redacted

from .available import meant_by
from .hub_environment import require_readable_urls
from .licence import UNKNOWN_LICENSE
from .progress import Progress

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_TIMEOUT_S = 20.0
# Waits between attempts that brought no byte; any progress starts the list again.
_RETRY_DELAYS_S = (0.5, 1.0, 2.0, 4.0)
_TOKEN_HINT = (
    "accept its terms on the hub's page of the model, then give a token: "
    "`hf auth login`, or HF_TOKEN=…"
)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file on the hub; one of the two hashes is known (git's blob hash for small files)."""

    name: str
    size_bytes: int
    sha256: str = ""
    git_sha1: str = ""

    @property
    def content_hash(self) -> str:
        """Whichever hash is known, in hex."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True, slots=True)
class RemoteRepository:
    """One revision of a repository."""

    repo_id: str
    commit: str
    license: str
    files: tuple[RemoteFile, ...]


class HubClient:
    """One model repository of the hub."""

    def __init__(self, repo_id: str) -> None:
        require_readable_urls(current_environment())
        try:
            import huggingface_hub
            from huggingface_hub import constants, errors, utils
        except ImportError as error:
            raise ConfigError(
                "fetching from the hub needs huggingface-hub: pip install 'millrace[models]'"
            ) from error
        self._hub = huggingface_hub
        self._constants: Any = constants
        self._errors = errors
        self._utils: Any = utils
        self.repo_id = repo_id

    @property
    def _endpoint(self) -> str:
        return redacted(str(self._constants.ENDPOINT))

    @property
    def is_offline(self) -> bool:
        """True where HF_HUB_OFFLINE forbids the network."""
        return bool(self._constants.is_offline_mode())

    def list_files(self, revision: str) -> RemoteRepository:
        """Files, hashes and licence at `revision` (branch, tag or commit)."""
        with self._clear_errors(revision):
            info = self._hub.HfApi().model_info(
                self.repo_id, revision=revision, files_metadata=True, timeout=_TIMEOUT_S
            )
        files = tuple(
            RemoteFile(
                file.rfilename,
                file.size or 0,
                sha256=file.lfs.sha256 if file.lfs else "",
                git_sha1="" if file.lfs else file.blob_id or "",
            )
            for file in info.siblings or ()
        )
        declared = info.card_data.get("license") if info.card_data else None
        license = declared if isinstance(declared, str) else UNKNOWN_LICENSE
        return RemoteRepository(self.repo_id, info.sha or revision, license, files)

    def cached_file(self, name: str, commit: str) -> Path | None:
        """The file in the hub client's own cache (under HF_HOME), where it has it."""
        found = self._hub.try_to_load_from_cache(self.repo_id, name, revision=commit)
        return Path(found).resolve() if isinstance(found, str) else None

    def cached_snapshot(self, revision: str) -> Path:
        """The repository in the hub client's own cache. Raises Unavailable where it is not."""
        try:
            folder = self._hub.snapshot_download(
                self.repo_id, revision=revision, local_files_only=True
            )
        except (FileNotFoundError, ValueError) as error:
            raise Unavailable(
                f"HF_HUB_OFFLINE is set and {self.repo_id} is not in the hub's cache "
                f"({self._constants.HF_HUB_CACHE}); unset it to download"
            ) from error
        return Path(folder)

    def download(self, file: RemoteFile, commit: str, part: Path, progress: Progress) -> None:
        """Bring `part` to the whole of `file`, going on from the bytes that it already has.

        Raises Unavailable where the hub stays out of reach; the bytes so far are kept.
        """
        delays = iter(_RETRY_DELAYS_S)
        while (have := _size(part)) < file.size_bytes or not part.exists():
            try:
                with self._clear_errors(commit, file.name):
                    self._stream(file, commit, part, progress)
                if _size(part) < file.size_bytes:
                    raise Unavailable(f"the hub ended {file.name} early")
            except Unavailable as error:
                if _size(part) > have:
                    delays = iter(_RETRY_DELAYS_S)
                delay = next(delays, None)
                if delay is None:
                    raise Unavailable(
                        f"{error.message}; {_size(part)} of {file.size_bytes} bytes of "
                        f"{file.name} are kept, the same command goes on from there"
                    ) from error
                time.sleep(delay)

    def read_start(self, file: RemoteFile, commit: str, num_bytes: int) -> bytes:
        """The first bytes of a file, or all of them if it is shorter.

        Raises Unavailable where the hub stays out of reach.
        """
        headers = dict(self._utils.build_hf_headers())
        headers |= {"Accept-Encoding": "identity", "Range": f"bytes=0-{max(0, num_bytes - 1)}"}
        url = self._hub.hf_hub_url(self.repo_id, file.name, revision=commit)
        found = bytearray()
        with (
            self._clear_errors(commit, file.name),
            self._utils.get_session().stream(
                "GET", url, headers=headers, timeout=_TIMEOUT_S
            ) as response,
        ):
            if response.status_code >= 400:
                response.read()
            self._utils.hf_raise_for_status(response)
            # A server may send all of the file all the same.
            for chunk in response.iter_bytes():
                found += chunk
                if len(found) >= num_bytes:
                    break
        return bytes(found[:num_bytes])

    def _stream(self, file: RemoteFile, commit: str, part: Path, progress: Progress) -> None:
        have = _size(part)
        headers = dict(self._utils.build_hf_headers())
        headers["Accept-Encoding"] = "identity"
        if have:
            headers["Range"] = f"bytes={have}-"
        url = self._hub.hf_hub_url(self.repo_id, file.name, revision=commit)
        with self._utils.get_session().stream(
            "GET", url, headers=headers, timeout=_TIMEOUT_S
        ) as response:
            if response.status_code >= 400:
                response.read()
            self._utils.hf_raise_for_status(response)
            is_resumed = response.status_code == 206
            if have and not is_resumed:
                progress.advance(-have)
            with part.open("ab" if is_resumed else "wb") as output:
                # Pieces as they arrive: gathered ones would be lost with the connection.
                for chunk in response.iter_bytes():
                    output.write(chunk)
                    progress.advance(len(chunk))

    @contextlib.contextmanager
    def _clear_errors(self, revision: str, file_name: str = "") -> Iterator[None]:
        """Turn what the hub's client raises into our errors, each with what to do next."""
        import httpx2

        try:
            yield
        except (self._errors.OfflineModeIsEnabled, httpx2.RequestError) as error:
            said = redacted(f"{type(error).__name__}: {error}")
            raise Unavailable(
                f"the hub at {self._endpoint} cannot be reached ({said}); "
                "check the network, proxy settings and HF_ENDPOINT"
            ) from error
        except self._errors.HFValidationError as error:
            raise ConfigError(f"{self.repo_id!r} is not a hub id: {error}") from error
        except self._errors.HfHubHTTPError as error:
            raise self._http_error(error, revision, file_name) from error
        except OSError as error:
            raise _disk_error(error) from error

    def _http_error(self, error: HfHubHTTPError, revision: str, file_name: str) -> MillraceError:
        errors = self._errors
        status = error.response.status_code
        what = f"{self.repo_id}/{file_name}" if file_name else self.repo_id
        if isinstance(error, errors.GatedRepoError) or status == 403:
            return ConfigError(f"{what} is gated (HTTP {status}): {_TOKEN_HINT}", field="token")
        if isinstance(error, errors.RevisionNotFoundError):
            return UnknownModel(f"{self.repo_id} has no revision {revision!r}", field="revision")
        if isinstance(error, errors.RepositoryNotFoundError):
            return UnknownModel(
                f"{self.repo_id} is not on the hub at {self._endpoint} "
                f"(HTTP {status}); if it is private: `hf auth login`, or HF_TOKEN=…"
                f"{meant_by(self.repo_id)}",
                field="model",
            )
        if status == 401:
            return ConfigError(f"the hub refused the token (HTTP 401) for {what}", field="token")
        if status == 404:
            return UnknownModel(f"{what} is not on the hub (HTTP 404)", field="model")
        return Unavailable(f"the hub answered HTTP {status} for {what}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _disk_error(error: OSError) -> MillraceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ConfigError(f"disk full while writing {error.filename or 'the model'}: {error}")
    return ConfigError(f"cannot write the model: {error}")
