"""Tables as text."""


def as_text(rows: list[dict[str, str]], note: str = "") -> str:
    """Rows with the same columns, under their names, each column as wide as it needs to be.

    A note stands below them.
    """
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    lines = (dict(zip(widths, widths)), *rows)
    texts = ("  ".join(f"{line[key]:{w}}" for key, w in widths.items()) for line in lines)
    return "\n".join([*(text.rstrip() for text in texts), *filter(None, [note])])
