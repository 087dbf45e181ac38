"""The values of a recipe as TOML, which the standard library reads and does not write."""

import json
from collections.abc import Mapping
from typing import Any


def to_toml(table: Mapping[str, Any], path: str = "") -> str:
    """Scalars, arrays, tables and arrays of tables; what is None is left out, and so derived when it is read."""
    lines, tables = "", ""
    for key, value in table.items():
        inner = f"{path}{key}"
        if isinstance(value, Mapping):
            tables += f"\n[{inner}]\n{to_toml(value, inner + '.')}"
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            tables += "".join(f"\n[[{inner}]]\n{to_toml(row, inner + '.')}" for row in value)
        elif value is not None:
            # JSON's scalars and arrays are TOML's, but for one character that TOML wants escaped.
            lines += f"{key} = {json.dumps(value, ensure_ascii=False)}\n".replace("\x7f", "\\u007f")
    return lines + tables
