"""What lies in a folder."""


def contents(path):
    """Bytes of every file but the lock's."""
    return {
        str(each.relative_to(path)): each.read_bytes()
        for each in path.rglob("*")
        if each.is_file() and each.name != ".lock"
    }
