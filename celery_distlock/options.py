"""The options of a lock: one table, checked where they are written, merged where they meet.

The fields of :class:`LockOptions` and :class:`StoreSettings` *are* the table: each carries its default and the rule
its values must obey, and everything below reads it from there. One option has three spellings::

    @app.task(base=LockedTask, lock_ttl=60)       a task's class       task_options
    app.conf.distlock_ttl = 60                    the app's default    conf_options
    charge.apply_async(lock={"ttl": 60})          one call             call_options

What makes a message unique is spelled without ``lock_`` in a task's class: ``unique_for=60``.

An error repeats the spelling the user wrote, the value, and what would have been allowed. An option that nothing
would read is an error, too: a lock that is not configured as its author believes is worse than none.

This module does not import Celery; an app's configuration is any mapping, and Celery's own is asked for its namespace.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, fields
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Literal

from celery_distlock import rules
from celery_distlock.addresses import redis_of
from celery_distlock.errors import LockConfigError
from celery_distlock.rules import Layer, Rule, Spelling

if TYPE_CHECKING:
    from celery_distlock.keys import KeySpec

__all__ = [
    "CONTENTION_POLICIES",
    "SPELLED",
    "LockOptions",
    "StoreSettings",
    "call_options",
    "check_unique",
    "check_wait",
    "conf_options",
    "merge",
    "store_settings",
    "task_options",
]

#: What may be done about a key that somebody else holds; a callable ``lock_on_contention`` returns one of these.
CONTENTION_POLICIES = ("retry", "wait", "skip", "fail")

#: A lease is renewed at a third of its ttl: below this, one slow round trip to the store is a lost lease.
_SHORTEST_TTL = 0.05
#: A parked message counts against the prefetch count, which is 16 bits wide on the wire; leave some for running tasks.
_MOST_PARKED = 65_000


# --- the table --------------------------------------------------------------------------------------------------


def _must_be(rule: Rule) -> dict[str, Rule]:
    return {"rule": rule}


@dataclass(frozen=True)
class LockOptions:
    """Everything that can be chosen about the lock of a task; times are seconds.

    Attributes:
        key: what the key is made of; None: the task's name and all its arguments.
        ttl: how long a silent holder is believed; renewed at a third of it, so it bounds silence, not run time.
        limit: how many may hold the key at once, or a pure callable of the task's arguments that says so.
        on_contention: one of :data:`CONTENTION_POLICIES`, or a callable ``(task, contention)`` that returns one.
        retry_delay: the first delay of a lock retry; it doubles from retry to retry.
        retry_backoff_max: the longest delay of a lock retry.
        retry_jitter: take a random part of each delay instead of all of it.
        timeout: time since the first attempt after which ``retry`` and ``wait`` give up; None: never.
        skip_result: what a skipped task returns.
        skip_chain: what becomes of the rest of a skipped task's chain, and of its callbacks.
        on_lost: what a confirmed loss does to the running task.
        on_unsure: what the store's silence past the lease's deadline does to the running task.
        on_store_error: what becomes of a task whose store cannot be asked.
        max_parked: parked tasks per worker; above it ``wait`` becomes ``retry``.
        min_hold: time from the grant for which the key stays taken even if the task ends before.
        max_hold: time from the grant after which the task is aborted; None: never.
        hold_on_retry: keep the lock over the task's own retries, their delays included.
        unique_while: for how long a published task is the only one of its unique key: until its run starts, or until
            it ends.
        unique_for: time after the first was accepted in which no second one is, whatever became of it.
        unique_key: what must not be published twice, written as ``key`` is; None: the lock's key.
        unique_ttl: time after which a published task that has not started is believed never to start.
        on_duplicate: what becomes of a call that finds another one.
        beat_unique_tick: of several beats one publishes each tick of the task's entries.
    """

    key: KeySpec = field(default=None, metadata=_must_be(rules.parameters()))
    ttl: float = field(default=30.0, metadata=_must_be(rules.seconds(_SHORTEST_TTL)))
    limit: int | Callable[..., int] = field(default=1, metadata=_must_be(rules.integer(1, or_callable=True)))
    on_contention: str | Callable[[Any, Any], str] = field(
        default="retry", metadata=_must_be(rules.choice(*CONTENTION_POLICIES, or_callable=True))
    )
    retry_delay: float = field(default=1.0, metadata=_must_be(rules.seconds()))
    retry_backoff_max: float = field(default=60.0, metadata=_must_be(rules.seconds()))
    retry_jitter: bool = field(default=True, metadata=_must_be(rules.flag()))
    timeout: float | None = field(default=None, metadata=_must_be(rules.seconds(optional=True)))
    skip_result: Any = field(default=None, metadata=_must_be(rules.anything()))
    skip_chain: Literal["stop", "continue"] = field(default="stop", metadata=_must_be(rules.choice("stop", "continue")))
    on_lost: Literal["abort", "warn"] = field(default="abort", metadata=_must_be(rules.choice("abort", "warn")))
    on_unsure: Literal["continue", "abort"] = field(
        default="continue", metadata=_must_be(rules.choice("continue", "abort"))
    )
    on_store_error: Literal["retry", "fail", "run"] = field(
        default="retry", metadata=_must_be(rules.choice("retry", "fail", "run"))
    )
    max_parked: int = field(default=1000, metadata=_must_be(rules.integer(0, _MOST_PARKED)))
    min_hold: float = field(default=0.0, metadata=_must_be(rules.seconds(0.0)))
    max_hold: float | None = field(default=None, metadata=_must_be(rules.seconds(optional=True)))
    hold_on_retry: bool = field(default=False, metadata=_must_be(rules.flag()))
    unique_while: Literal["queued", "queued_or_running"] | None = field(
        default=None, metadata=_must_be(rules.choice("queued", "queued_or_running", optional=True))
    )
    unique_for: float | None = field(default=None, metadata=_must_be(rules.seconds(optional=True)))
    unique_key: KeySpec = field(default=None, metadata=_must_be(rules.parameters()))
    unique_ttl: float = field(default=3600.0, metadata=_must_be(rules.seconds()))
    on_duplicate: Literal["return", "raise", "replace", "rerun"] = field(
        default="return", metadata=_must_be(rules.choice("return", "raise", "replace", "rerun"))
    )

    beat_unique_tick: bool = field(default=False, metadata=_must_be(rules.flag()))

    @property
    def unique(self) -> bool:
        """Whether publishing asks the store at all."""
        return self.unique_while is not None or self.unique_for is not None


_URL = rules.text("None, or a URL such as 'redis://localhost:6379/0'", r"[\w.+-]+://\S*", optional=True)
_PREFIX = rules.text("a non-empty str without braces or white space", r"[^\s{}]+")
_SCHEDULER = rules.text("a scheduler's name, as celery beat -S takes it", r"[\w.:-]+")
_OPTIONS = rules.keywords("a mapping of str to the store's options")


@dataclass(frozen=True)
class StoreSettings:
    """Where an app's locks live.

    Attributes:
        url: the store's address.
        prefix: what every name in the store begins with; two apps with one prefix share their locks.
        options: passed on to the store's client.
        max_park: seconds that a task is parked at most, before it is republished.
        beat_scheduler: what :class:`~celery_distlock.beat.LeaderScheduler` is put around.
        beat_ttl: seconds for which a beat that leads is believed when it falls silent.
    """

    # Address and options may hold a password.
    url: str = field(repr=False, metadata=_must_be(_URL))
    prefix: str = field(default="distlock", metadata=_must_be(_PREFIX))
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, metadata=_must_be(_OPTIONS))
    max_park: float = field(default=900.0, metadata=_must_be(rules.seconds()))
    beat_scheduler: str = field(default="celery.beat:PersistentScheduler", metadata=_must_be(_SCHEDULER))
    beat_ttl: float = field(default=5.0, metadata=_must_be(rules.seconds(_SHORTEST_TTL)))


_RULES: dict[str, Rule] = {each.name: each.metadata["rule"] for each in fields(LockOptions)}
_BARE = ("on_duplicate", "beat_unique_tick")
#: As a task's class spells it → field.
_WRITTEN = {name if name.startswith("unique_") or name in _BARE else f"lock_{name}": name for name in _RULES}
#: Field → as a task's class spells it.
SPELLED = {name: written for written, name in _WRITTEN.items()}
_STORE_RULES: dict[str, Rule] = {each.name: each.metadata["rule"] for each in fields(StoreSettings)}
_STORE_SETTINGS = {f"distlock_{'store_options' if name == 'options' else name}": name for name in _STORE_RULES}


# --- one task, one call -----------------------------------------------------------------------------------------


#: An option, the policies that never use it, and why.
_UNUSED_WITH: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("timeout", ("skip", "fail"), "this policy does not wait; only 'retry' and 'wait' do"),
    ("skip_result", ("retry", "wait", "fail"), "only 'skip' makes a result of its own"),
    ("skip_chain", ("retry", "wait", "fail"), "only 'skip' leaves a chain that could go on"),
)


def _refuse_unused(layer: Layer) -> None:
    """Raise LockConfigError for an option of one task or call that its own policy would never use.

    An app's defaults are not asked: a time-out for the tasks that wait may stand beside ``"skip"`` for the rest.
    """
    policy = layer.get("on_contention")
    for name, policies, why in _UNUSED_WITH:
        if policy in policies and layer.get(name) is not None:
            raise LockConfigError(
                f"{layer.where}: {layer.show('on_contention')} and {layer.show(name)} contradict each other: {why}"
            )


def _is_method(name: str, value: Any) -> bool:
    """Tell a method of the user's own from an option's value, for a name that is no option.

    A ``def`` in a class body carries the attribute's own name; a function given as an option does not, so that
    ``lock_kye=lambda order: …`` is not taken for a method.
    """
    if isinstance(value, FunctionType):
        return value.__name__ == name
    return hasattr(type(value), "__get__")


def task_options(attributes: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return the lock options among the attributes of a task's class, checked.

    Arguments:
        attributes: the class's attributes as they stand in ``__dict__`` (not bound by ``getattr``).
        where: what an error calls the task, as in ``"task proj.tasks.charge"``.

    Returns:
        field of :class:`LockOptions` → value, for those that are set; None is a value.

    Raises:
        LockConfigError: an option is unknown, not available yet, of a wrong type or value, or contradicts another.
    """
    layer = Layer(where)
    for written, value in attributes.items():
        name = _WRITTEN.get(written)
        if name is None:
            if not written.startswith(("lock_", "unique_")) or _is_method(written, value):
                continue
            raise rules.unknown(where, written, written, _WRITTEN)
        plain = value.__func__ if isinstance(value, staticmethod) else value
        layer.take(name, plain, _RULES[name], Spelling(f"{written}="))
    _refuse_unused(layer)
    return layer


def call_options(given: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return the options of one call, ``apply_async(lock=given)``, checked and as they are after the wire.

    They travel in a header of the message and are checked again where they arrive; doing so changes nothing.

    Arguments:
        given: option → value, with or without the prefix ``lock_``.
        where: what an error calls the call, as in ``"call of proj.tasks.charge"``.

    Returns:
        field of :class:`LockOptions` → value, for those that are given.

    Raises:
        LockConfigError: as :func:`task_options`, or a value cannot travel in a message.
    """
    if not isinstance(given, Mapping):
        raise LockConfigError(f"{where}: lock={given!r} is refused; allowed: a mapping such as lock={{'ttl': 60}}")
    layer = Layer(where)
    for written, value in given.items():
        spelling = Spelling(f"lock={{{written!r}: ", "}")
        name = written.removeprefix("lock_") if isinstance(written, str) else ""
        if name not in _RULES:
            raise rules.unknown(where, spelling.show(value), name, _RULES)
        if name in layer:
            raise LockConfigError(f"{where}: lock={{…}} gives {name!r} and 'lock_{name}'; allowed: one of the two")
        if callable(value):
            raise LockConfigError(
                f"{where}: {spelling.show(value)} is refused: a callable cannot travel in a message; set it on the task"
            )
        try:
            arrived = json.loads(json.dumps(value))
        except (TypeError, ValueError, RecursionError) as error:
            raise LockConfigError(
                f"{where}: {spelling.show(value)} is refused: it cannot travel in a message as JSON ({error})"
            ) from None
        layer.take(name, arrived, _RULES[name], spelling)
    _refuse_unused(layer)
    return layer


# --- an app's configuration -------------------------------------------------------------------------------------


class _Configuration:
    """An app's ``distlock_*`` settings, however they were given: as attributes, by update, with a namespace.

    With ``config_from_object(…, namespace="CELERY")`` Celery looks for ``CELERY_DISTLOCK_TTL`` when asked for
    ``distlock_ttl``. Without a namespace it reads upper-case names of its own old settings only, and would drop ours
    without a word.
    """

    where = "app configuration"

    def __init__(self, conf: Mapping[str, Any]) -> None:
        # Asking for any setting makes Celery read its configuration; before that the namespace is not known.
        conf.get("distlock_url")
        self.conf = conf
        self.namespace = str(getattr(conf, "prefix", None) or "")
        self.names = {name for name in conf if isinstance(name, str) and "distlock_" in name.lower()}

    def spelled(self, setting: str) -> str:
        """Return the name under which the configured object gives a setting."""
        if not self.namespace:
            return setting
        full = self.namespace + setting
        return full.upper() if self.namespace.isupper() else full.lower()

    def check_names(self) -> None:
        """Raise LockConfigError for a setting that nothing would read."""
        known = {*(f"distlock_{name}" for name in _RULES), *_STORE_SETTINGS}
        for name in sorted(self.names):
            setting = name.removeprefix(self.namespace).lower()
            if setting.startswith("distlock_") and name in (setting, self.spelled(setting)):
                if setting not in known and not self._is_code(name):
                    raise rules.unknown(self.where, name, setting, known)
                continue
            setting = setting.removeprefix("celery_")
            if setting in known and setting not in self.conf:
                usual = "" if self.namespace else f", or CELERY_{setting.upper()} with namespace='CELERY'"
                raise LockConfigError(
                    f"{self.where}: {name} would not be read; allowed: {self.spelled(setting)}{usual}"
                )

    def _is_code(self, name: str) -> bool:
        # A module given as configuration also lists what it imports.
        return isinstance(self.conf[name], (FunctionType, ModuleType, type))

    def take(self, layer: Layer, name: str, setting: str, rule: Rule) -> None:
        """Check a setting, if it is given, and store it in the layer."""
        if setting in self.conf:
            spelled = self.spelled(setting)
            written = spelled if spelled in self.names and setting not in self.names else setting
            layer.take(name, self.conf[setting], rule, Spelling(f"{written}="))

    def first(self, *settings: str) -> Any:
        """Return the first of Celery's own settings that has a value, an environment variable's included."""
        for setting in settings:
            # Celery looks at CELERY_BROKER_URL and the like only when the setting is read as an attribute.
            value = getattr(self.conf, setting, None) or self.conf.get(setting)
            if value:
                return value
        return None


def conf_options(conf: Mapping[str, Any]) -> dict[str, Any]:
    """Return an app's default lock options, ``distlock_*``, checked.

    Reading them makes Celery load the app's configuration.

    Arguments:
        conf: ``app.conf``, or a plain mapping.

    Returns:
        field of :class:`LockOptions` → value, for those that are set.

    Raises:
        LockConfigError: as :func:`task_options`; or a setting is spelled so that Celery would not find it.
    """
    settings = _Configuration(conf)
    settings.check_names()
    layer = Layer(settings.where)
    for name, rule in _RULES.items():
        settings.take(layer, name, f"distlock_{name}", rule)
    return layer


# --- where layers meet ------------------------------------------------------------------------------------------


#: What takes the place of a task that is queued.
_LATEST = ("replace", "rerun")
#: Two options, whether they contradict each other, and why.
_CONTRADICTIONS: tuple[tuple[str, str, Callable[[LockOptions], bool], str], ...] = (
    (
        "retry_delay",
        "retry_backoff_max",
        lambda options: options.retry_delay > options.retry_backoff_max,
        "the first delay is longer than the longest",
    ),
    (
        "on_unsure",
        "on_lost",
        lambda options: options.on_unsure == "abort" and options.on_lost == "warn",
        "a lease in doubt would end the task, and one known to be lost would not",
    ),
    (
        "min_hold",
        "max_hold",
        lambda options: options.max_hold is not None and options.min_hold > options.max_hold,
        "the shortest time is longer than the longest",
    ),
    (
        "on_duplicate",
        "unique_for",
        lambda options: options.on_duplicate in _LATEST and options.unique_for is not None,
        "within that time nothing else is accepted, and the latest one always is",
    ),
    (
        "on_duplicate",
        "on_contention",
        lambda options: options.on_duplicate == "rerun" and options.on_contention in ("skip", "fail"),
        "the one that is to run again has to wait for its lock",
    ),
    (
        "on_duplicate",
        "limit",
        lambda options: options.on_duplicate == "rerun" and options.limit != 1,
        "the one that is to run again would not wait for the one that runs",
    ),
)


def merge(*layers: Mapping[str, Any]) -> LockOptions:
    """Return the options that hold when each layer overrides those before it.

    Arguments:
        layers: what :func:`conf_options`, :func:`task_options` and :func:`call_options` returned.

    Raises:
        LockConfigError: two options contradict each other.
    """
    merged: dict[str, Any] = {}
    source: dict[str, Mapping[str, Any]] = {}
    for layer in layers:
        merged.update(layer)
        source.update(dict.fromkeys(layer, layer))
    options = LockOptions(**merged)

    def show(name: str) -> str:
        layer = source.get(name)
        if isinstance(layer, Layer):
            return f"{layer.show(name)} ({layer.where})"
        return f"{SPELLED[name]}={getattr(options, name)!r}" + ("" if name in source else " (the default)")

    for one, other, contradict, why in _CONTRADICTIONS:
        if contradict(options):
            raise LockConfigError(f"{show(one)} and {show(other)} contradict each other: {why}")
    return options


def check_wait(options: LockOptions, acks_late: bool, where: str) -> None:
    """Refuse the policy ``"wait"`` for a task that acknowledges its message before it runs.

    Arguments:
        options: the task's merged options.
        acks_late: whether the task, or its app, acknowledges late.
        where: what an error calls the task.

    Raises:
        LockConfigError: ``on_contention`` is ``"wait"`` and ``acks_late`` is not set.
    """
    if options.on_contention == "wait" and not acks_late:
        raise LockConfigError(
            f"{where}: lock_on_contention='wait' needs acks_late=True: a waiting task is parked with its message "
            "unacknowledged, so that the broker keeps it if the worker dies. It also means that a worker lost in "
            "the middle of a run makes the task run again. Set acks_late=True to accept that, or use 'retry'"
        )


def check_unique(options: LockOptions, where: str, written: Container[str]) -> None:
    """Refuse what says how a task is unique, of one that is not.

    Arguments:
        options: the task's merged options.
        where: what an error calls the task.
        written: the names of those that were written for this task or call: an app's default is for tasks that are
            unique, and does not mind that others are not.

    Raises:
        LockConfigError: something is missing.
    """
    meant = options.unique or "on_duplicate" in written
    if meant and options.on_duplicate in _LATEST and options.unique_while is None:
        raise LockConfigError(
            f"{where}: on_duplicate={options.on_duplicate!r} takes the place of a task that is queued; it needs "
            "unique_while='queued' or 'queued_or_running'"
        )
    if "unique_key" in written and options.unique_key is not None and not options.unique:
        raise LockConfigError(
            f"{where}: unique_key={options.unique_key!r} would not be used; it needs unique_while or unique_for"
        )


# --- the store --------------------------------------------------------------------------------------------------


def store_settings(conf: Mapping[str, Any]) -> StoreSettings:
    """Return where an app's locks live: ``distlock_url``, else its Redis result backend, else its Redis broker.

    Of a list of brokers the first counts: locks live in one place, and do not fail over with the messages.

    Arguments:
        conf: ``app.conf``, or a plain mapping.

    Raises:
        LockConfigError: a setting is wrong, or there is no address.
    """
    settings = _Configuration(conf)
    settings.check_names()
    layer = Layer(settings.where)
    for setting, name in _STORE_SETTINGS.items():
        settings.take(layer, name, setting, _STORE_RULES[name])
    if layer.get("url") is None:
        url, tls = redis_of(settings.first, where=settings.where, setting=settings.spelled("distlock_url"))
        layer.update(url=url, options={**tls, **layer.get("options", {})})
    return StoreSettings(**layer)
