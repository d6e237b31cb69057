# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Which devices a part of the model computes on: the CPU, GPUs, or devices of another process.

Those of another process, or machine, are reached through llama.cpp's RPC servers and count as
GPUs. ggml ends this process if a server is not there, does not answer or speaks another version
of the protocol. So each server is asked here first, and what is wrong is an error in words. A
server that ends later ends this process: ggml has no error for it.

A connection lasts as long as a Devices that has it. A server serves one process at a time, and
all parts of that process share the connection.
"""

import ctypes
import socket
import struct
import threading
import weakref

from minicpmo_ros.config import COMPUTING
from minicpmo_ros.errors import EngineError, InputError, ServerAwayError, in_words
from minicpmo_ros.ggml import library
from minicpmo_ros.ggml.library import PINNED, lib

CPU, GPU, INTEGRATED_GPU = 0, 1, 2  # ggml-backend.h: enum ggml_backend_dev_type
KINDS = ('auto', 'cpu', 'gpu')
TIMEOUT_S = 5.0  # for a server's answer; on a busy one it takes milliseconds
REMOTE = 'RPC server'  # what a device of one is called, wherever it is
# ggml-rpc.h, and what ggml-rpc.cpp sends first: command, size, capabilities of the transport.
PROTOCOL = (7, 0, 0)
_HELLO, _CAPABILITIES = 14, 24
_ANSWER = struct.Struct(f'<Q4B{_CAPABILITIES}x')  # size, version, padding

_connecting = threading.Lock()  # one at a time: our own probe would wait for our own connection
# Mirrors what ggml keeps for the whole process: one connection for each address.
_connections = weakref.WeakValueDictionary()


class Devices:
    """What one part of the model computes on; `handles`: of ggml's devices, the first counts most.

    device 'auto' takes a GPU where llama.cpp was built for one and finds it, else the CPU.
    rpc_servers: addresses as `parse_servers` takes them; if there are any, their devices are the
    GPUs. Raises InputError for other texts, EngineError if there is no such device,
    ServerAwayError if a server may be there later.
    """

    def __init__(self, device: str = COMPUTING.device, rpc_servers: str = COMPUTING.rpc_servers):
        if device not in KINDS:
            raise ValueError(f"device is {device!r}, 'auto', 'cpu' or 'gpu' is allowed")
        servers = parse_servers(rpc_servers) if device != 'cpu' else ()
        self._connections = [_connect(address) for address in servers]
        self.is_cpu = self.is_remote = False
        if servers:
            self.is_remote = True
            self.handles = [handle for one in self._connections for handle in one.devices]
        elif device != 'cpu' and (found := _find_gpu()):
            self.handles = [found]
        elif device == 'gpu':
            raise EngineError(
                'llama.cpp finds no GPU. Install llama-cpp-python built for this GPU, name a '
                'server in rpc_servers, or set the device to cpu'
            )
        else:
            self.is_cpu, self.handles = True, [lib.backend_dev_by_type(CPU)]

    @property
    def name(self) -> str:
        """What llama.cpp calls the first one; of a server the same, wherever it is."""
        return REMOTE if self.is_remote else lib.backend_dev_description(self.handles[0]).decode()

    def for_llama(self):
        """Return the devices that llama.cpp shall use, a C array that ends in NULL; None: all."""
        if not self.is_cpu and not self.is_remote:
            return None
        chosen = [] if self.is_cpu else self.handles
        return (ctypes.c_void_p * (len(chosen) + 1))(*chosen, None)


def gpu_name() -> str:
    """Return what llama.cpp calls the GPU it would compute on; '' where it finds none."""
    found = _find_gpu()
    return lib.backend_dev_description(found).decode() if found else ''


def _find_gpu() -> int | None:
    for kind in (GPU, INTEGRATED_GPU):
        found = lib.backend_dev_by_type(kind)
        if found:
            return found
    return None


def parse_servers(text: str) -> tuple:
    """Return the addresses in a text such as '10.0.0.2:50052, desk:50052'; raise InputError."""
    addresses = [address.strip() for address in text.split(',') if address.strip()]
    for address in addresses:
        host, _, port = address.partition(':')
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError(
                f'rpc_servers is {text!r}; expected are host:port, separated by commas, such as '
                '127.0.0.1:50052'
            )
    return tuple(dict.fromkeys(addresses))


class _Connection:
    """The devices of a server; the connection is kept open by a backend on each."""

    def __init__(self, address: str):
        ask_for_version(address)
        add_server = rpc_function('ggml_backend_rpc_add_server', ctypes.c_void_p, ctypes.c_char_p)
        registry = add_server(address.encode())
        count = lib.backend_reg_dev_count(registry) if registry else 0
        if not count:
            raise EngineError(
                f'the RPC server {address} offers no device. Start it with one that it has'
            )
        self.devices = [lib.backend_reg_dev_get(registry, index) for index in range(count)]
        for device in self.devices:
            weakref.finalize(self, lib.backend_free, lib.backend_dev_init(device, None))


def connected_servers() -> list:
    """Return the addresses of the servers that this process is connected to."""
    return sorted(_connections)


def _connect(address: str) -> _Connection:
    with _connecting:
        found = _connections.get(address)
        if found is None:
            found = _connections[address] = _Connection(address)
        return found


def rpc_function(name: str, result, *arguments):
    """Return a function of llama.cpp's RPC backend; EngineError if it was built without."""
    registry = lib.backend_reg_by_name(b'RPC')
    if not registry:
        raise EngineError(
            'llama.cpp was built without its RPC backend, which rpc_servers needs. Build it '
            'with CMAKE_ARGS="-DGGML_RPC=on" (make build does), or leave rpc_servers empty'
        )
    address = lib.backend_reg_get_proc_address(registry, name.encode())
    return ctypes.CFUNCTYPE(result, *arguments)(address)


def ask_for_version(address: str) -> None:
    """Raise if no server of this protocol answers there."""
    host, _, port = address.partition(':')
    try:
        # By IPv4, as ggml does.
        with socket.create_connection((socket.gethostbyname(host), int(port)), TIMEOUT_S) as peer:
            peer.settimeout(TIMEOUT_S)
            answer = _greet(peer, address)
    except (OSError, UnicodeError) as error:
        raise ServerAwayError(
            f'the RPC server {address} cannot be reached ({in_words(error)}). Start it there, or '
            'correct rpc_servers'
        ) from None
    size, *version = _ANSWER.unpack(answer)[:4] if len(answer) == _ANSWER.size else (0, 0)
    if size != _ANSWER.size - 8:
        raise EngineError(
            f'{address} of rpc_servers does not answer as an RPC server of llama.cpp '
            f'{".".join(map(str, PROTOCOL))} does. Correct the address, or install {PINNED} there '
            'too'
        )
    if tuple(version)[0] != PROTOCOL[0] or version[1] > PROTOCOL[1]:
        raise EngineError(
            f'the RPC server {address} speaks version {".".join(map(str, version))}, this '
            f'llama.cpp {".".join(map(str, PROTOCOL))}. Install {PINNED} on both machines'
        )


def _greet(peer: socket.socket, address: str) -> bytes:
    """Say hello; return what comes back until it is enough or the peer hangs up."""
    peer.sendall(struct.pack(f'<BQ{_CAPABILITIES}x', _HELLO, _CAPABILITIES))
    answer = b''
    try:
        while len(answer) < _ANSWER.size and (more := peer.recv(_ANSWER.size - len(answer))):
            answer += more
    except TimeoutError:
        raise ServerAwayError(
            f'the RPC server {address} takes connections and does not answer: it serves one '
            'process at a time. End the other one, start a server for each, or run the nodes in '
            'one process (composed:=true)'
        ) from None
    except ConnectionError:
        pass  # hung up: no server of this protocol
    return answer


def _explain_abort(message: str) -> str:
    """Return what an abort of ggml means for who reads the log; '' for other than RPC's."""
    servers = connected_servers()
    if 'RPC' not in message or not servers:
        return ''
    return (
        f'An RPC server of rpc_servers ({", ".join(servers)}) has ended, or is no '
        'longer reached. Start it again: the process that launch starts anew connects to it'
    )


library.explain_abort(_explain_abort)
