# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Model files from Hugging Face's hub, or from a server that speaks its protocol.

    hub = Hub(timeout_s=30)
    listing = hub.listing('openbmb/MiniCPM-o-4_5-gguf')
    hub.fetch(listing.matching('*-Q4_K_M.gguf')[0], directory)

A file is written as NAME.HASH.incomplete and gets its name when its SHA-256 is the published one.
Whatever ends a download, the next one asks for the bytes that are missing: the name of the
incomplete file says of which content its bytes are. huggingface_hub (an optional package) makes
the requests: it knows proxies, tokens and the errors of the hub.
"""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from minicpmo_ros.errors import Error, InputError, ModelFileError, in_words
from minicpmo_ros.modelset.manifest import sha256_of
from minicpmo_ros.units import MIB

ATTEMPTS = 4  # without a new byte, until a download is given up
MARGIN_BYTES = 64 << 20  # of the disk that are left alone
AGAIN = 'Run the same command again: it goes on where it stopped'
_PRECISION = re.compile(r'[-_.]((?:IQ|Q)\d\w*|B?F16|F32)\.gguf$', re.IGNORECASE)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UnreachableError(Error):
    """There is no way to the server: no network, a wrong address, or offline mode."""


@dataclass(frozen=True)
class RemoteFile:
    """A published file."""

    repository: str
    revision: str  # the commit: what is asked for in pieces is of one version
    name: str  # with its folder, such as 'vision/model-F16.gguf'
    size_bytes: int
    sha256: str  # lower-case hexadecimal

    @property
    def precision(self) -> str:
        """The precision that its name tells, in capitals, such as 'Q4_K_M'; '': none."""
        match = _PRECISION.search(self.name)
        return match[1].upper() if match else ''

    @property
    def size_mib(self) -> float:
        """Its size, MiB."""
        return self.size_bytes / MIB


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit."""

    repository: str
    revision: str
    files: tuple  # RemoteFiles with a published hash, by name
    licence: str  # as the publisher's card says; '': it does not

    def matching(self, pattern: str) -> list:
        """Return the files whose path fits a pattern; its * and ? stand for no '/'."""
        parts = pattern.split('/')
        return [
            each
            for each in self.files
            if len(names := each.name.split('/')) == len(parts) and all(map(fnmatch, names, parts))
        ]


class Hub:
    """A server of model files."""

    def __init__(self, endpoint: str = '', timeout_s: float = 30.0):
        """Use `endpoint`, or what HF_ENDPOINT says, or Hugging Face's own server.

        A request fails where no byte comes for `timeout_s`. Raises InputError where the package
        huggingface_hub is missing.
        """
        try:
            import huggingface_hub.constants  # the package alone does not have it yet
        except ImportError:
            raise InputError(
                'fetch needs the package huggingface_hub. Install it: '
                'pip install -r environment/requirements-fetch.txt'
            ) from None
        self._library, self._timeout_s = huggingface_hub, timeout_s
        self.endpoint = endpoint or huggingface_hub.constants.ENDPOINT

    def listing(self, repository: str, revision: str = 'main') -> Listing:
        """Return what a repository holds; raises InputError and UnreachableError."""
        page = f'{self.endpoint}/{repository}'
        with self._told(page, f'Look for it at {page}, or give another repository with --repo'):
            info = self._library.HfApi(endpoint=self.endpoint).model_info(
                repository, revision=revision, files_metadata=True, timeout=self._timeout_s
            )
        files = tuple(
            RemoteFile(repository, info.sha, each.rfilename, each.lfs.size, each.lfs.sha256)
            for each in sorted(info.siblings, key=lambda each: each.rfilename)
            if each.lfs is not None and _is_safe(each.rfilename)
        )
        licence = getattr(info.card_data, 'license', None) or ''
        return Listing(repository, info.sha, files, str(licence))

    def fetch(
        self,
        file: RemoteFile,
        directory,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        on_trouble: Callable[[str], None] = lambda text: None,
    ) -> Path:
        """Bring a file below a directory, if it is not there; return its path.

        `on_progress(done, total)` counts bytes; `on_trouble(text)` tells of an attempt that failed
        and is followed by another. Raises ModelFileError for a file that is not the published one,
        InputError for what the server or the disk refuse, UnreachableError.
        """
        path = Path(directory) / file.name
        if path.exists():
            _require_published(path, file)
            return path
        part = incomplete_path(path, file)
        with self._told(file.name, AGAIN), _locked(part) as target:
            if target.seek(0, os.SEEK_END) > file.size_bytes:
                target.truncate(0)
            self._download(file, target, on_progress, on_trouble)
            target.flush()
            os.fsync(target.fileno())
            found = sha256_of(part)
            if found != file.sha256:
                part.unlink()
                raise ModelFileError(
                    path,
                    f'what came has SHA-256 {found}, the publisher says {file.sha256}; '
                    'it was removed',
                    'Run the same command again; if it happens again, the server gives another '
                    'file than it lists: take another with --endpoint',
                )
            os.replace(part, path)
        return path

    def _download(self, file: RemoteFile, target, on_progress, on_trouble) -> None:
        """Append what is missing; after a failure with news go on, and without try some times."""
        import httpx

        left = ATTEMPTS
        while (begun := target.seek(0, os.SEEK_END)) < file.size_bytes:
            try:
                self._append(file, target, on_progress)
                if target.tell() == begun:
                    raise httpx.RemoteProtocolError('the server sent nothing')
            except httpx.TransportError as error:
                left = ATTEMPTS if target.tell() > begun else left - 1
                if not left:
                    raise
                on_trouble(f'{file.name}: {_reason(error)}; it is asked for again')

    def _append(self, file: RemoteFile, target, on_progress) -> None:
        """Write what one response brings."""
        import httpx
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        done = target.seek(0, os.SEEK_END)
        url = self._library.hf_hub_url(
            file.repository, file.name, revision=file.revision, endpoint=self.endpoint
        )
        headers = {**build_hf_headers(), 'Accept-Encoding': 'identity'}
        if done:
            headers['Range'] = f'bytes={done}-'
        timeout = httpx.Timeout(self._timeout_s)
        session = get_session()
        with session.stream('GET', url, headers=headers, timeout=timeout) as response:
            hf_raise_for_status(response)
            if done and response.status_code != 206:  # the server knows no ranges
                target.truncate(0)
                done = target.seek(0)
            for piece in response.iter_raw():  # as it comes: nothing waits unwritten
                if done + len(piece) > file.size_bytes:
                    target.truncate(0)
                    raise InputError(
                        f'{url} gives more than the {file.size_bytes} bytes that are listed. '
                        'Take another server with --endpoint.'
                    )
                target.write(piece)
                target.flush()
                done += len(piece)
                on_progress(done, file.size_bytes)

    @contextmanager
    def _told(self, what: str, remedy: str):
        """Say in our words what goes wrong on the way."""
        import httpx
        from huggingface_hub import errors

        try:
            yield
        except errors.GatedRepoError as error:
            raise InputError(
                f'{what}: the publisher asks to accept terms first. Open its page in a browser, '
                f'accept them, run `hf auth login`, then the same command again ({_reason(error)})'
            ) from None
        except errors.HfHubHTTPError as error:
            raise InputError(f'{what}: {_of_status(error, remedy)}') from None
        except httpx.TimeoutException:
            raise InputError(
                f'{what}: no byte came from {self.endpoint} for {self._timeout_s:g} s. {AGAIN}; '
                '--timeout allows more.'
            ) from None
        except (httpx.ConnectError, httpx.ProxyError, errors.OfflineModeIsEnabled) as error:
            raise UnreachableError(
                f'{self.endpoint} cannot be reached ({_reason(error)}).'
            ) from None
        except httpx.TransportError as error:
            raise InputError(f'{what}: {_reason(error)}. {AGAIN}.') from None
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise InputError(
                f'{what}: it cannot be written ({error.strerror}). Make room on the disk or give '
                f'another folder. {AGAIN}.'
            ) from None


def incomplete_path(path: Path, file: RemoteFile) -> Path:
    """Return where a file lies until it is whole."""
    return path.with_name(f'{path.name}.{file.sha256[:12]}.incomplete')


def missing_bytes(files, directory) -> int:
    """Return how many bytes of the files are not in a directory yet."""
    missing = 0
    for file in files:
        path = Path(directory) / file.name
        if not path.exists():
            part = incomplete_path(path, file)
            missing += file.size_bytes - (part.stat().st_size if part.exists() else 0)
    return missing


def require_room(files, directory) -> None:
    """Raise InputError where the disk has no room for what is missing of the files."""
    missing, folder = missing_bytes(files, directory), Path(directory).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free - MARGIN_BYTES
    if missing > max(0, free):
        raise InputError(
            f'{missing / MIB:.0f} MiB are to be fetched into {directory}, and its disk has '
            f'{max(0, free) / MIB:.0f} MiB for them. Make room, give a folder on another disk, or '
            'take a smaller --precision. Nothing was fetched.'
        )


def _require_published(path: Path, file: RemoteFile) -> None:
    """Raise ModelFileError if a file that is there is another than the published one."""
    if path.stat().st_size != file.size_bytes or sha256_of(path) != file.sha256:
        raise ModelFileError(
            path,
            'it is there and is not the published file',
            'Move it away, then run the same command again',
        )


@contextmanager
def _locked(part: Path):
    """Open an incomplete file that no other process writes."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with open(part, 'ab') as target:
        try:
            fcntl.flock(target, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f'Another process is fetching {part}. Let it end.') from None
        yield target


def _is_safe(name: str) -> bool:
    """Whether a listed name stays below the directory."""
    path = PurePosixPath(name)
    return not path.is_absolute() and '..' not in path.parts and '\\' not in name


def _of_status(error, remedy: str) -> str:
    status = error.response.status_code
    if status in (401, 403, 404):
        return (
            f'it is not there, or not for you (HTTP {status}). Names change. {remedy}; '
            'private files need `hf auth login`.'
        )
    if status == 429 or status >= 500:
        return f'the server is busy or broken (HTTP {status}). Later: {AGAIN.lower()}.'
    return f'the server refuses (HTTP {status}). {remedy}.'


def _reason(error: Exception) -> str:
    return in_words(error)[:200].rstrip('.') or type(error).__name__
