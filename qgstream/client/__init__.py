"""The client: the other end of a stream, for programs that subscribe or publish. The server does not import it.

`stream.connect` yields the events of a stream that reconnects and resumes; `publisher` publishes over HTTP.
"""
