"""Messages as Markdown in which HTML tags are text: `<b>` is shown as it was typed.

Gradio sanitises the rendered Markdown: it would drop unknown tags and obey known ones. An invisible character after
`<` prevents both. Code is left unchanged.
"""

import re

JOINER = "\u2060"  # invisible, no width
CODE = r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|``.+?``|`[^`\n]+`"
MATHS = r"\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)"
# Pandoc's rule to tell maths from prices: no space just inside the dollars, no digit after them.
DOLLARS = re.compile(rf"{CODE}|{MATHS}|(?<![\\$\w])\$(?=\S)(?P<inside>[^$\n]*?[^$\s\\])\$(?![$\w])", re.DOTALL)
PIECES = re.compile(rf"(?P<code>{CODE})|(?P<maths>{MATHS})|<(?=[a-zA-Z/!?])(?!https?://|mailto:)", re.DOTALL)


def without_tags(text: str) -> str:
    """Markdown that shows every tag of `text` as it was typed."""
    return PIECES.sub(_mended, text)


def with_maths(text: str) -> str:
    """Markdown with $x$ rewritten as \\(x\\), which Gradio renders; $5 and $10 stay money, and code stays code."""
    return DOLLARS.sub(lambda piece: rf"\({piece['inside']}\)" if piece["inside"] else piece[0], text)


def as_typed(shown: str) -> str:
    """The text as it was typed, from the text as it was shown."""
    return shown.replace(f"<{JOINER}", "<")


def _mended(piece: re.Match[str]) -> str:
    if piece["code"] is not None:
        return piece[0]
    if piece["maths"] is not None:
        return re.sub(r"<\s*", r"\\lt ", piece[0])  # Gradio puts formulas into the page as HTML
    return f"<{JOINER}"
