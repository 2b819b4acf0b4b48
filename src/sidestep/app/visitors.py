"""Who asks: each browser by a sealed cookie, programs by the token; and whose a session is."""

import hmac
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from sidestep.app.sessions import Sessions
from sidestep.errors import SidestepError

SHORTEST_TOKEN = 16  # characters; what is shorter can be found by trying
PROGRAM = ""  # the visitor that everybody is together who keeps no cookie
MAX_OWNED = 1024  # sessions whose owner is remembered, far more than there are at a time; gradio has room for 2000
MAX_EACH = 8  # sessions of a visitor at a time: a browser has one a tab
_NAME = re.compile(r"[A-Za-z0-9_-]{22}")  # of a visitor, as `token_urlsafe` makes one of 16 bytes


class Visitors:
    """Tells visitors apart, and lets no one in who does not know the token.

    A cookie holds a name that nobody guesses, and a seal. The seal is made with a key of the running server alone, and
    says that who has it was let in. Where everybody is, it is not asked for, and an open page outlives the server.
    """

    def __init__(self, token: str | None, cookie: str, sessions: Sessions, end: Callable[[str], None]) -> None:
        """
        Args:
            token: what lets in; None lets everybody in.
            cookie: its name. Browsers tell apart hosts and not ports, so two servers of one host need two names.
            sessions: an owner is remembered at least as long as there is the session.
            end: ends a session whose owner is forgotten, by its name.

        Raises:
            SidestepError: if the token is short, or cannot be sent whole in a header.
        """
        if token is not None and not (
            len(token.strip()) == len(token) >= SHORTEST_TOKEN and token.isascii() and token.isprintable()
        ):
            raise SidestepError(
                f"the token has to have {SHORTEST_TOKEN} or more letters and digits, and no blank around them; "
                "python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
            )
        self.asks = token is not None
        self.cookie = cookie
        self._token = token
        self._sessions, self._end = sessions, end
        self._key = secrets.token_bytes(32)
        self._owners: OrderedDict[str, str] = OrderedDict()

    def known(self, headers: Headers) -> str | None:
        """The visitor who sent these headers: None who was not let in yet, PROGRAM who has no cookie of ours."""
        name, _, seal = cookie_parser(headers.get("cookie", "")).get(self.cookie, "").partition(".")
        if _NAME.fullmatch(name) and (not self.asks or _same(seal, self._seal(name))):
            return name
        scheme, _, told = headers.get("authorization", "").partition(" ")
        if self.asks and not (scheme.lower() == "bearer" and self.admits(told.strip())):
            return None
        return PROGRAM

    def admits(self, told: str) -> bool:
        """Whether this is the token."""
        return self._token is not None and _same(told, self._token)

    def greet(self, secure: bool) -> str:
        """The header that gives a browser its cookie.

        Args:
            secure: whether it came encrypted, and is to send the cookie in no other way.
        """
        name = secrets.token_urlsafe(16)
        # Where none is asked for, whoever follows a link elsewhere without one would be given another.
        site = "Strict" if self.asks else "Lax"
        end = "; Secure" if secure else ""
        return f"{self.cookie}={name}.{self._seal(name)}; Path=/; HttpOnly; SameSite={site}{end}"

    def may_use(self, visitor: str, session: str) -> bool:
        """Whether a session is this visitor's; one that nobody used yet becomes it, in place of their oldest."""
        if session not in self._owners:
            own = [name for name, owner in self._owners.items() if owner == visitor]
            for name in own[: max(0, len(own) + 1 - MAX_EACH)]:
                self._forget(name)
            if len(self._owners) >= MAX_OWNED:
                self._forget(next(name for name in self._owners if self._sessions.find(name) is None))
            self._owners[session] = visitor
        self._owners.move_to_end(session)
        return self._owners[session] == visitor

    def _forget(self, session: str) -> None:
        self._end(session)
        del self._owners[session]

    def _seal(self, name: str) -> str:
        return hmac.digest(self._key, name.encode(), "sha256").hex()


def _same(one: str, other: str) -> bool:
    """Compares in a time that does not tell how much is right."""
    return hmac.compare_digest(one.encode(), other.encode())
