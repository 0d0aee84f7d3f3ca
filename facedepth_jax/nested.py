"""Nested dictionaries as flat ones with dotted names."""


def flatten(values: dict, prefix: str = "") -> dict:
    """Return {"a.b": 1} for {"a": {"b": 1}}; an empty dictionary inside stays as a value."""
    flat = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat


def differing_keys(a: dict, b: dict) -> list[str]:
    """Return the sorted dotted names of the entries whose values differ, or that only one of both has."""
    a, b = flatten(a), flatten(b)
    return sorted(key for key in a.keys() | b.keys() if key not in a or key not in b or a[key] != b[key])
