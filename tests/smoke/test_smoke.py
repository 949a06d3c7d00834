"""A locked task in a small but complete system, set up by pytest-celery."""

from __future__ import annotations

from pytest_celery import RESULT_TIMEOUT, CeleryTestSetup, CeleryTestWorker

from tests.smoke.tasks import charge, charge_slowly
from tests.support.waiting import eventually


def test_a_locked_task_is_run_by_one_of_the_workers(celery_setup: CeleryTestSetup) -> None:
    names = {worker.hostname() for worker in celery_setup.worker_cluster}
    assert len(names) == 2
    done = charge.delay("order 1").get(timeout=RESULT_TIMEOUT)
    assert done["node"] in names
    assert done["fence"] > 0


def test_a_locked_task_of_a_killed_worker_is_run_by_the_other(celery_setup: CeleryTestSetup) -> None:
    workers: list[CeleryTestWorker] = list(celery_setup.worker_cluster)
    result = charge_slowly.delay("order 2")

    def first() -> CeleryTestWorker | None:
        return next((worker for worker in workers if "charging order 2" in worker.logs()), None)

    killed = eventually(first, 20, "the start of the task", every=0.1)
    assert killed is not None
    killed.kill()
    workers.remove(killed)

    def is_done() -> bool:
        # Before kombu 5.7, the other worker may look for overdue messages a hundred seconds later.
        with celery_setup.app.connection() as connection, connection.channel() as channel:
            channel.qos.restore_visible(interval=1)
        return bool(result.ready())

    eventually(is_done, RESULT_TIMEOUT, "the result", every=0.5)
    done = result.get()
    assert done["node"] == workers[0].hostname()
    assert done["fence"] > 0
