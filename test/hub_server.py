# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A server on loopback that speaks the protocol of Hugging Face's hub, and fails as it is told.

    with HubServer({'owner/name': {'model.gguf': content}}) as server:
        ...  # HF_ENDPOINT or --endpoint: server.url

As on the hub, a file is asked for under its repository and lies elsewhere: /resolve/ redirects.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = 'c0ffee' * 6 + 'c0ff'
PIECE_BYTES = 1 << 15


class HubServer:
    """Repositories as {name: {file: bytes}}; what is set below holds for the next requests."""

    def __init__(self, repositories, licence='apache-2.0'):
        self.repositories, self.licence = repositories, licence
        self.sizes = {}  # that are listed instead of the true ones, by file
        self.blobs = {}
        for files in repositories.values():
            for name, content in files.items():
                self.blobs[hashlib.sha256(content).hexdigest()] = name, content
        self.sent = {}  # bytes by file
        self.requests = []  # 'METHOD path'
        self.on_piece = lambda name, sent: None  # called before each piece, in a server's thread
        self.status = {}  # HTTP status by file, or by repository for its listing
        self.wrong = set()  # files of which other bytes come
        self.knows_ranges = True
        self.break_after = None  # bytes of a response behind which the connection is cut
        self.closing = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self):
        class Handler(_Handler):
            hub = self

        self._server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self._server.daemon_threads = True
        self.url = f'http://127.0.0.1:{self._server.server_port}'
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def count(self, name, n_bytes):
        with self._lock:
            self.sent[name] = self.sent.get(name, 0) + n_bytes
            return self.sent[name]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def do_HEAD(self):  # noqa: N802
        self.do_GET()

    def do_GET(self):  # noqa: N802
        hub, parts = self.hub, self.path.split('?')[0].strip('/').split('/')
        hub.requests.append(f'{self.command} {self.path}')
        if parts[:2] == ['api', 'models']:
            self._list('/'.join(parts[2:4]))
        elif parts[0] == 'blob':
            self._give(*hub.blobs[parts[1]])
        elif '/'.join(parts[:2]) in hub.repositories and parts[2] == 'resolve':
            self._redirect(hub.repositories['/'.join(parts[:2])], '/'.join(parts[4:]))
        else:
            self._fail(404, 'RepoNotFound')

    def _list(self, repository):
        hub = self.hub
        if repository not in hub.repositories or repository in hub.status:
            self._fail(hub.status.get(repository, 401), 'RepoNotFound')
            return
        siblings = [{'rfilename': 'README.md', 'size': 12, 'blobId': 'a' * 40}]
        for name, content in hub.repositories[repository].items():
            size = hub.sizes.get(name, len(content))
            digest = hashlib.sha256(content).hexdigest()
            lfs = {'sha256': digest, 'size': size, 'pointerSize': 134}
            siblings.append({'rfilename': name, 'size': size, 'blobId': 'b' * 40, 'lfs': lfs})
        record = {'id': repository, 'sha': COMMIT, 'siblings': siblings}
        record['cardData'] = {'license': hub.licence}
        self._answer(200, json.dumps(record).encode())

    def _redirect(self, files, name):
        if name in self.hub.status or name not in files:
            self._fail(self.hub.status.get(name, 404), 'EntryNotFound')
            return
        digest = hashlib.sha256(files[name]).hexdigest()
        headers = {
            'Location': f'{self.hub.url}/blob/{digest}',
            'X-Repo-Commit': COMMIT,
            'X-Linked-Etag': f'"{digest}"',
            'X-Linked-Size': str(len(files[name])),
        }
        self._answer(302, b'', headers)

    def _give(self, name, content):
        hub, begin, status, headers = self.hub, 0, 200, {}
        if hub.knows_ranges and (asked := self.headers.get('Range')):
            begin, status = int(asked.removeprefix('bytes=').rstrip('-')), 206
            headers['Content-Range'] = f'bytes {begin}-{len(content) - 1}/{len(content)}'
        self._answer(status, None, {**headers, 'Content-Length': str(len(content) - begin)})
        end = len(content) if hub.break_after is None else min(
            begin + hub.break_after, len(content)
        )  # fmt: skip
        for at in range(begin, end, PIECE_BYTES):
            piece = content[at : min(at + PIECE_BYTES, end)]
            if name in hub.wrong:
                piece = bytes(len(piece))
            hub.on_piece(name, hub.sent.get(name, 0))
            if hub.closing.is_set():
                break
            try:
                self.wfile.write(piece)
            except OSError:  # whoever asked was killed
                break
            hub.count(name, len(piece))
        if hub.closing.is_set() or end < len(content):
            self.close_connection = True

    def _fail(self, status, code):
        self._answer(status, b'{"error": "no"}', {'X-Error-Code': code})

    def _answer(self, status, body, headers=None):
        self.send_response(status)
        if body is not None:
            self.send_header('Content-Length', str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if body and self.command != 'HEAD':
            self.wfile.write(body)
