"""Reading the documentation's pages, and running what stands in their code blocks.

A page is one program: its ``python`` blocks run in their order, in one namespace. Comments steer it; CONTRIBUTING.md
has them. Run as a program (``python docs_pages.py PAGE``), it runs a page in a directory of its own, with the ``shop``
of the quickstart on an embedded broker and the loopback provider.
"""

from __future__ import annotations

import importlib
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_PIECE = re.compile(
    r"^<!-- (?P<comment>run|file|not run): *(?P<value>.*?)-->$"
    r"|^```(?P<language>[a-z]+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

# The deployments that the pages speak of, with answers that cost nothing.
CONFIG = """
[[deployment]]
name = "gpt-6.2-sol"
provider = "loopback"
options = { text = "Air scatters blue light more than red.", delay = 0.002 }

[[deployment]]
name = "gpt-6-luna"
provider = "loopback"
options = { echo = true }

[[deployment]]
name = "slow"
provider = "loopback"
options = { text = "and so on and so on and so on and so on and so on and so on", delay = 0.1 }
"""


@dataclass(frozen=True)
class Block:
    """A piece of code on a page.

    Attributes:
        language: ``python``, ``toml``, ``json``, ``sh``.
        code: the text.
        line: of its first line on the page.
        file: the file that it is to be written to; "" where it is to be run.
        runs: False: only to be compiled.
    """

    language: str
    code: str
    line: int
    file: str = ""
    runs: bool = True


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in their order."""
    text = page.read_text()
    file, runs = "", True
    for match in _PIECE.finditer(text):
        if match["comment"] == "file":
            file = match["value"].strip()
        elif match["comment"] == "not run":
            runs = False
        else:
            hidden = match["comment"] == "run"
            code = match["value"] if hidden else match["code"]
            line = text.count("\n", 0, match.start("value" if hidden else "code")) + 1
            yield Block("python" if hidden else match["language"], code, line, file, runs)
            file, runs = "", True


def run_page(page: Path) -> None:
    """Run a page's Python blocks in the current directory."""
    from remote_inference.worker.embedded import EmbeddedWorker

    Path("inference.toml").write_text(CONFIG)
    (source,) = [block for block in blocks(ROOT / "docs" / "quickstart.md") if block.file == "shop.py"]
    Path("shop.py").write_text(source.code.replace("amqp://", "embedded://docs"))
    sys.path.insert(0, ".")
    import shop  # what the line above has written

    shop.app.conf.update(result_backend="cache+memory://", broker_connection_retry_on_startup=True)
    for block in blocks(page):  # before the worker starts: it looks for its tasks then
        if block.file.endswith(".py") and block.file != "shop.py":
            Path(block.file).write_text(block.code)
            importlib.import_module(block.file.removesuffix(".py"))
        elif block.file.endswith(".json"):
            Path(block.file).parent.mkdir(exist_ok=True)
            Path(block.file).write_text(block.code)
    namespace: dict[str, object] = {"__name__": "page", "inference": shop.inference}
    queues = ["celery", *(d.queue for d in shop.inference.config.deployments.values())]
    with EmbeddedWorker(shop.app, concurrency=8, queues=queues):
        for block in blocks(page):
            if block.language == "python" and block.runs and not block.file:
                code = "\n" * (block.line - 1) + textwrap.dedent(block.code)
                exec(compile(code, str(page), "exec"), namespace)
    shop.inference.close()


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
