"""A scoring script behind HTTP as Microsoft's inference server has it, in the Python of the tests: up in a second.

The script named by AZUREML_ENTRY_SCRIPT is loaded by its path, `init` is called once, `run` with each body of a POST.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def main(port: int) -> None:
    spec = importlib.util.spec_from_file_location("score", os.environ["AZUREML_ENTRY_SCRIPT"])
    assert spec is not None
    assert spec.loader is not None
    score = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(score)
    score.init()

    class Scores(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(200, {"status": "Healthy"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            try:
                self._answer(200, score.run(body))
            except Exception as failure:  # as the server does: whatever a script raises is its answer
                self._answer(500, {"message": repr(failure)})

        def _answer(self, status: int, content: object) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    ThreadingHTTPServer(("127.0.0.1", port), Scores).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
