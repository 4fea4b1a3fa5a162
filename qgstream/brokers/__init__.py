"""Brokers: the engines that own the log. Opened by URL scheme, and imported only then.

`base` has the contract and `open_broker`. Every engine behind a network derives from `remote.Remote`. The test suite
`tests/brokers/test_contract.py` runs on each of them.
"""
