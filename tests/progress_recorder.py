"""A progress that remembers what it was told."""

from __future__ import annotations

from growtas.progress import Progress


class Recorder(Progress):
    """Lists stages (name, total), notes and events, and counts the units that are done."""

    def __init__(self):
        self.stages, self.notes, self.events, self.done = [], [], [], 0

    def stage(self, name, total=None):
        self.stages.append((name, total))

    def advance(self, count=1):
        self.done += count

    def note(self, text):
        self.notes.append(text)

    def event(self, event):
        self.events.append(event)
