"""The HTTP words: everything that knows of requests and answers, and nothing below it does."""
