"""The test harness: real servers, real workers, real faults.

Everything is a fixture (``tests/conftest.py``); what a fixture returns is documented in its own module here.

============================ ====================================================================================
``redis_url``                the URL (str) of an empty Redis database for locks
``databases``                ``.broker .results .locks``: three empty databases of the run's shared ``.server``
``private_redis(**options)`` a :class:`~.redis_server.RedisServer` the test may break: ``.stop() .kill() .restart()
                             .freeze() .thaw() .client(db=0, **options) .url .url_of(db) .socket_url .host .port``;
                             options: ``options=[…]``, ``password=``, ``replica_of=``, ``unix_socket=True``
``rabbitmq_url``             the URL of an empty virtual host of the run's RabbitMQ (``rabbitmq``)
``zookeeper_url``            the URL of an empty chroot of the run's standalone ZooKeeper (``zookeeper_server``)
``private_zookeeper(…)``     a :class:`~.zookeeper_server.ZooKeeperServer` the test may break: ``.stop() .kill()
                             .restart(without_data=False) .freeze() .thaw() .url .hosts .fresh_chroot()
                             .client(chroot, **options) .command("mntr") .mode .sessions() .expire(client)``; options:
                             ``tick=0.2``, ``max_session=60.0``, ``config=["…=…"]``, ``users={name: password}`` (SASL),
                             ``tls="server"|"client"`` (``.tls_port .certificates``)
``ensemble``                 the run's :class:`~.zookeeper_ensemble.ZooKeeperEnsemble` of three, which the test may
                             break: ``.servers .leader() .followers() .kill(*servers) .lose_quorum()
                             .losing_leaders() .restore() .expire(client) .url .hosts .fresh_chroot() .client()``;
                             whole again after the test
``ensemble_url``             the URL of an empty chroot of it, naming every member
``proxy(server)``            a :class:`~.proxy.Proxy` in front of it: ``.url(url)``, ``.cut() .refuse() .accept()
                             .pause("server"|"client") .resume() .delay(seconds, …) .half_close(to)``;
                             ``.swallow_reply(b"EVALSHA")`` and ``.swallow_request(…)`` return a
                             :class:`~.proxy.Fault` with ``.wait()``, ``.happened``, ``.request``
``journal``                  a :class:`~.journal.Journal`: ``.wait_for(event, count=1, timeout=20, **fields)``,
                             ``.entries(event, **fields)``, ``.runs(key)``, ``.overlaps(key)``, ``.died(pid)``
``settings``                 :class:`~.workers.Settings` (broker, results, locks, journal, conf); ``.with_conf({…})``,
                             ``.with_broker(url)``, ``dataclasses.replace``
``worker(module, …)``        start a :class:`~.workers.Worker` and wait until it is ready; arguments ``settings, pool,
                             concurrency, queues, options, env, name, may_log, conf, wait``. It has ``.pid
                             .children() .log .wait_for_log(regex) .stop_warm() .stop_cold() .kill() .kill_all()
                             .freeze() .thaw()``. Ended after the test, which fails if the log shows a traceback or
                             CRITICAL that ``may_log`` (regular expressions) does not cover
``load(module, conf=…)``     the test's own copy of an application's module: ``load(APP).work.delay()``
============================ ====================================================================================

Applications live in ``tests/worker/apps``: ``app = make_app(__name__)`` (:mod:`.apps`) and tasks that tell what they
do::

    @app.task(base=LockedTask, bind=True)
    def work(self, key: str, seconds: float = 0.0) -> None:
        with running(key, id=self.request.id, owner=self.lock.owner, fence=self.lock.fence):
            time.sleep(seconds)

    def test_two_tasks_of_one_key_never_overlap(worker: StartWorker, load: LoadApp, journal: Journal) -> None:
        worker(APP, conf={"distlock_ttl": 1.0})
        worker(APP, conf={"distlock_ttl": 1.0})
        tasks = load(APP, conf={"distlock_ttl": 1.0})
        results = [tasks.work.delay("a", 0.1) for _ in range(10)]
        journal.wait_for("end", count=10, key="a")
        assert journal.overlaps() == []

Whether two holders ever believed in one lock at once, whatever was broken meanwhile, is told by a
:class:`~.contest.Contest` of processes: ``.holder() .everybody_holds_again() .check() .end()``.

For anything else: :func:`.waiting.eventually` ``(predicate, timeout, what)``, :class:`.process.Process`, and
:func:`.process.is_running`. A missing server skips a test with a reason; with ``CI`` in the environment it fails it.
``pytest --locks zookeeper`` runs the workers' tests with locks in ZooKeeper, but for those marked ``locks_in_redis``.
Every test has workers of its own, and waits for the journal, a log or a result; it never sleeps.
"""
