"""Brokers: the engines that store the event log. The URL scheme selects the engine, and only that engine is imported.

`base` has the contract and `open_broker`. Every engine behind a network derives from `remote.Remote`. The test suite
`tests/brokers/test_contract.py` runs with each engine.
"""
