"""The service: the policies of one process.

`service.Service` is what the handlers share: admission, who may do what, heartbeats, drain, bans, and what operators
see and change. Each policy has a module of its own.
"""
