"""Run Python commands as forks of one process that has loaded their libraries, to save the imports.

    with warm_python(sys.executable, ["tensorflow", "keras"]) as python:
        subprocess.run([*python, "script.py", "--option"])  # like [sys.executable, "script.py", "--option"]

Arguments, current folder, environment, streams and exit code are those of the command, and each command has a separate
process that has loaded nothing of this suite. This is for tests of what commands do; other tests start scripts as new
processes, to show that they start without preloaded libraries.
"""

import contextlib
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time

SECONDS_TO_START = 120
MOST_BYTES = 1 << 20  # of a command with its environment


@contextlib.contextmanager
def warm_python(executable, libraries, environment=None):
    """Load libraries in a process, and yield the words that replace `executable` in front of a command.

    Args:
        executable: The Python that runs the commands, from this or another environment.
        libraries: Names of modules to load beforehand.
        environment: Variables of that process, by default those of this one; commands have their own.
    """
    with tempfile.TemporaryDirectory() as folder:
        address = os.path.join(folder, "warm")
        command = [str(executable), __file__, "--serve", address, *libraries]
        server = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            began = time.monotonic()
            while not os.path.exists(address):
                if server.poll() is not None or time.monotonic() - began > SECONDS_TO_START:
                    raise RuntimeError(f"{executable} does not start with {', '.join(libraries)}")
                time.sleep(0.05)
            yield [str(executable), "-I", "-S", __file__, address]
        finally:
            server.terminate()
            server.wait()


def serve(address, libraries):
    """Run commands one after another, each in a fork."""
    for name in libraries:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{address}.new")
        server.listen()
        os.rename(f"{address}.new", address)  # ready once it answers
        while True:
            connection, _ = server.accept()
            with connection:
                message, streams, _, _ = socket.recv_fds(connection, MOST_BYTES, 3)
                if not (child := os.fork()):
                    server.close()
                    connection.close()
                    become(json.loads(message), streams)
                for stream in streams:
                    os.close(stream)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                with contextlib.suppress(BrokenPipeError):  # the client has gone
                    connection.sendall(json.dumps(code).encode())


def become(command, streams):
    """Run a command in this process as Python would, and end the process with its exit code."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(command["environment"])
    os.chdir(command["folder"])
    code = 1
    try:
        run(command["words"])
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:  # as Python itself ends
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(words):
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, os.path.dirname(os.path.abspath(words[0]))
        runpy.run_path(words[0], run_name="__main__")


def ask(address, words):
    """Ask for a command to be run with the streams of this process; returns its exit code."""
    command = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [json.dumps(command).encode()], [0, 1, 2])
        return json.loads(connection.recv(100))


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        raise SystemExit(ask(sys.argv[1], sys.argv[2:]))
