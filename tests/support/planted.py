"""Artifacts that somebody else wrote."""

import hashlib
import json

HASH = "0123456789abcdef"


def plant(folder, content, name="dense"):
    """Put this content in an artifact's place, with an index that vouches for it."""
    file = folder / "artifacts" / f"{name}.npz"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    entry = {
        "file": file.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "config_hash": HASH,
    }
    (folder / "artifacts" / "index.json").write_text(json.dumps({name: entry}))
    return file
