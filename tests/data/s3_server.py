"""An S3 server (moto's) as a process: `python s3_server.py PORT FOLDER`; bucket `jets` holds the files of the folder.

They are there before the port opens: a server that returns must never say that a file does not exist.
"""

import sys
from pathlib import Path

from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

port, folder = int(sys.argv[1]), Path(sys.argv[2])
backend = s3_backends["123456789012"]["aws"]
backend.create_bucket("jets", "us-east-1")
for path in sorted(folder.rglob("*")):
    if path.is_file():
        backend.put_object("jets", path.relative_to(folder).as_posix(), path.read_bytes())
run_simple("127.0.0.1", port, DomainDispatcherApplication(create_backend_app), threaded=True)
