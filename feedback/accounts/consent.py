"""The consent rule, as SQL: whether a piece of feedback may be used.

Both the rater and the owner of the conversation must have said yes; the newest answer of each counts, and no answer is
a no. An owner may say no for a single conversation. An imported conversation has no owner to ask. Every query that
reads feedback in bulk must apply this rule.
"""


def given(user: str) -> str:
    """SQL: whether a person consents to the use of their words; `user` is a column with their id."""
    return f"coalesce((SELECT given FROM consents WHERE user = {user} ORDER BY id DESC LIMIT 1), 0)"


def shared(conversation: str) -> str:
    """SQL: whether a conversation's words may be used; `conversation` is the alias of its row."""
    owner = f"({conversation}.source = 'import' OR {given(f'{conversation}.user')})"
    newest = f"SELECT given FROM conversation_consents WHERE conversation = {conversation}.id ORDER BY id DESC LIMIT 1"
    return f"({owner} AND coalesce(({newest}), 1))"


def usable(user: str, conversation: str) -> str:
    """SQL: whether a person's feedback on a conversation may be used; takes a column and an alias."""
    return f"({given(user)} AND {shared(conversation)})"
