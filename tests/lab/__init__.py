"""The fault lab: real servers, workers and processes, a nemesis with a seed, and a verdict from what they wrote down.

``make lab SEED=7 MINUTES=3 STORE=zookeeper``; docs/guarantees.md says what it shows. From the top:

===================== ==========================================================================================
``run``               one run: everybody works, things break, everybody ends, the verdict
``scene``             who takes part: ``app`` and ``publisher`` (tasks), ``locker`` (plain locks), each with ``wires``
``sites``             the servers in which the locks live; ``clock`` (and ``clock.c``): wall clocks that can be set
``nemesis``           who breaks things: ``faults`` of all kinds, ``redis_faults``, ``zookeeper_faults``
``history``           what every process did; ``recorder`` writes down what it asked of the store, ``belief`` until
                      when it believed in its lock, ``effects`` what it did under it
``verdict``           puts together: ``trusted`` (beliefs do not overlap, fences grow), ``checker`` with ``models``
                      (is there an order that explains the answers?), ``liveness`` (bounds of time), ``calm`` (when
                      those count, and what excuses an overlap), ``picture`` (what cannot be explained)
``mutants``           our own code, broken on purpose; ``scenarios``: short plays that show each
``peers``, ``peer``   other people's locks
``counterexamples``   plays in which the promise ends
===================== ==========================================================================================
"""
