"""Golden files: a spec is compared with the JSON beside the tests, whole.

`ZOS_UPDATE_GOLDEN=1` writes what is there now; the difference is then for a reader to judge.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "golden"


def check(name: str, value: Any) -> None:
    file = HERE / f"{name}.json"
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("ZOS_UPDATE_GOLDEN"):
        HERE.mkdir(exist_ok=True)
        file.write_text(text)
    assert json.loads(file.read_text()) == json.loads(text)
