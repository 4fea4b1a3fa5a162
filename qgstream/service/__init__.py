"""The service: the policies of one process.

The handlers share one `service.Service`: admission, authorization, heartbeats, drain, bans, and what operators see and
change. Each policy has its own module.
"""
