"""Plain YAML, read without aliases."""

from __future__ import annotations

from typing import Any

import yaml


class _PlainLoader(yaml.SafeLoader):
    """Reads plain data without aliases, by which a page of text can stand for more than memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            where = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not taken", where)
        return super().compose_node(parent, index)


def load_plain_yaml(text: str) -> Any:
    """Plain data from YAML; nothing is made or imported, and aliases are refused.

    Raises:
        yaml.YAMLError: If it is not YAML, or more than plain data.

    Example:
        >>> load_plain_yaml("a: [1, x]")
        {'a': [1, 'x']}
    """
    return yaml.load(text, _PlainLoader)  # noqa: S506  (it is a SafeLoader)
