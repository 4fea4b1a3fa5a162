"""The service: the policies of one process. Admission, heartbeats, drain, and what operators see and change."""
