"""May a piece of feedback be used? It has two owners: who gave it, and whose conversation it is of.

Both must have said yes, and the newest answer of each counts; no answer is a no. Of a conversation its owner may say no
whatever else they allow. An imported conversation has no owner. Every query that reads feedback in bulk asks this.
"""


def given(user: str) -> str:
    """SQL: whether a person lets their words be used; `user` is a column that names them."""
    return f"coalesce((SELECT given FROM consents WHERE user = {user} ORDER BY id DESC LIMIT 1), 0)"


def shared(conversation: str) -> str:
    """SQL: whether what is said in a conversation may be used; `conversation` is the alias of its row."""
    owner = f"({conversation}.source = 'import' OR {given(f'{conversation}.user')})"
    newest = f"SELECT given FROM conversation_consents WHERE conversation = {conversation}.id ORDER BY id DESC LIMIT 1"
    return f"({owner} AND coalesce(({newest}), 1))"


def usable(user: str, conversation: str) -> str:
    """SQL: whether what a person says of a conversation may be used; a column, and an alias."""
    return f"({given(user)} AND {shared(conversation)})"
