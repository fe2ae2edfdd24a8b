"""Tasks under the name they had; the code is in `data.tasks`."""

from ..data.tasks import Task, encode, load_task

__all__ = ["Task", "encode", "load_task"]
