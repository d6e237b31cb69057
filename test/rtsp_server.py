# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""An RTSP camera for tests: GStreamer's server plays a Matroska file to each who connects.

    /usr/bin/python3 rtsp_server.py PORT FILE [USER:PASSWORD]

Runs in the system's Python, to which Debian's packages belong: gir1.2-gst-rtsp-server-1.0,
python3-gi, gstreamer1.0-plugins-good. Prints the port (PORT may be 0) once it listens on
127.0.0.1. The file is at /h264 (with its audio) or at /jpeg, as its images are coded.
"""

import sys

import gi

gi.require_version('Gst', '1.0')
gi.require_version('GstRtsp', '1.0')
gi.require_version('GstRtspServer', '1.0')
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

DEMUXER = 'filesrc location="{file}" ! matroskademux name=file file. ! queue'
PIPELINES = {
    '/h264': f'( {DEMUXER} ! h264parse ! rtph264pay config-interval=1 pt=96 name=pay0 '
    'file. ! queue ! audioconvert ! audio/x-raw,format=S16BE ! rtpL16pay pt=97 name=pay1 )',
    '/jpeg': f'( {DEMUXER} ! rtpjpegpay pt=26 name=pay0 )',
}
ROLE, ACCESS = 'user', ('media.factory.access', 'media.factory.construct')


def main(port: str, file: str, credentials: str = '') -> None:
    """Serve until a signal."""
    Gst.init(None)
    server = GstRtspServer.RTSPServer(address='127.0.0.1', service=port)
    for path, pipeline in PIPELINES.items():
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(pipeline.format(file=file))
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_role(ROLE)
        for access in ACCESS:
            permissions.add_permission_for_role(ROLE, access, True)
        if credentials:
            factory.set_permissions(permissions)
        server.get_mount_points().add_factory(path, factory)
    if credentials:
        server.set_auth(password_for(*credentials.split(':')))
    if not server.attach(None):
        sys.exit(f'port {port} cannot be had')
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


def password_for(user: str, password: str):
    """Return what lets one user in, by a digest."""
    token = GstRtspServer.RTSPToken()
    token.set_string('media.factory.role', ROLE)
    auth = GstRtspServer.RTSPAuth()
    auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
    auth.add_digest(user, password, token)
    return auth


if __name__ == '__main__':
    main(*sys.argv[1:])
