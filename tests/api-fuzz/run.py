"""Runs schemathesis against the running program and checks its responses against /openapi.json.

This does not test delivery. The downstream exists so that events reach every status.
Usage: run.py PROGRAM FOLDER, with schemathesis installed for this Python. The exit code is not zero
if there is a finding. API_FUZZ_SEED sets another seed.
"""

import http.server
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request

SEED = os.environ.get("API_FUZZ_SEED", "20261125")
HERE = pathlib.Path(__file__).parent
# The downstream's response status for each source. `slow` keeps an event in `processing` for a
# while.
STATUS_CODES = {"taken": 200, "refused": 422, "failing": 503, "slow": 200, "restamping": 200, "named": 200}
OWN_HEADER = "X-Own-Key"
# The statuses that an operation must have answered with, so that the run counts as a test, beyond
# those of every operation: success, and 404 if its path has a parameter.
WANTED = {
    ("POST", "/webhooks/{source}"): {400, 422},
    ("PUT", "/webhooks/{source}"): {405},
    ("GET", "/events"): {400},
    ("GET", "/events/{id}"): {400},
    ("HEAD", "/events/{id}"): {400},
    ("POST", "/events/{id}/redrive"): {400, 409},
    ("POST", "/redrive"): {400},
    ("POST", "/events/{id}/discard"): {400},
    ("POST", "/discard"): {400},
}

CONFIGURATION = """
listen = "{address}"
database = "sqlite:{folder}/surehook.db"
drain_timeout = "2s"
[intake]
max_body = "64KiB"
[defaults]
timeout = "10s"
max_attempts = 2
initial_delay = "1s"
max_delay = "1s"
[sources.taken]
destination = "{sink}/taken"
[sources.refused]
destination = "{sink}/refused"
[sources.failing]
destination = "{sink}/failing"
[sources.slow]
destination = "{sink}/slow"
[sources.restamping]
destination = "{sink}/restamping"
on_key_reuse = "first_wins"
[sources.named]
destination = "{sink}/named"
idempotency_key = "header:{own_header}"
"""


class Downstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        source = self.path.strip("/")
        if source == "slow":
            time.sleep(2)
        self.send_response(STATUS_CODES[source])
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"\xff\x00\xff\x00" if source == "refused" else b"note")

    def log_message(self, *_):
        pass


def main():
    program, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sink = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Downstream)
    sink.daemon_threads = True
    threading.Thread(target=sink.serve_forever, daemon=True).start()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:%d" % free.getsockname()[1]
    text = CONFIGURATION.format(
        address=address, folder=folder, sink="http://127.0.0.1:%d" % sink.server_port, own_header=OWN_HEADER
    )
    (folder / "surehook.toml").write_text(text)
    # On SIGTERM, stop the program too, as on an interrupt.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    with open(folder / "surehook.log", "wb") as log:
        service = subprocess.Popen([program, "serve", "--config", folder / "surehook.toml"], stderr=log, cwd=folder)
    try:
        base = f"http://{address}"
        document = wait_for(service, base, folder)
        configuration = (HERE / "schemathesis.toml").read_text().replace("DEAD_LETTER", dead_letter(base))
        (folder / "schemathesis.toml").write_text(configuration)
        found = schemathesis(base, document, folder, "every-operation", folder / "schemathesis.toml", [])
        # A source may read its key from another header. The document tells its readers to put that
        # name in place of the default.
        renamed = json.loads(json.dumps(document).replace('"name": "Idempotency-Key"', f'"name": "{OWN_HEADER}"'))
        assert renamed != document, "the document does not name the default header"
        only = ["--include-operation-id", "postWebhook"]
        found |= schemathesis(base, renamed, folder, "own-header", HERE / "own-header.toml", only)
        found |= unseen(document, folder, "every-operation")
        if service.poll() is not None:
            print(f"the program ended with {service.returncode}: see {folder}/surehook.log")
            found = True
    finally:
        stopped = stop(service)
    if stopped != 0:
        print(f"the program exited with {stopped}: see {folder}/surehook.log")
    if found or stopped != 0 or b"panicked" in (folder / "surehook.log").read_bytes():
        sys.exit(f"findings: the requests are in {folder}, the seed was {SEED}")
    print(f"no findings; the seed was {SEED}")


def wait_for(service, base, folder):
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(base + "/ready", timeout=5).close()
            with urllib.request.urlopen(base + "/openapi.json", timeout=5) as answer:
                return json.load(answer)
        except OSError as error:
            if service.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the program is not ready ({error}): see {folder}/surehook.log")
            time.sleep(0.1)


def dead_letter(base):
    """Posts an event that its destination refuses. Returns its id."""
    post = urllib.request.Request(base + "/webhooks/refused", b"refused", {"Idempotency-Key": "dead-letter"}, method="POST")
    with urllib.request.urlopen(post, timeout=5) as answer:
        event = json.load(answer)["event_id"]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{base}/events/{event}", timeout=5) as answer:
            if json.load(answer)["status"] == "dead_lettered":
                return event
        time.sleep(0.1)
    sys.exit(f"the event {event} is not dead-lettered")


def schemathesis(base, document, folder, name, configuration, more):
    """Runs schemathesis once. Returns whether there are findings."""
    described = folder / f"{name}.json"
    described.write_text(json.dumps(document))
    print(f"--- {name}: seed {SEED}", flush=True)
    command = [pathlib.Path(sys.executable).with_name("schemathesis"), "--config-file", configuration, "run", described]
    command += ["--url", base, "--seed", SEED, "--report-har-path", folder / f"{name}.har", *more]
    # The configuration bounds the number of examples. The timeout is for a program that hangs.
    return subprocess.run(command, cwd=folder, timeout=600).returncode != 0


def wanted(document):
    """The statuses that each operation of the document must have answered with."""
    wanted = {operation: set(statuses) for operation, statuses in WANTED.items()}
    for path, item in document["paths"].items():
        for method in item.keys() - {"parameters"}:
            success = {int(status) for status in item[method]["responses"] if status.isdigit() and status.startswith("2")}
            unknown = {404} if "{" in path else set()
            wanted.setdefault((method.upper(), path), set()).update(success | unknown)
    return wanted


def template(document, path):
    """The path of the document that a requested path has, or the requested path if there is none."""
    segments = path.rstrip("/").split("/")
    for known in document["paths"]:
        parts = known.split("/")
        if len(parts) == len(segments) and all(p == s or p.startswith("{") for p, s in zip(parts, segments)):
            return known
    return path


def unseen(document, folder, name):
    """Whether the run missed a response that it must have seen.

    Without this check, a run whose requests are all refused would pass.
    """
    seen = {}
    for entry in json.loads((folder / f"{name}.har").read_text())["log"]["entries"]:
        path = template(document, urllib.parse.urlsplit(entry["request"]["url"]).path)
        seen.setdefault((entry["request"]["method"], path), set()).add(entry["response"]["status"])
    missed = False
    for operation, statuses in sorted(wanted(document).items()):
        answered = seen.get(operation, set())
        print(*operation, "answered", *sorted(answered))
        if missing := statuses - answered:
            print(*operation, "was never answered", *sorted(missing))
            missed = True
    return missed


def stop(service):
    service.terminate()
    try:
        return service.wait(30)
    except subprocess.TimeoutExpired:
        service.kill()
        return service.wait()


main()
