"""The harness can be trusted: servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import amqp
import psutil
import pytest
import redis

from tests.support.process import Process, is_running, leftovers
from tests.support.proxy import Proxy
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer
from tests.support.servers import Databases, missing
from tests.support.waiting import eventually

StartRedis = Callable[..., RedisServer]
StartProxy = Callable[[RedisServer], Proxy]


def test_a_server_starts_answers_and_stops(private_redis: StartRedis) -> None:
    server = private_redis(password="secret", unix_socket=True)
    with server.client(retry=None) as client:
        assert client.set("a", 1)
        assert server.socket is not None
        assert redis.Redis(unix_socket_path=str(server.socket), password="secret").get("a") == b"1"
        server.stop()
        with pytest.raises(redis.ConnectionError):
            client.ping()


def test_a_restarted_server_has_its_port_and_no_data(private_redis: StartRedis) -> None:
    server = private_redis()
    port = server.port
    with server.client() as client:
        client.set("a", 1)
        server.restart()
        assert client.get("a") is None
    assert server.port == port


def test_a_frozen_server_is_silent_until_it_is_thawed(private_redis: StartRedis) -> None:
    server = private_redis()
    with server.client(socket_timeout=1.0, retry=None) as client:
        assert client.ping()
        server.freeze()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.thaw()
    with server.client() as client:
        assert client.ping()


def test_a_replica_follows_its_primary(private_redis: StartRedis) -> None:
    primary = private_redis(password="secret")
    replica = private_redis(replica_of=primary)
    with primary.client() as writer, replica.client() as reader:
        writer.set("a", 1)
        eventually(lambda: reader.get("a") == "1", 15, "replication")


def test_databases_are_empty_and_apart(databases: Databases) -> None:
    assert len({databases.broker, databases.results, databases.locks}) == 3
    for url in (databases.broker, databases.results, databases.locks):
        with redis.Redis.from_url(url) as client:
            assert client.dbsize() == 0
            client.set("left", "over")


def test_rabbitmq_lets_clients_in(rabbitmq: RabbitMQServer, rabbitmq_url: str) -> None:
    with amqp.Connection(
        f"{rabbitmq.host}:{rabbitmq.port}", virtual_host=rabbitmq_url.rpartition("/")[2]
    ) as connection:
        channel = connection.channel()
        name = channel.queue_declare("hello").queue
        channel.basic_publish(amqp.Message("hi"), routing_key=name)
        assert eventually(lambda: channel.basic_get(name), 5, "a message").body == "hi"


def test_the_watchdog_ends_children_when_pytest_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, sys, pathlib\n"
        "from tests.support.process import Process\n"
        "child = Process(['sh', '-c', 'sleep 60 & sleep 60 & wait'], name='sleeper', log=pathlib.Path(sys.argv[1]))\n"
        "print(child.pid, flush=True)\n"
        "os.read(0, 1)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "log")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    with parent.stdin, parent.stdout:
        child = psutil.Process(int(parent.stdout.readline()))
        sleepers = eventually(lambda: child.children()[1:] and child.children(), 5, "two processes")
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
        assert len(sleepers) == 2
        eventually(lambda: not any(is_running(one) for one in (child, *sleepers)), 5, "the end of the children")


class TestProxy:
    def test_it_swallows_the_reply_to_a_matching_request_only(
        self, redis_server: RedisServer, redis_url: str, proxy: StartProxy
    ) -> None:
        between = proxy(redis_server)
        with redis.Redis.from_url(between.url(redis_url), retry=None) as client:
            fault = between.swallow_reply(b"INCR")
            assert client.set("count", 0)
            with pytest.raises(redis.ConnectionError):
                client.incr("count")
            fault.wait()
            assert b"INCR" in fault.request
            assert client.get("count") == b"1"

    def test_it_swallows_a_request(self, redis_server: RedisServer, redis_url: str, proxy: StartProxy) -> None:
        between = proxy(redis_server)
        with redis.Redis.from_url(between.url(redis_url), retry=None) as client:
            fault = between.swallow_request(lambda data: b"INCR" in data)
            with pytest.raises(redis.ConnectionError):
                client.incr("count")
            fault.wait()
            assert client.get("count") is None

    def test_it_cuts_refuses_and_accepts_again(
        self, redis_server: RedisServer, redis_url: str, proxy: StartProxy
    ) -> None:
        between = proxy(redis_server)
        with redis.Redis.from_url(between.url(redis_url), retry=None) as client:
            assert client.ping()
            assert between.connections == 1
            between.refuse()
            assert client.ping()
            between.cut()
            with pytest.raises(redis.ConnectionError):
                client.ping()
            between.accept()
            assert client.ping()

    def test_it_holds_replies_back(self, redis_server: RedisServer, redis_url: str, proxy: StartProxy) -> None:
        between = proxy(redis_server)
        with redis.Redis.from_url(between.url(redis_url), retry=None, socket_timeout=1.0) as client:
            assert client.set("a", 0)
            between.pause("client")
            with pytest.raises(redis.TimeoutError):
                client.incr("a")
            between.resume()
            assert client.get("a") == b"1"

    def test_it_delays(self, redis_server: RedisServer, redis_url: str, proxy: StartProxy) -> None:
        between = proxy(redis_server)
        with redis.Redis.from_url(between.url(redis_url), retry=None) as client:
            assert client.ping()
            between.delay(0.1, "server")
            before = time.monotonic()
            assert client.ping()
            assert time.monotonic() - before >= 0.1

    def test_a_half_closed_connection_is_noticed_by_its_reader(
        self, redis_server: RedisServer, redis_url: str, proxy: StartProxy
    ) -> None:
        between = proxy(redis_server)
        with redis.Redis.from_url(between.url(redis_url), retry=None, single_connection_client=True) as client:
            assert client.ping()
            between.half_close("client")
            with pytest.raises(redis.ConnectionError):
                client.ping()


def test_every_child_leads_a_group_of_its_own(redis_server: RedisServer) -> None:
    assert os.getpgid(redis_server.process.pid) == redis_server.process.pid != os.getpgrp()


def test_a_process_that_nobody_ends_is_found(tmp_path: Path) -> None:
    shell = Process(["sh", "-c", "setsid sh -c 'echo $$; exec sleep 60' & wait"], name="shell", log=tmp_path / "log")
    stray = int(shell.wait_for_log(r"^(\d+)$", 5)[1])
    shell.end()
    try:
        assert any(line.startswith(f"{stray}: ") for line in leftovers())
    finally:
        os.kill(stray, signal.SIGKILL)
    eventually(lambda: not any(line.startswith(f"{stray}: ") for line in leftovers()), 5, "the end of the stray")


def test_a_missing_server_skips_a_test_and_fails_it_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = (pytest.skip.Exception, pytest.fail.Exception)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(outcomes, match="redis-server is not installed") as at_home:
        missing("redis-server")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(outcomes, match="redis-server is not installed") as in_ci:
        missing("redis-server")
    assert (at_home.type, in_ci.type) == outcomes
