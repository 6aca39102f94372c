"""The page of a person's own account: changes the password, and lists and ends sessions."""

import os
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Form
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from feedback.accounts import sessions, users
from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.errors import Refused
from feedback.numerals import natural
from ui.accounts.auth import Person, open_session, session_of
from ui.accounts.dependencies import TheStore
from ui.accounts.login import OWNER_PASSWORD, Logins, headers_of
from ui.accounts.passwords import LEAST, require_usable
from ui.prefix import prefix_of
from ui.refusals import Forbidden, NotLoggedIn, status_of, template

OTHERS = "others"  # as a session to end: all but this browser's

router = APIRouter(prefix="/account", include_in_schema=False)


@router.get("")
def account(request: Request, user: Person, store: TheStore) -> Response:
    """The page, or a redirect to the chat where there are no accounts."""
    if user.password_hash is None:
        return RedirectResponse(f"{prefix_of(request)}/", 303)
    return page(request, store, user)


@router.post("/password")
async def change_password(
    request: Request,
    user: Person,
    store: TheStore,
    current: Annotated[str, Form()] = "",
    new: Annotated[str, Form()] = "",
    again: Annotated[str, Form()] = "",
) -> Response:
    """Change the password and log out everywhere else, or show the page again with what was wrong."""
    logins: Logins = request.app.state.logins
    try:
        require_changeable(user)
        if new != again:
            raise Refused("the two new passwords differ")
        require_usable(new, user.name)
        await require_own(logins, request, user, current)
        if new == current:
            raise Refused("the new password is the old one")
        hashed = await logins.hash(request, new)
        await to_thread.run_sync(changed, request, store, user, hashed)
    except Refused as error:
        return await to_thread.run_sync(page, request, store, user, error)
    done = "your password is changed; you are logged out everywhere else, and your API tokens no longer work"
    response = await to_thread.run_sync(page, request, store, user, None, done)
    logins.know(request, response, user)
    return response


@router.post("/sessions")
def end_session(request: Request, user: Person, store: TheStore, session: Annotated[str, Form()] = "") -> Response:
    """End one session, or all others."""
    here = session_of(request)
    try:
        if session == OTHERS:
            count = sessions.end_all(store, user, but=here.id if here else None)
            done = f"logged out of {count} other{'' if count == 1 else 's'}"
        elif (number := natural(session)) is not None:
            sessions.end(store, user, number)
            done = "logged out there"
        else:
            raise Refused("say which session to end")
    except Refused as error:
        return page(request, store, user, error)
    return page(request, store, user, None, done)


def require_changeable(user: User) -> None:
    """Raises `Refused` when there is no password, or it is set by the environment."""
    if user.password_hash is None:
        raise Refused("without accounts there is no password to change")
    if user.name == users.OWNER and any(os.environ.get(f"{OWNER_PASSWORD}{end}") for end in ("", "_FILE")):
        raise Refused(f"this password is set by {OWNER_PASSWORD} where the server is started; change it there")


async def require_own(logins: Logins, request: Request, user: User, current: str) -> None:
    """Raises `Forbidden` unless this is the person's password, and `TooMany` as logging in does."""
    try:
        await logins.check(request, user.name, current)
    except NotLoggedIn as error:
        raise Forbidden("this is not your current password") from error


def changed(request: Request, store: Database, user: User, hashed: str) -> None:
    """Save the new password and end all sessions; a browser's request gets a new one."""
    users.set_password(store, user.name, hashed, user.id)
    if session_of(request):
        open_session(request, user)
        request.state.session = sessions.of(store, user)[0]


def page(request: Request, store: Database, user: User, error: Refused | None = None, done: str = "") -> Response:
    """The page, with what was wrong or what was done."""
    facts: dict[str, Any] = {
        "prefix": prefix_of(request),
        "user": user,
        "sessions": sessions.of(store, user),
        "here": getattr(session_of(request), "id", None),
        "least": LEAST,
        "tokens": users.count_tokens(store, user),
        "error": str(error or ""),
        "done": done,
    }
    status = status_of(error) if error else 200
    return HTMLResponse(template("account.html").render(facts), status, headers_of(error))
