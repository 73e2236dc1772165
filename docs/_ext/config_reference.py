"""The tables of the configuration reference, made from the dataclasses when the pages are built."""

from __future__ import annotations

import importlib
import re
from typing import Any

from config_fields import rows
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

__all__ = ["setup"]


class ConfigTable(SphinxDirective):
    """``{config-table} remote_inference.config.Deployment``: one row a field."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        self.env.note_dependency(importlib.import_module(cls.__module__).__file__ or "")
        table = ["| Field | Value | Default | |", "|---|---|---|---|"]
        for row in rows(cls):
            text = re.sub(r"``(.+?)``", r"`\1`", row.text).replace("|", "\\|")
            table.append(f"| `{row.name}` | {row.kind} | {row.default} | {text[:1].upper()}{text[1:]} |")
        holder = nodes.section()
        self.state.nested_parse(StringList(table, self.get_source_info()[0]), self.content_offset, holder)
        return holder.children


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.add_directive("config-table", ConfigTable)
    return {"parallel_read_safe": True, "version": "1"}
