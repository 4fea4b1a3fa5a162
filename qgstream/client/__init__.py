"""The client, for programs that subscribe or publish. The server does not import this package.

`stream.connect` yields the events of a stream that reconnects and resumes; `publisher` publishes over HTTP.
"""
