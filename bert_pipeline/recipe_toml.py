"""The values of a recipe as TOML, which the standard library reads and does not write."""

import json
from collections.abc import Mapping
from typing import Any

from bert_pipeline.printable import shows


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
            json_of_value = json.dumps(value, ensure_ascii=False)  # JSON's scalars and arrays are TOML's
            lines += f"{key} = {''.join(map(_shown, json_of_value))}\n"
    return lines + tables


def _shown(char: str) -> str:
    return char if shows(char) else f"\\U{ord(char):08x}"
