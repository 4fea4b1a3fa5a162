"""The package's metadata: what it is called, what it needs and what it installs."""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"


def version() -> str:
    """Read `__version__` without importing the package, whose dependencies are not installed yet."""
    text = (HERE / "qgstream" / "version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('qgstream/version.py: expected a line __version__ = "..."')
    return found[1]


def long_description(readme: str, repository: str) -> str:
    """The README for an index page, where relative links lead nowhere: to the repository, or else only their text."""
    link = re.compile(r"(?<!!)\[((?:[^\]\[]|\[[^\]]*\])*)\]\((?!#|[a-z]+:)([^()\s]+)\)")
    return link.sub(rf"[\1]({repository}/\2)" if repository else r"\1", readme)


# The public address below which the source can be read, branch included: https://HOST/OWNER/qgstream/blob/main.
# Whoever publishes the package says it in the environment. Without it the package names none.
REPOSITORY = os.environ.get("REPOSITORY_URL", "").rstrip("/")
PAGES = {"Source": "", "Documentation": "/README.md#documentation", "Changelog": "/CHANGELOG.md"}

# What the engines of broker.url need. What work on this package needs is in pyproject.toml, as dependency groups.
BROKERS = {
    "redis": ["redis>=5.2.1,<9"],  # older ones do not say what is wrong with a certificate
    # aiormq is the layer below. Before 7.2 one message that it could not take apart ended more than its connection.
    "rabbitmq": ["aio-pika>=10,<11", "aiormq>=7.2,<8"],
    "nats": ["nats-py>=2.15,<3"],  # before, it did not say when its connection had ended
}

setup(
    name="qgstream",
    version=version(),
    description="Server-Sent Events on Tornado: many open streams, honest replay, limits, metrics, a slow drain",
    long_description=long_description(README.read_text(encoding="utf-8"), REPOSITORY),
    long_description_content_type="text/markdown",
    author="The qgstream authors",
    project_urls={name: REPOSITORY + path for name, path in PAGES.items()} if REPOSITORY else {},
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["qgstream", "qgstream.*"]),
    package_data={"qgstream": ["py.typed", "web/**/*"]},
    python_requires=">=3.11",
    # The lower bounds are the oldest with which every test passes.
    install_requires=[
        "cachetools>=5.3,<9",
        "certifi",  # httpx brings it, too
        "cryptography>=42",  # PyJWT brings it, too; before, a certificate's date had no zone
        "httpx>=0.27,<1",
        "msgspec>=0.18.6,<1",
        "prometheus-client>=0.20,<1",
        "pydantic>=2.9,<3",
        "PyJWT[crypto]>=2.13,<3",  # before, a public key in JWK form passed for a shared secret
        "python-json-logger>=3.1,<5",
        "shtab>=1.7,<2",  # writes the scripts of `qgstream completion`; starts no program when Tab is pressed
        "sortedcontainers>=2.4,<3",
        "tornado>=6.5,<7",
        "websockets>=15,<18",  # reads and writes the frames of WebSockets; its client drives the tests
    ],
    extras_require=BROKERS,
    entry_points={"console_scripts": ["qgstream = qgstream.cli:main"]},
    keywords=["sse", "server-sent events", "eventsource", "tornado", "pubsub"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: AsyncIO",
        "Intended Audience :: Developers",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Internet :: WWW/HTTP :: HTTP Servers",
        "Typing :: Typed",
    ],
)
