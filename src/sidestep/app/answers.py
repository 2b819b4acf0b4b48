"""What gradio's queue keeps for a session: the answers that its page has not read yet."""

from typing import Any

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
