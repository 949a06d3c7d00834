"""What supervises locked tasks from the worker's main process.

``steps`` adds it to the worker, ``request`` is the task request it hooks into, ``warden`` keeps the table of what runs
where, a row of which is ``supervised``; ``children`` knows when a child is dead, ``abort`` kills the right one,
``unique`` keeps what unique messages hold while they run, ``limits`` watches how long a task may run, ``visibility``
keeps the broker from delivering messages twice, ``copies`` parks those that were, ``parking`` those that wait for
their turn (each a ``parked_request``, of each key in a ``row``), both on the ``shelf``, and ``slots`` counts who could
begin; ``loop`` leads into the consumer's thread, ``reaping`` has the pool notice a death at once, and ``commands``
answers ``celery inspect locks``.
"""

from celery_distlock.worker.request import SupervisedRequest
from celery_distlock.worker.warden import Warden

__all__ = ["SupervisedRequest", "Warden"]
