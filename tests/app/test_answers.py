"""What gradio's queue keeps for a session, with gradio's own."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sidestep.app.sessions import Sessions
from sidestep.app.studio import Studio

pytest.importorskip("gradio", reason="the page's extra is not installed")

from fastapi import Request
from gradio.data_classes import PredictBodyInternal
from gradio.server_messages import HeartbeatMessage

from sidestep.app import answers
from sidestep.app.page import build_page


def test_what_nobody_reads_is_counted_and_forgotten_with_its_session(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        page = build_page(studio, Sessions(studio, tmp_path), [])
        queue: Any = page._queue
        number = next(i for i, each in page.fns.items() if each.queue)
        for session in ("one", "two"):
            body = PredictBodyInternal(session_hash=session, fn_index=number, data=[])
            told, _, _ = await queue.push(body, Request({"type": "http"}), None)
            assert told
        events = {event.session_hash: event for event in queue.event_ids_to_events.values()}
        sent = 0
        while not answers.are_unread(page, "one"):
            queue.send_message(events["one"], HeartbeatMessage())
            sent += 1
        assert 0.9 * answers.MAX_UNREAD < sent <= answers.MAX_UNREAD
        assert not answers.are_unread(page, "two")
        answers.forget(page, "one")
        answers.forget(page, "never was")
        assert not answers.are_unread(page, "one")
        queue.send_message(events["one"], HeartbeatMessage())  # is dropped
        assert list(queue.pending_messages_per_session) == list(queue.pending_event_ids_session) == ["two"]

    asyncio.run(run())


def test_answers_of_sessions_that_ended_are_swept(studio: Studio, tmp_path: Path) -> None:
    async def run() -> None:
        sessions = Sessions(studio, tmp_path)
        page = build_page(studio, sessions, [])
        queue: Any = page._queue
        number = next(i for i, each in page.fns.items() if each.queue)
        for session in ("ended", "asks again", "there"):
            body = PredictBodyInternal(session_hash=session, fn_index=number, data=[])
            await queue.push(body, Request({"type": "http"}), None)
        for event in list(queue.event_ids_to_events.values()):
            queue.send_message(event, HeartbeatMessage())
            if event.session_hash != "asks again":
                del queue.event_ids_to_events[event._id]  # as gradio does when it is over
        with sessions.use("there"):
            pass
        answers.sweep(page, sessions)
        kept = queue.pending_messages_per_session, queue.pending_event_ids_session
        assert [sorted(each) for each in kept] == [["asks again", "there"]] * 2
        sessions.end("there")
        answers.sweep(page, sessions)
        assert [list(each) for each in kept] == [["asks again"]] * 2
        queue.send_message(next(iter(queue.event_ids_to_events.values())), HeartbeatMessage())  # arrives

    asyncio.run(run())
