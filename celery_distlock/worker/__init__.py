"""What supervises locked tasks from the worker's main process.

``steps`` adds it to the worker, ``request`` is the task request it hooks into, ``warden`` keeps the table of what
runs where, ``children`` knows when a child is dead, ``abort`` kills the right one, ``copies`` parks messages
delivered twice, ``reaping`` has the pool notice a death at once, ``visibility`` keeps the broker from delivering them
twice.
"""

from celery_distlock.worker.request import SupervisedRequest
from celery_distlock.worker.warden import Warden

__all__ = ["SupervisedRequest", "Warden"]
