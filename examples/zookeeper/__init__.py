"""Four classic ZooKeeper locks, each with its equivalent: ``python -m examples.zookeeper.turns`` and so on."""
