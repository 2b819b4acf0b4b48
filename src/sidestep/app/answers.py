"""What gradio's queue keeps for a session: the answers that its page has not read yet."""

from typing import Any

from sidestep.app.sessions import Sessions

MAX_UNREAD = 256  # messages, among them each step of the work; a page reads them as they come


def are_unread(page: Any, session: str) -> bool:
    """Whether too many wait to be read for more to be asked."""
    messages = page._queue.pending_messages_per_session.get(session)
    return messages is not None and messages.qsize() >= MAX_UNREAD


def forget(page: Any, session: str) -> None:
    """Drops a session's answers, and those to come. Gradio would keep a set for each name that was ever told."""
    queue = page._queue
    for number in queue.pending_event_ids_session.pop(session, ()):
        if (event := queue.event_ids_to_events.get(number)) is not None:
            event.alive = False
    queue.pending_messages_per_session.pop(session, None)


def sweep(page: Any, sessions: Sessions) -> None:
    """Drops the answers of all sessions that ended, unless one of their calls waits or is at work: it begins another
    session of the same name. To be called in the server's loop, as gradio locks nothing.
    """
    queue = page._queue
    for name in {*queue.pending_messages_per_session, *queue.pending_event_ids_session}:
        going_on = queue.pending_event_ids_session.get(name, set()) & queue.event_ids_to_events.keys()
        if not going_on and sessions.find(name) is None:
            forget(page, name)
